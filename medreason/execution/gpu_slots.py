"""GPU slots: each job holds its own devices, so that N jobs run on N GPUs.

A slot is a file lock in this machine's temporary folder, one set for each user. The kernel takes
it back from a job that dies; its worker inherits it, so a device is free when the worker is gone.
An action that computes in its own process (bench, predict, judge) holds one device until its end.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from medreason.config import Hardware
from medreason.config.machine import enough_gpus
from medreason.runs import lock
from medreason.runs.progress import Waiting

_POLL_SECONDS = 1.0
_HELD_ALONE: list[AbstractContextManager[GpuSlots]] = []
"""What `hold_one` holds; nobody leaves it, the kernel takes the slot back when the process ends."""


@dataclass(frozen=True)
class GpuSlots:
    """Devices as `CUDA_VISIBLE_DEVICES` takes them, and what a worker inherits to hold them."""

    devices: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = ()


@contextmanager
def hold(hardware: Hardware, on_wait: Callable[[], None] = lambda: None) -> Iterator[GpuSlots]:
    """Hold `hardware.devices` GPUs, after waiting until so many are free; none on a CPU.

    `on_wait` is called each second in which it waits.

    Raises:
        ValueError: this machine has fewer.
    """
    if hardware.accelerator != "cuda":
        yield GpuSlots()
        return
    devices = [gpu.index for gpu in enough_gpus(hardware)]
    with ExitStack() as stack:
        slots = _take(devices, hardware.devices, stack)
        while not slots:
            on_wait()
            time.sleep(_POLL_SECONDS)
            slots = _take(devices, hardware.devices, stack)
        yield slots


def hold_one(hardware: Hardware) -> Hardware:
    """Hold one GPU until this process ends, and hide the others from torch, which must not have
    looked for them yet; none on a CPU. Gives the hardware with that one device.

    Raises:
        ValueError: this machine has no GPU.
    """
    alone = replace(hardware, devices=1, nodes=1, parallel="ddp", offload=False)
    if hardware.accelerator == "cuda" and not _HELD_ALONE:
        waiting = Waiting()
        holding = hold(alone, lambda: waiting.show("waits for a GPU"))
        os.environ.update(cuda_environment(holding.__enter__().devices[:1]))
        waiting.clear()
        _HELD_ALONE.append(holding)
    return alone


def cuda_environment(devices: Sequence[str], *, expandable: bool = True) -> dict[str, str]:
    """Environment variables for a process that computes on these devices.

    `expandable` lets torch's blocks of memory grow, since questions of many lengths leave blocks of
    many sizes; vLLM's sleep mode refuses it. A setting of the user's stands.
    """
    environment = {
        "CUDA_VISIBLE_DEVICES": ",".join(devices),  # none on a CPU
        # Numbers as nvidia-smi counts, which the slots are named by. CUDA's own order is by speed.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    if expandable and not {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"} & os.environ.keys():
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return environment


def _take(devices: Sequence[str], count: int, stack: ExitStack) -> GpuSlots | None:
    """All or none, one taker at a time: two jobs never wait for half of each other's devices."""
    folder = _lock_folder()
    descriptors: dict[str, int] = {}
    with ExitStack() as attempt, lock.briefly(folder / "take.lock"):
        for device in devices:
            file = attempt.enter_context((folder / f"{_file_name(device)}.lock").open("a"))
            if lock.kernel_lock(file) is False:
                continue
            descriptors[device] = file.fileno()
            if len(descriptors) == count:
                stack.push(attempt.pop_all())
                return GpuSlots(tuple(descriptors), tuple(descriptors.values()))
    return None


def _lock_folder() -> Path:
    path = Path(tempfile.gettempdir()) / f"medreason-gpus-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _file_name(device: str) -> str:
    """Of the device, with the Slurm job's id: within each job devices count from 0 again."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return re.sub(r"[^A-Za-z0-9-]+", "-", f"{job}-{device}".strip("-"))
