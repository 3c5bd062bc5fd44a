"""GPU slots: each job takes its devices for itself, so that N jobs run on N GPUs.

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
from medreason.config.machine import enough
from medreason.runs import lock

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class GpuSlots:
    """Devices as `CUDA_VISIBLE_DEVICES` takes them, and what a worker inherits to hold them."""

    devices: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = ()


@contextmanager
def hold(hardware: Hardware, waiting: Callable[[], None] = lambda: None) -> Iterator[GpuSlots]:
    """Hold `hardware.devices` GPUs, after waiting until so many are free; none on a CPU.

    Raises:
        ValueError: this machine has fewer.
    """
    if hardware.accelerator != "cuda":
        yield GpuSlots()
        return
    there = [gpu.index for gpu in enough(hardware)]
    with ExitStack() as stack:
        while not (slots := _take(there, hardware.devices, stack)):
            waiting()
            time.sleep(_POLL_SECONDS)
        yield slots


def _take(there: Sequence[str], count: int, stack: ExitStack) -> GpuSlots | None:
    """All or none, one taker at a time: two jobs never wait for half of each other's devices."""
    folder = _folder()
    held: list[tuple[str, int]] = []
    with ExitStack() as attempt, lock.briefly(folder / "take.lock"):
        for name in there:
            handle = attempt.enter_context((folder / f"{_file_name(name)}.lock").open("a"))
            if lock.kernel_lock(handle) is False:
                continue
            held.append((name, handle.fileno()))
            if len(held) == count:
                stack.push(attempt.pop_all())
                return GpuSlots(tuple(n for n, _ in held), tuple(d for _, d in held))
    return None


def _folder() -> Path:
    path = Path(tempfile.gettempdir()) / f"medreason-gpus-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _file_name(device: str) -> str:
    """Within a Slurm job devices count from 0 again, so its id tells them apart."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return re.sub(r"[^A-Za-z0-9-]+", "-", f"{job}-{device}".strip("-"))
