"""GPU slots: each job holds its own devices, so that N jobs run on N GPUs.

A slot is a file lock in this machine's temporary folder, one set for each user. The kernel takes
it back from a job that dies; its worker inherits it, so a device is free when the worker is gone.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from medreason.config import Hardware
from medreason.config.machine import enough_gpus
from medreason.runs import lock

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class GpuSlots:
    """Devices as `CUDA_VISIBLE_DEVICES` takes them, and what a worker inherits to hold them."""

    devices: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = ()


@contextmanager
def hold(hardware: Hardware, on_wait: Callable[[], None] = lambda: None) -> Iterator[GpuSlots]:
    """Hold `hardware.devices` GPUs, after waiting until so many are free; none on a CPU.

    Raises:
        ValueError: this machine has fewer.
    """
    if hardware.accelerator != "cuda":
        yield GpuSlots()
        return
    devices = [gpu.index for gpu in enough_gpus(hardware)]
    with ExitStack() as stack:
        while not (slots := _take(devices, hardware.devices, stack)):
            on_wait()
            time.sleep(_POLL_SECONDS)
        yield slots


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
