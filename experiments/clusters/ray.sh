#!/usr/bin/env bash
# A sweep on a Ray cluster of this machine, in a folder that must not exist yet:
#
#     experiments/clusters/ray.sh FOLDER [OVERRIDE ...]
#
# Needs the extra `ray` in .venv: uv pip install --python .venv/bin/python -e '.[ray]'. Four jobs, of which two fail on
# purpose, so the sweep ends with status 1; then the same command again.
set -euo pipefail

here=$(realpath "$(dirname "$0")/../..")
mkdir -p "$1"
cd "$1"
shift
export RAY_ADDRESS=127.0.0.1:9379 RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1 PATH=$here/.venv/bin:$PATH

ray start --head --block --port=9379 --num-cpus=2 --include-dashboard=false --disable-usage-stats > ray.log 2>&1 &
cluster=$!
trap 'kill $cluster; wait' EXIT
until ray status --address=127.0.0.1:9379 > /dev/null 2>&1; do
    kill -0 $cluster || { cat ray.log; exit 1; }
    sleep 1
done

for time in first second; do
    python -m medreason -m hydra/launcher=ray_cluster sweep=ray tracking=none \
        data.train_images=16 data.test_images=1 'evaluation.modalities=[ct]' 'evaluation.tasks=[disease]' \
        'evaluation.controls=[]' evaluation.max_new_tokens=2 hardware.threads=1 modality=ct \
        method=base,sft method.trl.max_steps=2 model.path=tiny,./nothing "$@" && exit 1
    echo "the $time time"
done
