"""Images read and processed by other threads, before they are needed.

Decoding a picture and cutting it into patches takes a CPU tens of milliseconds, for which a GPU
would wait at each batch. Pillow and torch let other threads run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Loaded = TypeVar("Loaded")

_WORKERS = 4
_AHEAD = 32
"""Images that wait at most: of 784 patches each, 120 MB."""


class ImagesAhead(Generic[Key, Loaded]):
    """What `load` gives for each of the keys, begun in their order.

    A key that comes first gets its image when its turn is; an error of `load` is raised there, too.
    """

    def __init__(self, load: Callable[[Key], Loaded], keys: Iterable[Key]) -> None:
        self._load = load
        self._keys = iter(dict.fromkeys(keys))
        self._waiting: dict[Key, Future[Loaded]] = {}
        self._threads = ThreadPoolExecutor(_WORKERS, "images")
        self._fill()

    def __call__(self, key: Key) -> Loaded:
        begun = self._waiting.pop(key, None)
        self._fill()
        # One that is shown again, after others, was given away.
        return self._load(key) if begun is None else begun.result()

    def _fill(self) -> None:
        while len(self._waiting) < _AHEAD and (key := next(self._keys, None)) is not None:
            self._waiting[key] = self._threads.submit(self._load, key)

    def close(self) -> None:
        """Begin no further images; those that are being read are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
