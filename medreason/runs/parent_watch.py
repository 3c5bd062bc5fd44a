"""End a process when another ends: workers must not outlive a killed launcher."""

from __future__ import annotations

import functools
import os
import threading
import time

import psutil

LAUNCHER = "MEDREASON_LAUNCHER"
"""The variable with the process id of a sweep's launcher."""


def end_with_launcher() -> None:
    """For a process in which jobs of a sweep run, but which has none yet: see `end_with`."""
    end_with(int(os.environ[LAUNCHER]))


@functools.cache  # one thread a process, however many jobs it runs
def end_with(pid: int) -> None:
    """End this process within a second of the end of another, without any message."""
    try:
        watched = psutil.Process(pid)
    except psutil.NoSuchProcess:
        os._exit(1)
    threading.Thread(target=_watch, args=(watched,), daemon=True).start()


def _watch(process: psutil.Process) -> None:
    while _is_alive(process):
        time.sleep(0.5)
    os._exit(1)


def _is_alive(process: psutil.Process) -> bool:
    """False for a zombie too, which a killed process stays where nobody waits for it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
