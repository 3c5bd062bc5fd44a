"""End a process when another ends: workers must not outlive a killed launcher."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable

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


def start_in_pool(pid: int) -> None:
    """For a process of a pool: it ends with its parent `pid`, and leaves Ctrl-C, which a terminal
    sends to both, to it. SIGTERM, by which a broken pool ends its processes, ends it at once, and
    so does SIGHUP."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    on_hang_up(signal.SIG_DFL)
    end_with(pid)


def on_hang_up(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    """Handle SIGHUP, unless this process was started to outlive its terminal, as by nohup."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handler)


os.register_at_fork(after_in_child=end_with.cache_clear)  # a fork has none of these threads


def _watch(process: psutil.Process) -> None:
    while is_alive(process):
        time.sleep(0.5)
    os._exit(1)


def is_alive(process: psutil.Process) -> bool:
    """False for a zombie too, which a killed process stays where nobody waits for it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
