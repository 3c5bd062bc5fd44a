"""Atomic writes: a file or folder holds its old content or all of the new, whatever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medreason.config.rules import kind_of

_UNFINISHED = ".unfinished"


@contextmanager
def atomic(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, which replaces it when the block ends without an error.

    Its name is hidden and taken by no other process or thread, on this machine or another, so what
    a kill leaves behind harms nobody. `sync=False` spares the 5 ms of a flush to the disk, for
    files that can be made again: after a power cut one may be empty.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        yield unfinished
        if sync:
            with unfinished.open("rb") as stream:
                os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(
    path: Path, *, main_process: bool = True, replace: bool = False
) -> Iterator[Path]:
    """The same for a folder, which the block makes; its temporary path ends with its own name.

    All ranks get the same path, since they write a checkpoint together; the main process alone
    clears it first and moves it to `path` at the end. Nothing is flushed: a checkpoint is gigabytes
    every few minutes, and its seal finds one that a power cut tore.

    Raises:
        OSError: there is a folder at `path` by now, and it is not to be replaced.
    """
    around = path.with_name(f".{path.name}{_UNFINISHED}")
    if main_process:
        shutil.rmtree(around, ignore_errors=True)
        around.mkdir(parents=True)
    try:
        yield around / path.name
        if main_process:
            _share(around)
            if replace:
                shutil.rmtree(path, ignore_errors=True)
            (around / path.name).rename(path)
    finally:
        if main_process:
            shutil.rmtree(around, ignore_errors=True)


def _share(folder: Path) -> None:
    """Give the files in a new folder the permissions that the user's umask gives new files:
    safetensors 0.8 makes its own readable by their owner alone, useless to a group that shares
    outputs."""
    permissions = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(permissions)


def remove_unfinished(folder: Path, older_than_seconds: float = 3600.0) -> None:
    """Remove what killed processes left in a folder; a younger one may be another's at work."""
    for path in folder.rglob(f".*{_UNFINISHED}"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and time.time() - path.stat().st_mtime >= older_than_seconds:
                path.unlink()


def free_bytes(folder: Path) -> int:
    """Of the disk a folder is on or will be on."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def write_json(path: Path, value: object) -> None:
    """An atomic write of a JSON file."""
    with atomic(path) as unfinished, unfinished.open("w") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is cut off, or holds anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cut off or not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds {kind_of(value)}, not an object")
    return value


def write_parquet(path: Path, table: pa.Table) -> None:
    """An atomic write of a Parquet file with a checksum of each page."""
    with atomic(path) as unfinished:
        pq.write_table(table, unfinished, write_page_checksum=True)


def read_parquet(
    path: Path,
    columns: Sequence[str] | None = None,
    filters: Sequence[tuple[str, str, object]] | None = None,
) -> pa.Table:
    """A Parquet file, or `columns` of the rows that pass all `filters`.

    Raises:
        ValueError: it is missing, cut off or damaged, at its end or within.
    """
    try:
        return pq.read_table(
            path,
            columns=None if columns is None else [*columns],  # pyarrow takes a list alone
            filters=None if filters is None else [*filters],
            page_checksum_verification=True,
        )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: missing, cut off or damaged ({error})") from error
