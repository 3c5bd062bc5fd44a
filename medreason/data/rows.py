"""Rows of annotation files: how readers parse them, and what a reader yields for each."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from medreason.samples import Sample, letter_at

YES_NO = ("Yes", "No")
"""Options of a question that is answered by yes or no and comes without any."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    """Path below the root."""
    row: int
    """Counted from 0; in a table the first row is the line below the column names."""
    problem: str
    """Why it cannot be used, and what to do."""
    count: str = "bad"
    """What it is counted as."""

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.problem}"


@dataclass(frozen=True)
class LeftOut:
    """A row that is not asked about, though nothing is wrong with it."""

    file: str
    row: int
    reason: str
    count: str
    """What it is counted as."""


Row = Sample | BadRow | LeftOut
"""What the function at a data set's `_target_` yields for each row of its files.

The sample's id is `<file>:<row>`, so that later errors can name the row.
"""

Record = Mapping[str, Any]
"""One object of a JSON array or one row of a table; `text` checks that it is one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """The rows of a data set."""

    samples: list[Sample]
    bad_rows: list[BadRow]
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Each row that was read in one count: `train`, `test`, and why others are in neither."""
        asked = {split: sum(s.split == split for s in self.samples) for split in ("train", "test")}
        return asked | Counter(row.count for row in (*self.left_out, *self.bad_rows))


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts on one line."""
    others = [f"{n:,} {name}" for name, n in counts.items() if name not in ("train", "test")]
    asked = f"{counts['train']:,} asked about in train, {counts['test']:,} in test"
    return f"{sum(counts.values()):,} rows: {'; '.join([asked, *others])}"


def each(file: str, rows: Iterable[T], build: Callable[[str, T], Sample | None]) -> Iterator[Row]:
    """`build(id, row)` of each row.

    A row for which it raises ValueError or KeyError becomes a BadRow, one for which it returns None
    a LeftOut.
    """
    for index, row in enumerate(rows):
        try:
            sample = build(f"{file}:{index}", row)
            yield sample or LeftOut(file, index, "the reader does not select it", "not selected")
        except ValueError as error:
            yield BadRow(file, index, str(error))
        except KeyError as error:
            keys = list(row) if isinstance(row, Mapping) else []
            yield BadRow(file, index, f"no {error}; keys are {keys}")


def folder(root: Path | str | None) -> Path:
    """The root as a path. Raises ValueError unless it is a folder."""
    if root is None or not Path(root).is_dir():
        raise ValueError(f"data.root={root} is not a folder; set data.root to the data")
    return Path(root)


def release_files(root: Path, names: Iterable[str]) -> list[Path]:
    """Paths of a release's files. Raises ValueError with the names of those that are missing."""
    paths = [root / name for name in names]
    if missing := [str(path.relative_to(root)) for path in paths if not path.is_file()]:
        raise ValueError(
            f"{root} has {len(paths) - len(missing)} of the {len(paths)} files of the release; "
            f"missing: {', '.join(missing)}. Unpack all of it, or name in data.files those to read"
        )
    return paths


def json_array(path: Path) -> list[Record]:
    """The objects of a JSON array. Raises ValueError where the file holds no such thing."""
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
    """The rows of a CSV file as text. Raises ValueError where it lacks a column or rows."""
    try:
        with path.open(encoding=encoding, newline="") as stream:
            reader = csv.DictReader(stream, delimiter=separator)
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not {encoding} ({error}); set data.encoding, e.g. data.encoding=latin-1"
        ) from error
    names = reader.fieldnames or ()
    if missing := sorted(set(columns) - set(names)):
        likely = [sign for sign in (";", "\t", "|", ",") if len(names) == 1 and sign in names[0]]
        hint = f"; is its separator {likely[0]!r}? set data.separator" if likely else ""
        raise ValueError(f"{path}: no column {missing}; columns are {list(names)}{hint}")
    if not rows:
        raise ValueError(f"{path}: holds no rows below the names of its columns")
    return rows


def text(row: Record, key: str) -> str:
    """The text at a key of a row. Raises ValueError where there is none."""
    if not isinstance(row, Mapping):
        raise ValueError(f"is {type(row).__name__}, not an object with {key!r} ...")
    if key not in row:
        raise ValueError(f'no "{key}"; keys are {list(row)}')
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f'"{key}" is {row[key]!r}; needs a text')
    return row[key]


def inside(image: str) -> str:
    """The image's path unchanged. Raises ValueError where it leads out of the root."""
    if image.startswith("/") or ".." in re.split(r"[/\\]", image):
        raise ValueError(f"image {image!r} leaves the data root; give a path below it")
    return image


def yes_or_no(answer: str) -> tuple[tuple[str, ...], str]:
    """(options, answer): Yes and No with a letter for `yes` or `no`, else none with the answer."""
    plain = answer.strip().rstrip(".").lower()
    names = [option.lower() for option in YES_NO]
    if plain in names:
        return YES_NO, letter_at(names.index(plain))
    return (), answer.strip()
