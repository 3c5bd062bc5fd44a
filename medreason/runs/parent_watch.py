"""A process that ends when another does: what a killed launcher started must not go on training."""

from __future__ import annotations

import functools
import os
import threading
import time

import psutil

LAUNCHER = "MEDREASON_LAUNCHER"
"""The variable with the process id of a sweep's launcher."""


def end_with_launcher() -> None:
    """For a process in which jobs will run: without one it would wait for a killed launcher."""
    end_with(int(os.environ[LAUNCHER]))


@functools.cache  # one thread a process, however many jobs it runs
def end_with(pid: int) -> None:
    """End this process, without a word, within a second of the end of another."""
    try:
        watched = psutil.Process(pid)
    except psutil.NoSuchProcess:
        os._exit(1)
    threading.Thread(target=_watch, args=(watched,), daemon=True).start()


def _watch(process: psutil.Process) -> None:
    while _lives(process):
        time.sleep(0.5)
    os._exit(1)


def _lives(process: psutil.Process) -> bool:
    """False for a zombie too: where nobody waits for it, a killed process stays one."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
