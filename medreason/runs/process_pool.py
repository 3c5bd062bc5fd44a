"""Work on all cores, in processes that end with the command."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def results(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    chunk: int,
    initializer: Callable[[int], None],
    processes: int | None = None,
) -> Generator[_Result, None, None]:
    """`function` of each item, in their order; `initializer` gets the pid of this process. One
    process is this one.

    As `ProcessPoolExecutor.map`, which cancels futures from this thread when it is interrupted:
    where the same signal has ended the processes, its own thread then fails on them with a
    traceback (CPython 3.11).
    """
    if processes == 1:
        yield from map(function, items)
        return
    arguments = (initializer, os.getpid())
    pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=arguments)
    try:
        chunks = [items[first : first + chunk] for first in range(0, len(items), chunk)]
        with _signals_wait():  # a new process has this one's handlers until it has its own
            futures = [pool.submit(_each, function, members) for members in chunks]
        for future in futures:
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_wait() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(initializer: Callable[[int], None], pid: int) -> None:
    initializer(pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _each(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    return [function(item) for item in items]
