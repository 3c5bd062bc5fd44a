"""Work on all cores, in processes that end with the command."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
    pool = ProcessPoolExecutor(processes, initializer=initializer, initargs=(os.getpid(),))
    try:
        chunks = [items[first : first + chunk] for first in range(0, len(items), chunk)]
        futures = [pool.submit(_each, function, members) for members in chunks]
        for future in futures:
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _each(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    return [function(item) for item in items]
