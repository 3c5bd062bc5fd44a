"""Size, content hash and perceptual hash of each image, for the audit."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medreason.data.images import open_rgb, shape_problem
from medreason.samples import SOFT_TISSUE, Window


@dataclass(frozen=True)
class Picture:
    """An image file as the audit sees it."""

    size: tuple[int, int] | None = None
    """Width and height in pixels, upright; None where it cannot be read."""
    content: str = ""
    """SHA-256 of the file, 16 digits: equal for equal files."""
    look: str = ""
    """dHash, 16 digits: equal for images that differ in size, format or compression alone."""
    problem: str = ""
    """ "missing", or why it cannot be read; else empty."""


def read_pictures(
    paths: Iterable[Path],
    progress: Callable[[int, int], None] = lambda done, total: None,
    window: Window = SOFT_TISSUE,
) -> dict[str, Picture]:
    """Read every image once, on all cores. `progress` gets done and total."""
    unique = sorted({str(path) for path in paths})
    pictures: dict[str, Picture] = {}
    inspect = functools.partial(_picture, window=window)
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the GIL
        for path, picture in zip(unique, pool.map(inspect, unique), strict=True):
            pictures[path] = picture
            progress(len(pictures), len(unique))
    return pictures


def difference_hash(image: Image.Image) -> str:
    """64 bits: whether each pixel of the 9 x 8 grey thumbnail is brighter than its left neighbour.

    Source: N. Krawetz 2013, "Kind of Like That" (dHash).
    """
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def _picture(path: str, window: Window) -> Picture:
    if not Path(path).is_file():
        return Picture(problem="missing")
    try:
        image = open_rgb(Path(path), window)
    except ValueError as error:
        return Picture(problem=str(error))
    if problem := shape_problem(image.size):
        return Picture(problem=f"{path}: {problem}")
    content = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return Picture(image.size, content, difference_hash(image))
