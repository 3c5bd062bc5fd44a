"""Images are read ahead in other threads, in order, and never many at once."""

from __future__ import annotations

import threading
import time

import pytest

from medreason.generation import images_ahead
from medreason.generation.images_ahead import ImagesAhead


def test_slow_images_are_read_while_others_are_answered() -> None:
    def load(key: int) -> int:
        time.sleep(0.05)
        return 10 * key

    seconds = {}
    for ahead in (True, False):
        begin = time.monotonic()
        images = ImagesAhead(load, range(20)) if ahead else load
        for key in range(20):
            assert images(key) == 10 * key
            time.sleep(0.05)  # the model answers
        seconds[ahead] = time.monotonic() - begin
    assert seconds[True] < 0.75 * seconds[False]


def test_images_that_wait_are_bounded_and_each_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images_ahead, "_AHEAD", 3)
    read: list[int] = []
    images = ImagesAhead(lambda key: read.append(key) or key, [0, 1, 1, 2, 3, 4, 5, 0])
    time.sleep(0.1)
    assert sorted(read) == [0, 1, 2]
    assert [images(key) for key in (0, 1, 2, 3, 4, 5)] == [0, 1, 2, 3, 4, 5]
    assert sorted(read) == [0, 1, 2, 3, 4, 5]
    assert images(0) == 0  # shown again
    assert images(9) == 9  # not announced
    images.close()


def test_errors_come_with_their_image_and_closing_does_not_wait() -> None:
    asked, released = threading.Event(), threading.Event()

    def load(key: str) -> str:
        if key == "damaged":
            raise ValueError("damaged.png cannot be read")
        if key == "slow":
            asked.set()
            released.wait(10)
        return key

    images = ImagesAhead(load, ["fine", "damaged", "slow", *map(str, range(100))])
    assert images("fine") == "fine"
    with pytest.raises(ValueError, match=r"damaged\.png"):
        images("damaged")
    assert asked.wait(10)
    begin = time.monotonic()
    images.close()
    assert time.monotonic() - begin < 5
    released.set()
