"""The digest of each image's content, and whether it decodes: taken once, kept in the cache folder.

A file is known again by its path, its size and the times of its last changes, so a second start
reads no image. A file whose content was replaced and all four set back is not seen.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from medreason.console import notice
from medreason.data import dicom
from medreason.data import images as image_files
from medreason.runs import lock
from medreason.runs.files import atomic
from medreason.runs.progress import Bar
from medreason.samples import SOFT_TISSUE, Window

FILE = "image_digests.cache"
MISSING = "missing"
_CHECKS = 2
"""Raised whenever `images.check` refuses more than before, or an entry holds more: then each image
is read again."""
_MANY = 500  # images to read: as many are announced
_SAVED_TOGETHER = 10_000  # images: what a kill loses at most
_TICK_SECONDS = 0.05  # changes within one tick of the kernel's clock leave the same time

_Stamp = tuple[int, int, int]
"""Size, time of the last change of the content and of the file (ns): the last sees another file
that was moved to the name."""
_Entries = dict[str, dict[str, list[Any]]]
"""Resolved folder -> name -> [*stamp, digest, whether it is DICOM, whether it decodes as far as
that was checked]."""


class _File(NamedTuple):
    folder: str
    name: str
    stamp: _Stamp


class _Content(NamedTuple):
    digest: str = ""
    """Empty where there is no readable file."""
    is_dicom: bool = False


def digests(
    images: Iterable[Path], cache: Path, root: Path | None = None, window: Window = SOFT_TISSUE
) -> dict[Path, str]:
    """The digest of each image's content, 16 hexadecimal digits, wherever it lies.

    Of an image that is no readable file `missing` and its path below the root. A DICOM file is
    another picture in another window.
    """
    contents, _ = _look_up(images, cache, decode=False)
    return _named(contents, root, window)


def known(
    images: Iterable[Path], cache: Path, root: Path | None = None, window: Window = SOFT_TISSUE
) -> dict[Path, str]:
    """`digests` of images that the cache knows, of others as of missing ones: reads no image."""
    contents, unread = _cached(images, cache, decode=False)
    return _named(contents | dict.fromkeys(unread, _Content()), root, window)


def is_known(digest: str) -> bool:
    """Whether it is of the content of an image, not of the path of one that was not read."""
    return not digest.startswith(f"{MISSING} ")


def _named(contents: Mapping[Path, _Content], root: Path | None, window: Window) -> dict[Path, str]:
    return {
        image: _in_window(content, window) if content.digest else f"{MISSING} {_below(image, root)}"
        for image, content in contents.items()
    }


def _in_window(content: _Content, window: Window) -> str:
    if not content.is_dicom:
        return content.digest
    return hashlib.sha256(repr((content.digest, window)).encode()).hexdigest()[:16]


def problems(images: Iterable[Path], cache: Path) -> dict[Path, str]:
    """Why images cannot be decoded, of those that cannot."""
    return _look_up(images, cache, decode=True)[1]


def _look_up(
    images: Iterable[Path], cache: Path, *, decode: bool
) -> tuple[dict[Path, _Content], dict[Path, str]]:
    """(content of each image; why some cannot be decoded)."""
    contents, unread = _cached(images, cache, decode=decode)
    faults: dict[Path, str] = {}
    for image, content, fault in _read(unread, cache, decode=decode):
        contents[image] = content
        if fault:
            faults[image] = fault
    return contents, faults


def _cached(
    images: Iterable[Path], cache: Path, *, decode: bool
) -> tuple[dict[Path, _Content], list[Path]]:
    """(content of each image that the cache knows; the others)."""
    entries = _entries(cache / FILE)
    resolved: dict[Path, str] = {}
    contents: dict[Path, _Content] = {}
    unread: list[Path] = []
    for image in sorted(set(images)):
        file = _file(image, resolved)
        entry = entries.get(file.folder, {}).get(file.name) if file else None
        if file and entry and tuple(entry[:3]) == file.stamp and (entry[5] or not decode):
            contents[image] = _Content(*entry[3:5])
        else:
            unread.append(image)
    return contents, unread


def _read(images: list[Path], cache: Path, *, decode: bool) -> Iterable[tuple[Path, _Content, str]]:
    """(image, content, why it cannot be decoded) of new and changed images, on all cores."""
    many = len(images) >= _MANY
    if many:
        notice(f"reading {len(images):,} images once; their digests are kept in {cache / FILE}")
    bar, done = Bar("reading images"), 0
    inspect = functools.partial(_inspect, decode=decode)
    for first in range(0, len(images), _SAVED_TOGETHER):
        batch = images[first : first + _SAVED_TOGETHER]
        entries: _Entries = {}
        with ThreadPoolExecutor() as pool:  # Pillow and hashlib work without the GIL
            for image, (file, content, fault) in zip(batch, pool.map(inspect, batch), strict=True):
                if file and content.digest:
                    entry = [*file.stamp, *content, decode and not fault]
                    entries.setdefault(file.folder, {})[file.name] = entry
                yield image, content, fault
                done += 1
                if many:
                    bar(done, len(images))
        if entries:
            _keep(entries, cache)


def _inspect(image: Path, *, decode: bool) -> tuple[_File | None, _Content, str]:
    """The file as it was before it was read, its content, and why it cannot be decoded."""
    file, content, fault = _file(image, {}), _Content(), ""
    if file and (wait := file.stamp[2] / 1e9 + _TICK_SECONDS - time.time()) > 0:
        time.sleep(min(wait, _TICK_SECONDS))  # a change from here on leaves another time
        file = _file(image, {})
    try:
        if file:
            data = image.read_bytes()
            digest = hashlib.sha256(data).hexdigest()[:16]
            content = _Content(digest, dicom.is_dicom(image, data[:132]))
    except OSError:  # may not be read, or is gone by now
        file = None
    if decode:
        try:
            image_files.check(image)
        except ValueError as error:
            fault = str(error)
    return file, content, fault


def _file(image: Path, resolved: dict[Path, str]) -> _File | None:
    """The regular file behind a path; None where there is none. Folders are resolved once."""
    try:
        status = image.lstat()
        if stat.S_ISLNK(status.st_mode):
            image = image.resolve(strict=True)
            status = image.lstat()
    except (OSError, RuntimeError, ValueError):  # no such file, an endless link, NUL
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    folder = image.parent
    if folder not in resolved:
        resolved[folder] = os.path.realpath(folder)
    stamp = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return _File(resolved[folder], image.name, stamp)


def _below(image: Path, root: Path | None) -> str:
    return (image.relative_to(root) if root and image.is_relative_to(root) else image).as_posix()


def _keep(entries: _Entries, cache: Path) -> None:
    """Add entries to the file, beside those that other processes have written by now."""
    file = cache / FILE
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock.briefly(cache / f".{FILE}.lock"):
            kept = _entries(file)
            merged = {name: kept.get(name, {}) | images for name, images in entries.items()}
            body = json.dumps(kept | merged)
            with atomic(file, sync=False) as unfinished:
                unfinished.write_text(f"{_checksum(body)}\n{body}")
    except OSError as error:
        notice(f"{file} cannot be written ({error}): the next start reads all images again")


def _entries(file: Path) -> _Entries:
    """What the file holds; nothing where there is none or it is damaged, so that it is replaced."""
    try:
        status = file.stat()
    except OSError:
        return {}
    return _parsed(file, status.st_ino, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)  # 82,000 images take a tenth of a second
def _parsed(file: Path, *_version: int) -> _Entries:
    try:
        checksum, _, body = file.read_text().partition("\n")
    except (OSError, UnicodeDecodeError):
        return {}
    return json.loads(body) if checksum == _checksum(body) else {}


def _checksum(body: str) -> str:
    return hashlib.sha256(f"{_CHECKS}\n{body}".encode()).hexdigest()
