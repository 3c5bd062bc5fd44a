"""Rows of annotation files: how readers parse them, and what a reader yields for each."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from medreason.config.rules import kind_of
from medreason.config.targets import described
from medreason.console import counted
from medreason.samples import ANSWER_TYPES, YES_NO, Sample, letter_at


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    """Path below the root."""
    row: int
    """Counted from 0; in a CSV file or JSON lines of one's own its line, as an editor counts."""
    problem: str
    """Why it cannot be used, and what to do."""
    count: str = "bad"
    """What it is counted as."""

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.problem}"


def once_each(problems: Iterable[tuple[str, int, str]]) -> list[str]:
    """A line for each file and problem, of (file, row or -1, problem): its first rows, and how many
    more have it."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for file, row, problem in problems:
        numbers.setdefault((file, problem), []).append(row)
    lines = []
    for (file, problem), found in numbers.items():
        first = ", ".join(map(str, found[:_MOST_NUMBERS]))
        more = f" and {len(found) - _MOST_NUMBERS:,} more" if len(found) > _MOST_NUMBERS else ""
        where = f", row{'s' * (len(found) > 1)} {first}{more}" if min(found) >= 0 else ""
        lines.append(f"{file}{where}: {problem}")
    return lines


_MOST_NUMBERS = 3


@dataclass(frozen=True)
class LeftOut:
    """A row that is not asked about, though nothing is wrong with it."""

    file: str
    row: int
    reason: str
    count: str
    """What it is counted as."""


@dataclass(frozen=True)
class Remark:
    """What a reader did about a blemish of a release; the row, if any, counts as what it is."""

    file: str
    row: int
    """-1 for the file as a whole."""
    text: str
    is_warning: bool = False
    """Whether something to be used may be lost; such a line begins with `!`."""

    def __str__(self) -> str:
        place = "" if self.row < 0 else f", row {self.row}"
        return f"{'! ' if self.is_warning else ''}{self.file}{place}: {self.text}"


@dataclass(frozen=True)
class SplitColumn:
    """The column of a file that says which split each of its rows is of."""

    file: str
    column: str


Row = Sample | BadRow | LeftOut | Remark | SplitColumn
"""What the function at a data set's `_target_` yields: one of the first three for each row of its
files, a Remark where it has something to say, and a SplitColumn where a file has one.

The sample's id is `<file>:<row>`, so that later errors can name the row.
"""

JSON_LINES = (".jsonl", ".ndjson")
"""Suffixes of files that hold one JSON value a line."""

SIDES = ("train", "validation", "test")
"""Values of `Sample.split` once rows are split."""

FOLDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Words of people's tables for a split -> the split."""
EMPTY_SPLIT = '"{}" is empty; write train, test or val, or take the row out'
"""What is wrong with a row that says no split, in a table whose column of splits is filled."""
ASKED_WITH = "validation=in_domain validation.source=published asks them"
"""What brings in validation rows that are left out."""


def left_out_of_validation(column: str = "split", word: str = "val") -> str:
    """Why a row of validation is left out where no key asks it, as `of fold=val left out (...)`:
    `word` is what the row says in that column."""
    return f"of {column}={word} left out ({ASKED_WITH})"


OF_VALIDATION = left_out_of_validation()
"""That of a release's file for validation."""

Record = Mapping[str, Any]
"""One object of a JSON array or one row of a table; `text` checks that it is one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """The rows of a data set."""

    samples: list[Sample]
    bad_rows: list[BadRow]
    left_out: list[LeftOut] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    split_columns: list[SplitColumn] = field(default_factory=list)
    contradictory: list[Sample] = field(default_factory=list)
    """The first row of each question that has two answers about one image and lost rows for it."""

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Self:
        """What a reader yields, sorted by kind."""
        kinds: dict[type, list[Any]] = {kind: [] for kind in get_args(Row)}
        for row in rows:
            if type(row) not in kinds:
                raise ValueError(f"yields {repr(row)[:200]}; needs Sample or BadRow of each row")
            kinds[type(row)].append(row)
        return cls(*kinds.values())

    @property
    def counts(self) -> dict[str, int]:
        """Each row that was read in one count: `train`, `test`, where there is any `validation`,
        and why others are in none of them."""
        splits = Counter(s.split for s in self.samples)
        asked = {split: splits.pop(split, 0) for split in ("train", "test")}
        if validation := splits.pop("validation", 0):
            asked["validation"] = validation
        others = Counter({f"of the split {split!r}": n for split, n in splits.items()})
        return asked | others | Counter(row.count for row in (*self.left_out, *self.bad_rows))


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts on one line."""
    others = [f"{n:,} {name}" for name, n in counts.items() if name not in SIDES]
    asked = f"{counts['train']:,} asked about in train, {counts['test']:,} in test"
    if "validation" in counts:
        asked += f", {counts['validation']:,} in validation"
    return f"{counted(sum(counts.values()), 'row')}: {'; '.join([asked, *others])}"


def each(
    file: str,
    rows: Iterable[T],
    build: Callable[[str, T], Row | None],
    numbers: Iterable[int] | None = None,
) -> Iterator[Row]:
    """`build(id, row)` of each row. `numbers` are the rows' in the file; None counts from 0.

    A row that it cannot read, whatever it raises, becomes a BadRow, one for which it returns None a
    LeftOut. So does a row that `rows` cannot give, such as a broken line.
    """
    iterator = iter(rows)
    for index in itertools.count() if numbers is None else numbers:
        following: list[T] = []
        try:
            following += itertools.islice(iterator, 1)
            if not following:
                return
            built = build(f"{file}:{index}", following[0])
            if built is not None and not isinstance(built, Row):
                raise ValueError(f"the reader gives {type(built).__name__}; needs a Sample")
            yield built or LeftOut(file, index, "the reader does not select it", "not selected")
        except Exception as error:  # noqa: BLE001  a user's function may raise anything
            yield BadRow(file, index, _problem(error, *following))


def of_validation(
    file: str, rows: Iterable[T], build: Callable[[str, T], Row | None]
) -> Iterator[Row]:
    """Each row of a release's file for validation as one that is left out, whatever is wrong with
    it; rows that `build` leaves out for another reason keep theirs."""
    for index, row in enumerate(each(file, rows, build)):
        is_other = isinstance(row, LeftOut)
        yield row if is_other else LeftOut(file, index, OF_VALIDATION, OF_VALIDATION)


def _problem(error: Exception, row: object = None) -> str:
    if isinstance(error, KeyError):
        keys = list(row) if isinstance(row, Mapping) else []
        return f"no {error}; keys are {keys}"
    if isinstance(error, json.JSONDecodeError):
        return f"is no JSON ({error}): {error.doc[:80]!r}"
    if isinstance(error, ValueError):
        return str(error)
    return f"{described(error)} while it was read: {repr(row)[:200]}"


def folder(root: Path | str | None) -> Path:
    """The root as a path. Raises ValueError unless it is a folder."""
    if root is not None and Path(root).is_file():
        file = Path(root)
        raise ValueError(
            f"data.root={root} is a file; set data.root={file.parent}, the folder it lies in, and "
            f"data.table={file.name} where it is a table of labelled images"
        )
    if root is None or not Path(root).is_dir():
        raise ValueError(f"data.root={root} is not a folder; set data.root to the data")
    return Path(root)


def release_files(
    root: Path, names: Iterable[str], *, else_do: str = "", optional: Collection[str] = ()
) -> list[Path]:
    """Paths of a release's files; those that are optional only where they are.

    Raises ValueError with the names of those that are missing; `else_do` is a remedy besides
    unpacking all of the release.
    """
    paths = [root / name for name in names]
    missing = [str(path.relative_to(root)) for path in paths if not path.is_file()]
    if required := [name for name in missing if name not in optional]:
        raise ValueError(
            f"{root} has {len(paths) - len(missing)} of the {len(paths)} files of the release; "
            f"missing: {', '.join(required)}. Unpack all of it{else_do and f', or {else_do}'}"
        )
    return [path for path in paths if path.is_file()]


def of_one_side(
    root: Path, files: Iterable[str], sides: Mapping[str, Collection[str]]
) -> Iterator[Remark]:
    """Refuse missing files other than all of those of one side: an evaluation needs none of train,
    and with a split of one's own the others make both.

    `sides` has the files of train and of test. Raises ValueError with the names of missing files.
    """
    absent = {
        side: names
        for side, names in sides.items()
        if not any((root / name).is_file() for name in names)
    }
    one = len(absent) < len(sides)
    optional = [name for names in absent.values() for name in names] if one else ()
    release_files(root, files, optional=optional)
    for side, names in absent.items():
        yield Remark(
            ", ".join(sorted(names)), -1, f"not there, so that there is nothing to {side} on"
        )


def json_array(path: Path) -> list[Record]:
    """The objects of a JSON array, or of JSON lines, one a line.

    Raises ValueError where the file holds no such thing.
    """
    try:
        rows = parsed(decoded(path, "utf-8-sig", what="broken JSON, "), path)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: broken JSON ({error}); correct it, or download the file again"
        ) from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds {kind_of(rows)}, not an array of objects")
    if not rows:
        raise ValueError(f"{path}: holds no rows; download the file again, or take it away")
    return rows


def parsed(text: str, path: Path) -> object:
    """The JSON value of a file's text, or the list of the objects of JSON lines.

    Raises json.JSONDecodeError.
    """
    if path.suffix not in JSON_LINES:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data" or not text.startswith("{"):
                raise
    # Not line by line: a text may hold characters that break lines, such as U+2028.
    objects, place, end = [], 0, len(text.rstrip())
    while place < end:
        value, place = json.JSONDecoder().raw_decode(text, place)
        objects.append(value)
        while place < end and text[place].isspace():
            place += 1
    return objects


def _place(error: UnicodeDecodeError) -> str:
    """The first byte that is no text, as `byte 0xf6 in line 14`."""
    line = error.object[: error.start].count(b"\n") + 1
    return f"byte {error.object[error.start]:#04x} in line {line:,}"


def decoded(path: Path, encoding: str, key: str = "", what: str = "") -> str:
    """The text of a file. `key` is that of the configuration that names the encoding, if any, and
    `what` is put before the problem.

    Raises ValueError where it is no text, or has another encoding, with the one it is likely to
    have.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; correct its name, or put it there")
    content = path.read_bytes()
    for signature, words in _NO_TEXT.items():
        if content.startswith(signature):
            raise ValueError(f"{path}: {words}")
    try:
        return content.decode(encoding)
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"{key}={encoding!r} is no encoding that Python knows; e.g. cp1252"
        ) from error
    except UnicodeDecodeError as error:
        likely = _likely_encoding(content)
        remedy = (
            f"set {key}={likely}"
            if likely and key
            else _CONVERT.format(likely, shlex.quote(str(path)))
        )
        raise ValueError(
            f"{path}: {what}not {encoding.removesuffix('-sig')} ({_place(error)}); "
            f"{remedy if likely else _CONVERT_ANY}"
        ) from error


_NO_TEXT = {
    b"PK\x03\x04": "a workbook of Excel or a zip archive; save it as CSV, or unpack it",
    b"\xd0\xcf\x11\xe0": "a workbook of Excel; save it as CSV",
    b"\x1f\x8b": "a gzip archive; unpack it (gunzip)",
    b"PAR1": "a Parquet file, not text; data=hub reads it under a name that ends with .parquet",
    b"SQLite": "a database; export the table as CSV",
    b"version https://git-lfs": "a pointer of Git LFS, not the file; fetch it with git lfs pull",
}
"""First bytes of files that are taken for annotation files -> what they are, and what to do."""
_CONVERT = "convert it to UTF-8: iconv -f {0} -t utf-8 {1} > new && mv new {1}"
_CONVERT_ANY = "save it as UTF-8 in the program that wrote it"


def _likely_encoding(content: bytes) -> str:
    """UTF-16 by its mark, else cp1252, which has the signs of latin-1 and those of Windows."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    return "" if re.search(rb"[\x81\x8d\x8f\x90\x9d]", content) else "cp1252"


def text(row: Record, key: str, our: str = "") -> str:
    """The text at a key of a row, which `data.columns.OUR` says. Raises ValueError where there is
    none."""
    if not isinstance(row, Mapping):
        raise ValueError(f"is {kind_of(row)}, not an object with {key!r} ...")
    if key not in row:
        raise ValueError(f'no "{key}"; keys are {list(row)}')
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f'"{key}"{as_ours(key, our)} is {shown(row[key])}; needs a text')
    return row[key]


def as_ours(column: str, our: str) -> str:
    """What a column of another name is read as, for a message; empty where none is known."""
    return f", read as the {our} (data.columns.{our})," if our and column != our else ""


def shown(value: object) -> str:
    """A value in a message: a cell without a text is empty, whatever it is read as."""
    blank = value is None or (isinstance(value, str) and not value.strip())
    return "empty" if blank else repr(value)


def text_or_number(row: Record, key: str, our: str = "") -> str:
    """The text at a key of a row, its number (of "how many?") as text, or yes or no."""
    if isinstance(row, Mapping):
        value = row.get(key)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, (int, float)) and value == value:
            return f"{value:g}" if abs(value) < 1e6 else str(value)
    return text(row, key, our)


def patient(text: str | None) -> str | None:
    """A patient's name as all tables of a data set have it: None for a blank cell or a word for
    one, and without the `.0` that pandas gives to numbers of a column with blank cells."""
    name = (text or "").strip()
    if name.lower() in _NO_PATIENT:
        return None
    return name.removesuffix(".0") if re.fullmatch(r"\d+\.0", name) else name


PATIENT_COLUMNS = ("patient", "patient_id", "patient_or_source_id")
"""Names of a column of patients where the configuration gives none."""
_NO_PATIENT = ("", "na", "n/a", "nan", "none", "null", "unknown", "<na>", "-", "?")


def inside(image: str, root: Path | None = None, folder: str = "the data root") -> str:
    """The image's path below the root, with slashes where Windows has backslashes; one that begins
    at the top of the disk is taken where it leads below `root`. `folder` names the root in
    messages. Raises ValueError where it leads out of the root or is none."""
    if not isinstance(image, str) or not image.strip():
        raise ValueError(f"image is {shown(image)}; needs a path below {folder}")
    path = image.replace("\\", "/")
    if re.match(r"\w{2,}://|data:", path):
        raise ValueError(f"image {image[:80]!r} is an address; download it, and give its path")
    if root and path.startswith("/"):
        absolute, top = os.path.normpath(path), os.path.abspath(root)
        if Path(absolute).is_relative_to(top) and absolute != top:
            return Path(absolute).relative_to(top).as_posix()
    if path.startswith("/") or re.match(r"\w:", path) or ".." in path.split("/"):
        raise ValueError(f"image {image!r} leaves {folder}; give a path below it")
    return path


def yes_or_no(answer: str, answer_type: str = "") -> tuple[tuple[str, ...], str]:
    """(options, answer): Yes and No with a letter for `yes` or `no`, else none with the answer.

    A question that the release calls open stays open, whatever its answer.
    """
    plain = plain_word(answer)
    for options, words in YES_NO.items() if answer_type != "open" else ():
        for index, meaning in enumerate(words):
            if plain in meaning:
                return options, letter_at(index)
    return (), answer.strip()


def plain_word(answer: str) -> str:
    """An answer in lower case, without the full stop and however its accents are encoded."""
    return unicodedata.normalize("NFC", answer.strip().rstrip(".。").lower())


def answer_type(row: Record, key: str = "answer_type") -> str:
    """`closed` or `open` as the release says, empty where it says neither."""
    word = str(row.get(key) or "").strip().lower()
    return word if word in ANSWER_TYPES else ""


def references(text: str) -> tuple[str, tuple[str, ...]]:
    """(answer, alternatives) of a reference: `#` separates texts of which any is right, what stands
    in parentheses may be left out. The answer is the first as it is written."""
    texts: dict[str, None] = {}
    for part in text.split("#"):
        texts |= dict.fromkeys((part.strip(), " ".join(re.sub(r"\([^()]*\)", " ", part).split())))
    texts.pop("", None)
    answer, *alternatives = texts
    return answer, tuple(alternatives)
