"""What an audit finds out about each image: size, content, look, or why it cannot be read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medreason.data.images import open_rgb


@dataclass(frozen=True)
class Picture:
    size: tuple[int, int] | None = None
    """Width and height in pixels, upright; None where it cannot be read."""
    content: str = ""
    """SHA-256 of the file, 16 digits: equal for equal files."""
    look: str = ""
    """dHash, 16 digits: equal for images that differ in size, format or compression only."""
    problem: str = ""
    """Empty, "missing", or why it cannot be read."""


def look_at(
    paths: Iterable[Path], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Picture]:
    """Read every image once, on all cores. `progress` hears done and total."""
    todo = sorted({str(path) for path in paths})
    found: dict[str, Picture] = {}
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        for path, picture in zip(todo, pool.map(_picture, todo), strict=True):
            found[path] = picture
            progress(len(found), len(todo))
    return found


def difference_hash(image: Image.Image) -> str:
    """64 bits: whether each pixel of the 9 x 8 grey miniature is brighter than its left neighbour.

    Source: N. Krawetz 2013, "Kind of Like That" (dHash).
    """
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def _picture(path: str) -> Picture:
    if not Path(path).is_file():
        return Picture(problem="missing")
    try:
        image = open_rgb(Path(path))
    except ValueError as error:
        return Picture(problem=str(error))
    content = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return Picture(image.size, content, difference_hash(image))
