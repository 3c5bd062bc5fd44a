"""What malloc does with freed blocks, seen in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS_OF_BLOCKS = """
import ctypes, resource, sys
from medreason.runs.process_memory import adapt_malloc
adapt_malloc(recomputes=sys.argv[1] == "recomputes")
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def step():
    for _ in range(8):
        block = ctypes.c_void_p(libc.malloc(2**22))
        ctypes.memset(block, 1, 2**22)
        libc.free(block)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    """Of eight blocks of 4 MiB, each freed before the next, behind a warm-up."""
    command = [sys.executable, "-c", _FAULTS_OF_BLOCKS, mode]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(result.stdout.splitlines()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_freed_blocks_are_kept_unless_memory_goes_before_speed() -> None:
    assert page_faults("keeps") < 100
    assert page_faults("recomputes") > 8 * 100
