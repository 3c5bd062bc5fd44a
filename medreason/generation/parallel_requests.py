"""Many requests to one server at the same time, and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")


class FailedError(Exception):
    """One item got no usable reply. `lost`: no reply at all came back from the last attempt;
    `status`: of HTTP, where the server refused; `words`: the server's own, where they are known."""

    def __init__(
        self, reason: str, *, lost: bool = False, status: int | None = None, words: str = ""
    ) -> None:
        super().__init__(reason)
        self.lost, self.status, self.words = lost, status, words


def parallel_requests(
    ask: Callable[[Item], Result],
    items: Mapping[Key, Item],
    *,
    concurrency: int,
    unreached: Callable[[FailedError], str],
    reached: bool = False,
) -> Iterator[tuple[Key, Result | FailedError]]:
    """(key, result or failure) of each item, in the order in which the server replies.

    The first item is asked alone, unless the server was `reached` before, so that an unreachable
    server is found before others are asked. More than `concurrency` lost requests in a row are a
    lost server.

    Raises:
        ValueError: the server is not reached, in the words of `unreached`; or what `ask` raises.
    """
    waiting = list(items.items())[::-1]
    running: dict[Future[Result], Key] = {}
    lost = 0
    executor = ThreadPoolExecutor(concurrency)
    try:
        while waiting or running:
            while waiting and len(running) < (concurrency if reached else 1):
                key, item = waiting.pop()
                running[executor.submit(ask, item)] = key
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                try:
                    yield key, future.result()
                    lost = 0
                except FailedError as error:
                    lost = lost + 1 if error.lost else 0
                    if error.lost and (not reached or lost > concurrency):
                        raise ValueError(unreached(error)) from None
                    yield key, error
                reached = True
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
