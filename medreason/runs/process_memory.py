"""Memory of this process: what it holds, what malloc keeps. See also `training.peak_memory`."""

from __future__ import annotations

import ctypes

import psutil

_M_MMAP_THRESHOLD = -3  # malloc.h


def private_bytes() -> int:
    """Resident memory without the pages of mapped files, which the kernel takes back at will."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def return_freed_blocks() -> None:
    """Make malloc return freed blocks of 256 KiB and more to the system, which is slower.

    What it would keep can be more than all tensors of a step. Without glibc nothing changes.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, 1 << 18)
