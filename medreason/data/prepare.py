"""Images of any format to RGB squares of one size, on all cores, resumed where it stopped."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from medreason.data import headers
from medreason.data.images import open_rgb, pad_square, resize_square
from medreason.runs import parent_watch
from medreason.runs.files import atomic, remove_unfinished

FILTER = "bicubic"


def targets(images: set[Path], root: Path | None, folder: Path) -> dict[Path, Path]:
    """Where each image goes: its path below the root, in `folder`, `.png` behind its whole name.

    So neither equal names in different folders nor `a.png` beside `a.jpg` meet.
    """
    common = root or Path(os.path.commonpath([image.parent for image in images]))
    return {
        image: folder / image.relative_to(common).with_name(f"{image.name}.png")
        for image in sorted(images)
    }


def is_done(image: Path, target: Path) -> bool:
    """Whether a target is whole and of this image as it is now: it carries the image's time.

    To two seconds, since some file systems keep no finer times.
    """
    try:
        return abs(target.stat().st_mtime - image.stat().st_mtime) < 2
    except OSError:
        return False


def prepare(
    todo: Mapping[Path, Path],
    size: int,
    fit: str,
    processes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Path, str]:
    """Write each image to its target, unless that is done; gives the images that cannot be read.

    A target appears in one step: what a kill leaves behind is under another name and is removed
    by the next call. `progress` hears done and total.
    """
    missing = [(image, target) for image, target in todo.items() if not is_done(image, target)]
    for folder in {target.parent for target in todo.values()}:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder, older_than_seconds=0)
    done, problems = len(todo) - len(missing), {}
    work = partial(_prepare, size=size, fit=fit)
    count = processes or (os.cpu_count() or 1)
    if count == 1:
        results = map(work, missing)
        pool = None
    else:
        pool = ProcessPoolExecutor(
            count, initializer=parent_watch.end_with, initargs=(os.getpid(),)
        )
        results = pool.map(work, missing, chunksize=8)
    try:
        for (image, _), problem in zip(missing, results, strict=True):
            done += 1
            progress(done, len(todo))
            if problem:
                problems[image] = f"image {problem}"
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return problems


def _prepare(pair: tuple[Path, Path], *, size: int, fit: str) -> str:
    """Why the image cannot be read; empty where its target is written."""
    image, target = pair
    try:
        picture = open_rgb(image)
        headers.refuse_other_size(image)
    except (ValueError, zlib.error) as error:
        return str(error)
    square = resize_square(picture, size) if fit == "stretch" else pad_square(picture, size)
    made = image.stat().st_mtime_ns
    with atomic(target, sync=False) as unfinished:
        square.save(unfinished, "PNG", compress_level=3)  # half the time of 6 for a twentieth more
        os.utime(unfinished, ns=(made, made))
    return ""
