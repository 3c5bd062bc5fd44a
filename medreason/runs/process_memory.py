"""Memory of this process: what it holds, what malloc keeps. See also `training.peak_memory`."""

from __future__ import annotations

import ctypes

import psutil

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def private_bytes() -> int:
    """Resident memory without the pages of mapped files, which the kernel takes back at will."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def adapt_malloc(*, recomputes: bool) -> None:
    """Make malloc keep freed blocks of up to 32 MiB, 1 GiB in all, or return them to the system
    from 256 KiB on.

    Returned, a block of some megabytes is new memory at the next step, whose pages the kernel fills
    with zeros first: a tenth of the CPU time of a small model's training. What is kept can be more
    than all tensors of a step, so where activations are computed again (`recomputes`), memory goes
    before speed. Without glibc nothing changes.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, 1 << 18 if recomputes else 1 << 25)
        if not recomputes:
            mallopt(_M_TRIM_THRESHOLD, 1 << 30)
