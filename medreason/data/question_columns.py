"""Which column of a set holds what: those that `data.columns` names, else those of usual names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from medreason.data import question_files, rows, saved_sets
from medreason.data.names import modality_of, task_of
from medreason.data.question_files import Part
from medreason.data.rows import Remark
from medreason.samples import LETTERS, MODALITY_NAMES, TASK_NAMES

_USUAL = {
    "image": ("image", "images"),
    "question": ("question", "problem"),
    "answer": ("answer", "solution"),
    "options": ("options", "choices"),
    **{key: (key,) for key in ("explanation", "modality", "task", "source", "answer_type")},
    "patient": rows.PATIENT_COLUMNS,
    "alternatives": ("alternatives",),
    "split": ("split", "fold"),
}
"""Our name, a key of `data.columns` -> names that a column has where that key names none."""
FACETS: dict[str, tuple[Callable[[str], str], Collection[str]]] = {
    "modality": (modality_of, MODALITY_NAMES),
    "task": (task_of, TASK_NAMES),
    "split": (lambda word: rows.FOLDS.get(word.lower(), ""), rows.FOLDS),
}
"""What cells name of which not everything is known: what reads a name, and what is known."""
_OR_PATHS = ", or its path, which starts from data.image_folder"
_OR_FILE = "; where it holds no questions, set data.hub to the file that does"
_REQUIRED = ("image", "question", "answer")
_OPTION_PREFIXES = ("option_", "Option ", "Choice ", "")
"""Before the letters that name columns of one option each."""


@dataclass(frozen=True)
class Layout:
    """What the rows of a set have in common."""

    columns: Mapping[str, str]
    options: Sequence[str]
    """Columns of one option each, where no column holds all of them."""
    cell: tuple[str, str]
    """Modality and task of rows that have none of their own."""
    source: str
    images: Path
    """Folder that paths of images start from."""
    cache: Path
    """Folder of the images that the set holds itself."""

    @property
    def has_problems(self) -> bool:
        """A question's column holds its options, too: `Which? A)CT, B)MRI`."""
        return saved_sets.COLUMNS[1:] == (self.columns["question"], self.columns["answer"])


def find(hub: str, part: Part, given: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """The column of each of our names, and columns of one option each."""
    names = part.columns
    if unknown := [key for key in given if key not in _USUAL]:
        raise ValueError(f"data.columns.{unknown[0]} is unknown; known: {', '.join(_USUAL)}")
    usual = {key: next((n for n in known if n in names), None) for key, known in _USUAL.items()}
    if not part.table:
        usual["split"] = None  # of a set its own splits count, unless a column is given
    chosen = usual | {key: name for key, name in given.items() if name}
    columns = {key: name for key, name in chosen.items() if name}
    absent = {key: name for key, name in columns.items() if name not in names}
    absent |= {key: _USUAL[key][0] for key in _REQUIRED if key not in columns}
    if absent:
        key, name = next(iter(absent.items()))
        remedy = _other_reading(hub, part) or (
            f"set data.columns.{key} to the one that holds the {key}"
            f"{_OR_PATHS if key == 'image' else ''}"
            f"{_OR_FILE if part.table and Path(hub).is_dir() else ''}"
        )
        raise ValueError(f"{part.where}: no column {name!r}; columns are {list(names)}: {remedy}")
    for key in FACETS:
        if key in columns and not given.get(key) and _is_foreign(part, key, columns[key]):
            del columns[key]
    by_letter = [[f"{prefix}{letter}" for letter in LETTERS] for prefix in _OPTION_PREFIXES]
    options = [[*takewhile(names.__contains__, of_prefix)] for of_prefix in by_letter]
    of_one = max(options, key=len) if "options" not in columns else []
    return columns, of_one if len(of_one) > 1 else []


def _is_foreign(part: Part, key: str, column: str) -> bool:
    """Whether a column of that name is about something else. In a table of one's own a value that
    is not known is a slip, unless none is known; in a set it belongs to another scheme."""
    values = {str(row[column] or "").strip() for row in part.records([column])} - {""}
    known = [bool(FACETS[key][0](value)) for value in values]
    return bool(known) and not (any(known) if part.table else all(known))


def remarks(part: Part, layout: Layout) -> Iterator[Remark]:
    """What is not used of a set."""
    foreign = [
        key for key in ("modality", "task") if key in part.columns and key not in layout.columns
    ]
    for key in foreign:
        known = ", ".join(FACETS[key][1])
        text = f"column {key!r} is not used: it has other values than {known}"
        yield Remark(part.name, -1, f"{text}; data.{key} says the {key} of all rows")
    used = (*layout.columns.values(), *layout.options, *foreign)
    if part.table and (others := [name for name in part.columns if name not in used]):
        text = f"columns that are not used: {', '.join(others)}"
        yield Remark(part.name, -1, f"{text}; data.columns gives those of other names a use")


def _other_reading(hub: str, part: Part) -> str:
    """How to read a set of which no question was found, where it is clear; else ""."""
    if {*part.columns} <= {"image", "label"} and (tables := question_files.below(Path(hub))):
        return (
            f"pictures were read, {tables[0]} was not: set data.hub={tables[0]} "
            f"data.image_folder={hub}"
        )
    if part.table and "label" in part.columns and "question" not in part.columns:
        return (
            "it looks like a table of labels: use data=labelled_images "
            f"data.root={part.table.parent} data.table={part.table.name}"
        )
    return ""
