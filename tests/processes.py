"""Processes that a test waits for, which are not its children.

A zombie is dead: process 1 of a container often waits for nobody, so a killed process stays one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from medreason.runs.parent_watch import is_alive


def working_in(folder: Path) -> list[psutil.Process]:
    """All but this one: launcher, jobs, servers that fork workers, workers."""
    return [process for process in psutil.process_iter() if _works_in(process, folder)]


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        at_work = process.pid != os.getpid() and process.cwd() == str(folder)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # gone, or another user's
        return False
    return at_work and is_alive(process)


def wait_until_dead(processes: Sequence[psutil.Process]) -> None:
    """Raises: AssertionError, where one is alive after 30 s."""
    _wait(lambda: [process for process in processes if is_alive(process)])


def wait_until_gone(folder: Path) -> None:
    """What a killed command has started notices within a second or two that it is gone.

    Raises: AssertionError, where one still works in the folder after 60 s.
    """
    _wait(lambda: working_in(folder), 60)


def _wait(living: Callable[[], Sequence[psutil.Process]], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while alive := living():
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
