"""Multi-node training: the rendezvous of all nodes' processes, from Slurm's environment."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

from medreason.config import Hardware


@dataclass(frozen=True)
class Rendezvous:
    """Where the processes of all nodes meet, and which node this is."""

    node: int
    address: str
    port: int


def rendezvous(hardware: Hardware) -> Rendezvous | None:
    """None on one machine, where torchrun finds a free port by itself.

    MASTER_ADDR and MASTER_PORT, where they are set, take precedence over the first name in Slurm's
    list of nodes and the port made of the job's id.

    Raises:
        ValueError: not within a job of `hardware.nodes` nodes, or the port is in use.
    """
    if hardware.nodes == 1:
        return None
    environment = os.environ
    if "SLURM_JOB_ID" not in environment:
        raise ValueError(
            f"hardware.nodes={hardware.nodes} needs a Slurm job, and SLURM_JOB_ID is not set; add "
            f"hydra/launcher=submitit_slurm hydra.launcher.nodes={hardware.nodes} "
            "hydra.launcher.tasks_per_node=1, or set hardware.nodes=1"
        )
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes != hardware.nodes:
        raise ValueError(
            f"hardware.nodes={hardware.nodes}, and this Slurm job has {nodes} "
            f"(SLURM_JOB_NUM_NODES); set hardware.nodes={nodes} or "
            f"hydra.launcher.nodes={hardware.nodes}"
        )
    if (tasks := int(environment.get("SLURM_NTASKS", nodes))) != nodes:
        raise ValueError(
            f"this Slurm job has {tasks} tasks on {nodes} nodes; each node takes one, which starts "
            "hardware.devices processes: set hydra.launcher.tasks_per_node=1"
        )
    node = int(environment.get("SLURM_NODEID", "0"))
    address = environment.get("MASTER_ADDR") or _first_node(
        environment.get("SLURM_JOB_NODELIST", "")
    )
    port = int(environment.get("MASTER_PORT") or 20_000 + int(environment["SLURM_JOB_ID"]) % 20_000)
    if node == 0:
        _refuse_port_in_use(port)
    return Rendezvous(node, address, port)


def _first_node(nodes: str) -> str:
    """The first name of Slurm's list: `a[03-05,9],b1` begins with a03."""
    parts = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,]*)", nodes)
    if not parts:
        raise ValueError("SLURM_JOB_NODELIST is empty; set MASTER_ADDR to the first node's name")
    return "".join(part or "" for part in parts.groups())


def _refuse_port_in_use(port: int) -> None:
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise ValueError(
            f"port {port}, where the processes of all nodes are to meet, is in use on this machine "
            f"({error.strerror}); set MASTER_PORT to a free one"
        ) from error
