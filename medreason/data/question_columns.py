"""Which column of a set holds what: those that `data.columns` names, else those of usual names,
whatever their letter case and whether space, `_` or `-` parts their words."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from medreason.config import rules
from medreason.data import option_columns, question_files, rows, saved_sets
from medreason.data.column_names import by_plain, plain
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
Words = Mapping[str, Mapping[str, str]]
"""`data.names`: modality or task -> a word of the set, in lower case -> ours."""
Given = Mapping[str, str | Sequence[str] | None]
"""`data.columns`: our name -> the set's, of options also several."""


@dataclass(frozen=True)
class Layout:
    """What the rows of a set have in common."""

    columns: Mapping[str, str]
    options: Sequence[str]
    """Columns of one option each, where no column holds all of them."""
    cell: tuple[str, str] = ("unknown", "unknown")
    """Modality and task of rows that have none of their own."""
    source: str = ""
    images: Path = Path()
    """Folder that paths of images start from."""
    cache: Path = Path()
    """Folder of the images that the set holds itself."""
    foreign: Mapping[str, str] = field(default_factory=dict)
    """Our name of a facet -> the column of that name that is about something else."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Column -> the usual name that it was taken for."""
    words: Words = field(default_factory=dict)
    needs_split: bool = False
    """Each row says its split, where there is a column of splits."""

    @property
    def has_problems(self) -> bool:
        """A question's column holds its options, too: `Which? A)CT, B)MRI`."""
        names = (self.columns["question"], self.columns.get("answer", ""))
        return saved_sets.COLUMNS[1:] == (*map(plain, names),)


class Found(NamedTuple):
    """The first, second and last two of a Layout."""

    columns: dict[str, str]
    options: list[str]
    foreign: dict[str, str]
    renamed: dict[str, str]


def find(
    hub: str | None,
    part: Part,
    given: Given,
    *,
    required: Sequence[str] = _REQUIRED,
    before: str = "",
    words: Words | None = None,
) -> Found:
    """The column of each of our names, and columns of one option each.

    `hub` is what data.hub names; None where the part is not that of a data set, but of questions to
    ask: of the columns that are named those of options alone must then be there beside the required
    ones. `before` is what a user types in front of the keys of `data.columns`.

    Raises:
        ValueError: a key of `given` is unknown, or a column that it names or that is required is
            not there; with all of them and what to type.
    """
    several = _several_options(given)
    if hub is None:
        given = _of_questions(part, given, required)
    columns = _chosen(part, given)
    if several:
        columns.pop("options", None)
    if absent := _absent(part, columns, several, required):
        raise ValueError(_no_column(hub, part, absent, before))
    facets = [our for our in FACETS if our in columns and not given.get(our)]
    foreign = {
        our: columns[our] for our in facets if _is_foreign(part, our, columns[our], words or {})
    }
    columns = {our: name for our, name in columns.items() if our not in foreign}
    renamed = {
        name: our for our, name in columns.items() if not given.get(our) and name not in _USUAL[our]
    }
    options = several
    if not several and "options" not in columns:
        options = _lettered(part.columns)
        renamed |= {
            name: f"option_{letter}"
            for name, letter in zip(options, LETTERS, strict=False)
            if name not in [f"{prefix}{letter}" for prefix in _OPTION_PREFIXES]
        }
    return Found(columns, options, foreign, renamed)


def _of_questions(part: Part, given: Given, required: Sequence[str]) -> Given:
    """`given` without the columns that answers or the matrix need and the part has not."""
    needed = (*required, "options")
    return {our: name for our, name in given.items() if our in needed or name in part.columns}


def known_names() -> tuple[str, ...]:
    """All usual names, and those of the first columns of options."""
    usual = (name for names in _USUAL.values() for name in names)
    return (*usual, *(f"option_{letter}" for letter in LETTERS))


def _several_options(given: Given) -> list[str]:
    """The columns of one option each that are given. Raises ValueError for an unknown key."""
    if unknown := [name for name in given if name not in _USUAL]:
        raise ValueError(f"data.columns.{unknown[0]} is unknown; known: {', '.join(_USUAL)}")
    for our, names in given.items():
        if our != "options" and isinstance(names, Sequence) and not isinstance(names, str):
            raise ValueError(
                f"data.columns.{our}={list(names)}: it takes the name of one column; options "
                "alone may have several"
            )
    names = given.get("options")
    names = [] if names is None or isinstance(names, str) else list(names)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"data.columns.options names {twice[0]!r} twice; name each column once")
    if len(names) == 1:
        raise ValueError(
            f"data.columns.options={names}: a list names a column for each option; of one column "
            f"that holds a list type {rules.typed('data.columns.options', names[0])}"
        )
    return names


def _chosen(part: Part, given: Given) -> dict[str, str]:
    """Our name -> the column that is given, or else has a usual name."""
    loosely = by_plain(part.columns)
    usual: dict[str, str | None] = {}
    for our, known in _USUAL.items():
        exact = (name for name in known if name in part.columns)
        like = (loosely[plain(name)] for name in known if plain(name) in loosely)
        usual[our] = next(exact, None) or next(like, None)
    if not part.table:
        usual["split"] = None  # of a set its own splits count, unless a column is given
    chosen = usual | {our: name for our, name in given.items() if isinstance(name, str) and name}
    return {our: name for our, name in chosen.items() if name}


def _absent(
    part: Part, columns: Mapping[str, str], options: Sequence[str], required: Sequence[str]
) -> list[tuple[str, str]]:
    """(our name, column) of each column that is named or required, and not there."""
    absent = [(our, name) for our, name in columns.items() if name not in part.columns]
    absent += [("options", name) for name in options if name not in part.columns]
    return absent + [(our, _USUAL[our][0]) for our in required if our not in columns]


def _no_column(hub: str | None, part: Part, absent: Sequence[tuple[str, str]], before: str) -> str:
    """All columns that are not there, and what to type."""
    remedy = _other_reading(hub, part) if hub is not None else ""
    if not remedy:
        each = [_column_remedy(part, our, name, hub is not None) for our, name in absent]
        remedy = f"set {before}{'; '.join(dict.fromkeys(each))}"
        if hub is not None and part.table and Path(hub).is_dir():
            remedy += _OR_FILE
    names = ", ".join(repr(name) for _, name in absent)
    which = f"no column{'s' * (len(absent) > 1)} {names}"
    return f"{part.where}: {which}; columns are {list(part.columns)}: {remedy}"


def _column_remedy(part: Part, our: str, name: str, of_set: bool) -> str:
    if our == "options":
        likely = [n for n in part.columns if plain(n).startswith(plain(name))]
        likely = likely if len(likely) > 1 else option_columns.by_name(part.columns)
        example = rules.typed("data.columns.options", likely or ["FIRST", "SECOND"])
        return f"{example}, the columns of one option each, or data.columns.options to one of lists"
    if name not in _USUAL[our] and (near := _near(part.columns, name)):
        return f"{rules.typed(f'data.columns.{our}', near)}, which is most like it"
    or_paths = (_OR_PATHS if of_set else ", or its path") if our == "image" else ""
    return f"data.columns.{our} to the one that holds the {our}{or_paths}"


def _near(columns: Sequence[str], name: str) -> str:
    """The column that is spelt most like a name; empty where none is like it."""
    loosely = by_plain(columns)
    return next((loosely[n] for n in difflib.get_close_matches(plain(name), loosely, n=1)), "")


def _lettered(names: Sequence[str]) -> list[str]:
    """The columns of one option each, from A on, by the form of name that most of them have."""
    forms = [[f"{prefix}{letter}" for letter in LETTERS] for prefix in _OPTION_PREFIXES]
    found = [[*takewhile(names.__contains__, form)] for form in forms]
    loosely = by_plain(names)
    for form in (form for form in forms if len(form[0]) > 1):
        like = [loosely.get(plain(name), "") for name in form]
        found.append([*takewhile(bool, like)])
    longest = max(found, key=len)
    return longest if len(longest) > 1 else []


def checked_words(names: Mapping[str, Mapping[str, str]]) -> Words:
    """`data.names` with the set's words in lower case.

    Raises:
        ValueError: it names another column, or a word of ours that is not known.
    """
    checked: dict[str, dict[str, str]] = {}
    for key, words in names.items():
        if key not in _NAMED:
            raise ValueError(f"data.names.{key} is unknown; known: {', '.join(_NAMED)}")
        _, known = FACETS[key]
        for word, ours in (words or {}).items():
            if ours not in known:
                raise ValueError(
                    f"data.names.{key}: {word!r} is {ours!r}; known: {', '.join(known)}"
                )
            checked.setdefault(key, {})[str(word).strip().lower()] = ours
    return checked


_NAMED = ("modality", "task")


def unusual(key: str, column: str) -> str:
    """Our name `key`, where a column of another name than the usual ones is read as it; else
    empty."""
    return "" if plain(column) in map(plain, _USUAL[key]) else key


def facet(key: str, word: str, words: Words) -> str:
    """Our name of what a cell says, by `data.names` before the usual names; empty of neither."""
    return words.get(key, {}).get(word.strip().lower()) or FACETS[key][0](word)


def _is_foreign(part: Part, key: str, column: str, words: Words) -> bool:
    """Whether a column of that name is about something else. In a table of one's own a value that
    is not known is a slip, unless none is known; in a set it belongs to another scheme."""
    values = {str(row[column] or "").strip() for row in part.records([column])} - {""}
    known = [bool(facet(key, value, words)) for value in values]
    return bool(known) and not (any(known) if part.table else all(known))


def remarks(part: Part, layout: Layout, before: str = "") -> Iterator[Remark]:
    """What of a set is read under another name, and what is not used; `before` as in `find`."""
    foreign = {key: name for key, name in layout.foreign.items() if key != "split"}
    for key, column in foreign.items():
        known = ", ".join(FACETS[key][1])
        text = f"column {column!r} is not used: it has other values than {known}"
        each = f"data.names.{key} what each of its values stands for"
        yield Remark(part.name, -1, f"{text}; data.{key} says the {key} of all rows, {each}")
    if part.table and (fold := layout.foreign.get("split")):
        known = ", ".join(FACETS["split"][1])
        text = f"column {fold!r} is not used: none of its values is one of {known}; write those"
        yield Remark(part.name, -1, f"{text} for folds of your own", is_warning=True)
    if layout.renamed:
        read = ", ".join(f"{name} as {ours}" for name, ours in layout.renamed.items())
        yield Remark(part.name, -1, f"columns that are read under our names: {read}")
    used = (*layout.columns.values(), *layout.options, *layout.foreign.values())
    others = [name for name in part.columns if name not in used]
    if part.table and others:
        text = f"columns that are not used: {', '.join(others)}"
        yield Remark(part.name, -1, f"{text}; name a column in {before}data.columns to use it")
    if not before and "patient" not in layout.columns and (name := _like_patients(part, others)):
        typed = rules.typed("data.columns.patient", name)
        then = "" if "split" in layout.columns else _THEN_BY_PATIENT
        text = f"{_MAY_NAME_PATIENTS.format(name, typed)}{then}"
        yield Remark(part.name, -1, text, is_warning=True)
    has_options = layout.options or "options" in layout.columns
    # Cells are read of a table alone: those of a set of the hub may be images.
    answer = layout.columns.get("answer", "") if part.table and not has_options else ""
    if like := option_columns.problem(part, others, answer, before):
        yield Remark(part.name, -1, like, is_warning=True)


_LIKE_PATIENTS = (
    *(
        f"{who}{what}"
        for who in ("patient", "pat", "pt", "subject", "participant", "person", "proband", "case")
        for what in ("", "id", "no", "nr", "number", "name", "code", "key")
        if who + what not in map(plain, rows.PATIENT_COLUMNS)
    ),
    *("patients", "pid", "subj", "subjid", "sub", "subid", "mrn", "medicalrecordnumber"),
    *("pseudonym", "patienten", "patientenid", "patientennummer", "patientennr", "fallid"),
    *("study", "studyid", "studyuid", "studyinstanceuid", "accession", "accessionnumber"),
)
"""Plain names of columns that may name patients; the surest first."""
_MAY_NAME_PATIENTS = (
    "column {!r} may name patients and is not used: {} counts the images of a patient together"
)
_THEN_BY_PATIENT = ", and data.split=by_patient then keeps them on one side"


def _like_patients(part: Part, names: Sequence[str]) -> str:
    """The column, of those that are not used, that looks like one of patients by its name and has
    several values, of which some stand in several rows; empty where there is none."""
    loosely = by_plain(names)
    for name in (loosely[like] for like in _LIKE_PATIENTS if like in loosely):
        cells = (row[name] for row in part.records([name]))
        values = [value for cell in cells if (value := rows.patient(str(cell or "")))]
        if 1 < len({*values}) < len(values):
            return name
    return ""


def _other_reading(hub: str, part: Part) -> str:
    """How to read a set of which no question was found, where it is clear; else ""."""
    if {*part.columns} <= {"image", "label"} and (tables := question_files.below(Path(hub))):
        return (
            f"pictures were read, {tables[0]} was not: set data.hub={tables[0]} "
            f"data.image_folder={hub}"
        )
    names = {plain(name) for name in part.columns}
    if part.table and "label" in names and "question" not in names:
        return (
            "it looks like a table of labels: use data=labelled_images "
            f"data.root={part.table.parent} data.table={part.table.name}"
        )
    return ""
