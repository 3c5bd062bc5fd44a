"""Whether other processes take the cores that a training on CPUs is to have."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

_SECONDS = 60.0
_LOADED = 1.25
"""Processes that want to run, a core."""
_FAR_BELOW = 0.7
"""Share of the threads of a training."""


class Contention:
    """The processor time that a training got in each minute."""

    def __init__(self, threads: int) -> None:
        """`threads` of each of its processes."""
        self._threads = threads
        self._began, self._used = time.monotonic(), -1.0
        self._told = False

    @property
    def is_due(self) -> bool:
        """Whether a minute is over and nothing was said yet."""
        return not self._told and (self._used < 0 or time.monotonic() - self._began >= _SECONDS)

    def line(self, processes: Sequence[psutil.Process]) -> str | None:
        """What to say of the minute before; `processes` are all ranks of the training."""
        seconds, before = time.monotonic() - self._began, self._used
        self._began = time.monotonic()
        self._used = _processor_seconds(processes)
        if not 0 <= before <= self._used:  # the first minute, or another process
            return None
        threads, available = self._threads * len(processes), cores()
        load, got = os.getloadavg()[0], (self._used - before) / seconds
        self._told = load > _LOADED * available and got < _FAR_BELOW * min(threads, available)
        if not self._told:
            return None
        remedy = "; hardware.threads=1 may be faster then" if self._threads > 1 else ""
        return (
            f"other processes slow it: it got {got:.1f} of {min(threads, available)} cores in the "
            f"last minute, {load:.1f} processes want the {available} of this machine{remedy}"
        )


def _processor_seconds(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
