"""Rows of annotation files: what a reader gives for each, and what readers share."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medreason.samples import Sample, letter_at

YES_NO = ("Yes", "No")
"""Options of a question that is answered by yes or no and comes without any."""


@dataclass(frozen=True)
class BadRow:
    """A row that gives no sample, and why."""

    file: str
    """Path below the root."""
    row: int
    """Place in the file; the first row is 0. In a table that is the line below the names."""
    problem: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.problem}"


Row = Sample | BadRow
"""What the function at a data set's `_target_` yields for each row of its files.

The sample's id is `<file>:<row>`, so that whatever is found wrong with it later can be named.
"""


@dataclass(frozen=True)
class Loaded:
    """What files hold: the samples, and the rows that give none."""

    samples: list[Sample]
    bad_rows: list[BadRow]


def each(
    file: str, rows: Iterable[Any], build: Callable[[str, Any], Sample | None]
) -> Iterator[Row]:
    """What `build` makes of each id and row.

    A row it refuses with ValueError, or that lacks a key, becomes a BadRow; one it gives None for
    was not asked for.
    """
    for index, row in enumerate(rows):
        try:
            if sample := build(f"{file}:{index}", row):
                yield sample
        except ValueError as error:
            yield BadRow(file, index, str(error))
        except KeyError as error:
            yield BadRow(file, index, f"no {error}; keys are {list(row)}")


def folder(root: Path | str | None) -> Path:
    """The root as a path. Raises ValueError where it is not a folder."""
    if root is None or not Path(root).is_dir():
        raise ValueError(f"data.root={root} is not a folder; set data.root to the data")
    return Path(root)


def all_there(root: Path, names: Iterable[str]) -> list[Path]:
    """The files of a release. Raises ValueError with the names of those that are missing."""
    paths = [root / name for name in names]
    if missing := [str(path.relative_to(root)) for path in paths if not path.is_file()]:
        raise ValueError(
            f"{root} has {len(paths) - len(missing)} of the {len(paths)} files of the release; "
            f"missing: {', '.join(missing)}. Unpack all of it, or name in data.files those to read"
        )
    return paths


def json_array(path: Path) -> list[Any]:
    """The rows of a file that is a JSON array of objects."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: broken JSON ({error}); download the file again") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds {type(rows).__name__}, not an array of objects")
    if not rows:
        raise ValueError(f"{path}: holds no rows; remove it from data.files")
    return rows


def table(
    path: Path, columns: Iterable[str], *, separator: str = ",", encoding: str = "utf-8-sig"
) -> list[dict[str, str]]:
    """The rows of a CSV file with at least these columns, read as text."""
    try:
        with path.open(encoding=encoding, newline="") as lines:
            reader = csv.DictReader(lines, delimiter=separator)
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not {encoding} ({error}); set data.encoding, e.g. data.encoding=latin-1"
        ) from error
    names = reader.fieldnames or ()
    if missing := sorted(set(columns) - set(names)):
        others = [other for other in (";", "\t", "|", ",") if len(names) == 1 and other in names[0]]
        hint = f"; is its separator {others[0]!r}? set data.separator" if others else ""
        raise ValueError(f"{path}: no column {missing}; columns are {list(names)}{hint}")
    if not rows:
        raise ValueError(f"{path}: holds no rows below the names of its columns")
    return rows


def text(row: Any, key: str) -> str:  # noqa: ANN401
    """The text at a key of a row. Raises ValueError where there is none."""
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, not an object with {key!r} ...")
    if key not in row:
        raise ValueError(f'no "{key}"; keys are {list(row)}')
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f'"{key}" is {row[key]!r}; needs a text')
    return row[key]


def inside(image: str) -> str:
    """The image's path as given. Raises ValueError where it does not stay below the root."""
    if image.startswith("/") or ".." in re.split(r"[/\\]", image):
        raise ValueError(f"image {image!r} leaves the data root; give a path below it")
    return image


def yes_or_no(answer: str) -> tuple[tuple[str, ...], str]:
    """Options and answer: Yes, No and a letter for `yes` or `no`, else an open question."""
    plain = answer.strip().rstrip(".").lower()
    names = [option.lower() for option in YES_NO]
    if plain in names:
        return YES_NO, letter_at(names.index(plain))
    return (), answer.strip()
