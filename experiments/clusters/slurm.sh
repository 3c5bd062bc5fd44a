#!/usr/bin/env bash
# A private Slurm of two nodes on this machine, in one folder, for as long as a command runs:
#
#     experiments/clusters/slurm.sh FOLDER COMMAND ...
#
# Needs root and Debian's packages: apt-get install slurmctld slurmd slurm-client munge. Neither systemd nor cgroups nor
# /etc/slurm is used. The nodes n1 and n2 are two slurmd of one machine, each with all its CPUs. README.md has the commands.
set -euo pipefail

folder=$(realpath -m "$1")
shift
mkdir -p "$folder"/{state,spool,log,munge}
chmod 755 "$folder"/munge
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)

[ -e "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom > "$folder/munge/key")
cat > "$SLURM_CONF" <<CONF
ClusterName=medreason
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=16818 CPUs=$(nproc) State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=16819 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF

daemons=()
end() {
    scancel --quiet --user=root || true
    while [ -n "$(squeue --noheader 2> /dev/null)" ]; do sleep 0.5; done
    kill "${daemons[@]}" 2> /dev/null || true
    wait
}
trap end EXIT

daemon_log=$folder/log/daemons
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" >> "$daemon_log" 2>&1 &
daemons+=($!)
until [ -S "$folder/munge/socket" ]; do sleep 0.2; done
slurmctld -D >> "$daemon_log" 2>&1 &
daemons+=($!)
for node in n1 n2; do
    slurmd -D -N $node >> "$daemon_log" 2>&1 &
    daemons+=($!)
done
until [ "$(sinfo --noheader --format=%T 2> /dev/null)" = idle ]; do sleep 0.5; done
"$@"
