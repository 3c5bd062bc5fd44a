"""Memory of this process: what it holds, what it held at most, what malloc keeps."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


_M_MMAP_THRESHOLD = -3  # malloc.h


def private_bytes() -> int:
    """Of the process, without the pages of files it maps, which the kernel takes back at will."""
    found = psutil.Process().memory_info()
    return found.rss - getattr(found, "shared", 0)


def return_freed_blocks() -> None:
    """From now on malloc gives blocks of 256 KiB and more back when they are freed, slower:
    what it would keep can be more than all tensors of a step. Without glibc nothing changes."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, 1 << 18)


class PeakMemory:
    """Highest memory within a `with`: of the GPU as torch counts it, else `private_bytes`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, private_bytes())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self._thread.join()
