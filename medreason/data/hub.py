"""Sets of image, question and answer: a table of one's own, or one of the Hugging Face hub.

Sets differ in their columns: `data.columns` names them, and those of the usual names need no key.
`question_files` finds and reads the files; `saved_sets` what the columns of R1-V and Med-R1 hold.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from medreason.data import csv_table, question_files, rows, saved_sets
from medreason.data.names import modality_of, task_of
from medreason.data.question_files import Part
from medreason.data.rows import Record, Remark, Row
from medreason.replies import parse
from medreason.runs.files import atomic
from medreason.samples import (
    LETTERS,
    MODALITY_NAMES,
    TASK_NAMES,
    Sample,
    letter_at,
    letters_of,
    refuse_glued,
)

_USUAL = {
    "image": ("image", "images"),
    "question": ("question", "problem"),
    "answer": ("answer", "solution"),
    "options": ("options", "choices"),
    **{key: (key,) for key in ("explanation", "modality", "task", "source", "answer_type")},
    "patient": rows.PATIENT_COLUMNS,
    "alternatives": ("alternatives",),
}
"""Our name, a key of `data.columns` -> names that a column has where that key names none."""
_CELLS = {"path-vqa": ("microscopy", "attributes")}
"""Modality and task of all rows, by the name of a known set."""
_FACETS = {"modality": (modality_of, MODALITY_NAMES), "task": (task_of, TASK_NAMES)}
"""Cells of the matrix that columns may name: what reads a name, and what is known."""
_OR_PATHS = ", or its path, which starts from data.image_folder"
_IMAGE_FOLDER = "data.image_folder"
_COLUMN_EACH = "give each option a column, option_A, option_B ..."
_REQUIRED = ("image", "question", "answer")
_OPTION_PREFIXES = ("option_", "Option ", "Choice ", "")
"""Before the letters that name columns of one option each."""


@dataclass(frozen=True)
class _Layout:
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


def read(
    hub: str,
    cache: Path,
    *,
    columns: Mapping[str, str | None] | None = None,
    modality: str | None = None,
    task: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    image_folder: str | None = None,
    validation: str | None = None,
    images: str = "decode",
) -> Iterator[Row]:
    """Rows of a hub id, of a folder that holds its files, or of a table of one's own.

    `columns` maps our names (image, question, answer, options, answer_type, explanation, modality,
    task, source, patient, and alternatives: a list of texts that are as right as the answer of an
    open question) to the set's; null takes the usual name, where there is one. Rows without
    modality and task of their own get those given, else those known of the set. Validation rows
    belong to the split `validation`; None leaves them out. Images are written to `cache` under the
    hash of their content, so that an image in train and test is known to be the same; where a
    column holds paths, they start from `image_folder`, by default the folder of the files. Where
    `images` is "decode", a set of which no image is there is refused.

    Raises:
        ValueError: the set cannot be found or read, or has no column of images, questions or
            answers.
    """
    for key, value, known in (("modality", modality, MODALITY_NAMES), ("task", task, TASK_NAMES)):
        if value not in (None, *known):
            raise ValueError(f"data.{key}={value!r}; known: {', '.join(known)}")
    folder = _image_folder(hub, image_folder)
    source = Path(hub).stem if Path(hub).is_file() else Path(hub).name
    known_cell = _CELLS.get(source.lower(), ("unknown", "unknown"))
    splits = {"train": "train", "test": "test"} | ({"validation": validation} if validation else {})
    parts = question_files.read(hub, revision, subset)
    names = [part.split for part in parts]
    if not splits.keys() & {*names}:
        raise ValueError(
            f"data.hub={hub!r} has the splits {list(dict.fromkeys(names))}, none of "
            f"{', '.join(splits)}; set data.validation=test where it has validation rows alone"
        )
    for part in parts:
        if part.split not in splits:
            yield Remark(part.name, -1, f"{part.count:,} rows of this split are not read")
            continue
        layout = _Layout(
            *_columns(hub, part, columns or {}),
            cell=(modality or known_cell[0], task or known_cell[1]),
            source=source,
            images=folder,
            cache=cache / "hub" / hub.strip("/").replace("/", "--"),
        )
        yield from _remarks(part, layout)
        _refuse_lost_options(part, layout)
        _refuse_options_in_one_cell(part, layout)
        _refuse_places_from_1(part, layout)
        if images == "decode":
            _refuse_absent_images(part, layout)
        yield from rows.each(
            part.name,
            part.records(part.columns),
            lambda id, row, layout=layout, split=splits[part.split]: _sample(
                layout, id, row, split
            ),
            part.numbers,
        )


def _image_folder(hub: str, given: str | None) -> Path:
    """The folder that paths of images start from. Raises ValueError where the one given is none."""
    path = Path(hub)
    own = path.parent if path.is_file() else path if path.is_dir() else Path()
    if not given:
        return own
    if not Path(given).is_dir():
        below = (
            f"set {own / given}" if (own / given).is_dir() else "give the one that paths start from"
        )
        raise ValueError(f"data.image_folder={given} is not a folder; {below}")
    return Path(given)


def _columns(
    hub: str, part: Part, given: Mapping[str, str | None]
) -> tuple[dict[str, str], list[str]]:
    """The column of each of our names, and columns of one option each."""
    names = part.columns
    if unknown := [key for key in given if key not in _USUAL]:
        raise ValueError(f"data.columns.{unknown[0]} is unknown; known: {', '.join(_USUAL)}")
    usual = {key: next((n for n in known if n in names), None) for key, known in _USUAL.items()}
    chosen = usual | {key: name for key, name in given.items() if name}
    columns = {key: name for key, name in chosen.items() if name}
    absent = {key: name for key, name in columns.items() if name not in names}
    absent |= {key: _USUAL[key][0] for key in _REQUIRED if key not in columns}
    if absent:
        key, name = next(iter(absent.items()))
        remedy = _other_reading(hub, part) or (
            f"set data.columns.{key} to the one that holds the {key}"
            f"{_OR_PATHS if key == 'image' else ''}"
        )
        raise ValueError(f"{part.where}: no column {name!r}; columns are {list(names)}: {remedy}")
    for key in _FACETS:
        if key in columns and not given.get(key) and not _known_names(part, key, columns[key]):
            del columns[key]
    by_letter = [[f"{prefix}{letter}" for letter in LETTERS] for prefix in _OPTION_PREFIXES]
    options = [[*takewhile(names.__contains__, of_prefix)] for of_prefix in by_letter]
    of_one = max(options, key=len) if "options" not in columns else []
    return columns, of_one if len(of_one) > 1 else []


def _known_names(part: Part, key: str, column: str) -> bool:
    """Whether a column has a modality or task that is known, or none at all."""
    values = {str(row[column] or "").strip() for row in part.records([column])} - {""}
    return not values or any(map(_FACETS[key][0], values))


def _remarks(part: Part, layout: _Layout) -> Iterator[Remark]:
    """What is not used of a set."""
    foreign = [key for key in _FACETS if key in part.columns and key not in layout.columns]
    for key in foreign:
        known = ", ".join(_FACETS[key][1])
        text = f"column {key!r} is not used: it has none of {known}"
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


def _refuse_lost_options(part: Part, layout: _Layout) -> None:
    """Refuse a set whose answers are all letters while no column holds options."""
    if "options" in layout.columns or layout.options or layout.has_problems:
        return
    column = layout.columns["answer"]
    answers = {str(row[column]).strip() for row in part.records([column])}
    if len(answers) > 1 and answers <= set(LETTERS[:8]):
        raise ValueError(
            f"{part.where}: the answers are letters ({', '.join(sorted(answers))}), and no column "
            f"of options is known; columns are {list(part.columns)}: set data.columns.options, or "
            f"{_COLUMN_EACH}"
        )


def _refuse_options_in_one_cell(part: Part, layout: _Layout) -> None:
    """Refuse a set with a text where the list of options should be, such as `Yes; No`."""
    if column := layout.columns.get("options"):
        cells = [row[column] for row in part.records([column]) if row[column]]
        if cells and all(isinstance(cell, str) for cell in cells):
            raise ValueError(
                f"{part.where}: column {column!r} holds a text, {cells[0]!r}, not a list. A CSV "
                f"file holds no lists: {_COLUMN_EACH}"
            )


def _refuse_places_from_1(part: Part, layout: _Layout) -> None:
    """Refuse a set whose answers are places of options that are counted from 1: most would pass
    as those of the next option."""
    answer, options = layout.columns["answer"], layout.columns.get("options")
    columns = [answer, *filter(None, [options]), *layout.options]
    rows_read = [(_place(row[answer]), _texts(row, layout)) for row in part.records(columns)]
    places = [(place, texts) for place, texts in rows_read if texts]
    if not places or any(place is None or place < 1 or str(place) in t for place, t in places):
        return
    if any(place == len(texts) for place, texts in places):
        raise ValueError(
            f"{part.where}: column {answer!r} counts options from 1, and is read from 0; "
            "subtract 1 in the set, or put letters there"
        )


def _refuse_absent_images(part: Part, layout: _Layout) -> None:
    """Refuse paths of which none leads to an image: they start from another folder."""
    column = layout.columns["image"]
    paths = [row[column] for row in part.records([column]) if isinstance(row[column], str)]
    files = [layout.images / path.replace("\\", "/") for path in paths if "://" not in path]
    if files and not any(file.is_file() for file in files):
        raise ValueError(
            f"{part.where}: none of its {len(files):,} images is there, such as {files[0]}; set "
            f"data.image_folder to the folder that paths as {paths[0]!r} start from"
        )


def _sample(layout: _Layout, name: str, row: Record, split: str) -> Sample:
    columns = layout.columns
    if problem := csv_table.extra_problem(row):
        raise ValueError(problem)
    kind = rows.answer_type(row, columns["answer_type"]) if "answer_type" in columns else ""
    options = _options(row, layout)
    question = rows.text(row, columns["question"]).strip()
    answer = rows.text_or_number(row, columns["answer"])
    if layout.has_problems and not options:
        question, options, answer = saved_sets.parts(question, answer)
    elif options:
        answer = _letter(row[columns["answer"]], options)
    if not options:
        options, answer = rows.yes_or_no(answer, kind)
    return Sample(
        id=name,
        image=_image(row[columns["image"]], layout),
        question=question,
        options=options,
        answer=answer,
        explanation=_own(row, columns, "explanation"),
        modality=_facet(row, columns, "modality", layout.cell[0]),
        task=_facet(row, columns, "task", layout.cell[1]),
        source=_own(row, columns, "source") or layout.source,
        patient=rows.patient(_own(row, columns, "patient")),
        split=split,
        alternatives=() if options else _alternatives(row, columns),
        answer_type=kind,
    )


def _alternatives(row: Record, columns: Mapping[str, str]) -> tuple[str, ...]:
    """Further right answers of an open question: a list of texts."""
    value = row[columns["alternatives"]] if "alternatives" in columns else None
    if not isinstance(value, list | None) or not all(isinstance(each, str) for each in value or ()):
        raise ValueError(f"{columns['alternatives']} is {value!r}; needs a list of texts")
    return tuple(value or ())


def _own(row: Record, columns: Mapping[str, str], key: str) -> str | None:
    """The text of an optional column; None where there is no column or no text."""
    if key not in columns or row[columns[key]] in (None, ""):
        return None
    return rows.text_or_number(row, columns[key])


def _facet(row: Record, columns: Mapping[str, str], key: str, of_all: str) -> str:
    """Modality or task: of the row where it says one, else of all rows."""
    name = _own(row, columns, key)
    if name is None:
        return of_all
    key_of, known = _FACETS[key]
    if not (value := key_of(name)):
        raise ValueError(f'"{columns[key]}" is {name!r}; known: {", ".join(known)}')
    return value


def _texts(row: Record, layout: _Layout) -> list[str]:
    """The texts of a row's options, in the order of their letters, empty for those without."""
    if "options" in layout.columns:
        values = row[layout.columns["options"]]
        if isinstance(values, str | None):
            return []
        if isinstance(values, Mapping):
            values = _in_order(values)
    else:
        values = [row[name] for name in layout.options]
    texts = ["" if value is None else str(value).strip() for value in values]
    while texts and not texts[-1]:
        texts.pop()
    return texts


def _options(row: Record, layout: _Layout) -> tuple[str, ...]:
    """The texts of a row's options; empty where it has none.

    Raises ValueError where one is missing before another, which would move the letters.
    """
    column = layout.columns.get("options")
    if column and isinstance(row[column], str):
        raise ValueError(f'"{column}" is {row[column]!r}; needs a list of texts')
    texts = _texts(row, layout)
    if "" in texts:
        raise ValueError(f"option {letter_at(texts.index(''))} has no text, others behind it have")
    if len(texts) == 1:
        raise ValueError(f"has one option ({texts[0]!r}), so nothing to choose; give two or more")
    options = _without_letters(texts)
    refuse_glued(options)
    return options


def _in_order(options: Mapping[str, object]) -> list[object]:
    """The values of options by letter (`A`, `option_b`) or by number, from the first to the last;
    those of other keys in their own order."""
    ends = {re.split(r"[^A-Za-z0-9]+", str(key))[-1].upper(): key for key in options}
    if all(len(end) == 1 and end in LETTERS for end in ends):
        return [options[ends[letter]] if letter in ends else None for letter in LETTERS]
    if all(end.isdecimal() for end in ends):
        return [options[ends[end]] for end in sorted(ends, key=int)]
    return list(options.values())


def _without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Options that bring their own letters, `A. CT` or `(B) MRI`, without them.

    Raises ValueError where these are not in sequence.
    """
    parts = [re.match(r"\(?([A-Z])[.):]\s*(?=\S)", text) for text in options]
    letters = "".join(part[1] for part in parts if part)
    if sorted(letters) != sorted(letters_of(options)):
        return tuple(options)
    if letters != letters_of(options):
        raise ValueError(f"options have the letters {', '.join(letters)}; give them in sequence")
    return tuple(text[part.end() :] for text, part in zip(options, parts, strict=True) if part)


def _letter(answer: object, options: Sequence[str]) -> str:
    """The letter of the right option, given as its letter, its text, or its place from 0."""
    place = _place(answer)
    text = str(answer) if place is None else str(place)
    if place is not None and text not in options:
        if not 0 <= place < len(options):
            raise ValueError(f"answer {answer} is no place of {len(options)} options, from 0")
        return letter_at(place)
    if place is not None and 0 <= place < len(options) and options[place] != text:
        raise ValueError(
            f"answer {answer} is the text of one option and the place of another in "
            f"{list(options)}; give its letter"
        )
    letter = parse(f"<answer>{text}</answer>", options).answer
    if letter is None and isinstance(answer, bool):
        letter = parse(f"<answer>{'yes' if answer else 'no'}</answer>", options).answer
    if letter is None:
        raise ValueError(f"answer {answer!r} is none of the options {list(options)}")
    return letter


def _place(answer: object) -> int | None:
    """A whole number, whatever its type: a column that lacks some has floats, CSV has texts."""
    if isinstance(answer, float) and answer.is_integer():
        return int(answer)
    if isinstance(answer, str) and answer.strip().isdecimal():
        return int(answer)
    return answer if isinstance(answer, int) and not isinstance(answer, bool) else None


def _image(value: object, layout: _Layout) -> Path:
    """The one image of a row, as a file. Raises ValueError where there is none or several."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 1:
            raise ValueError(f"has {len(value)} images; a question is about one")
        return _image(value[0], layout)
    if isinstance(value, str):
        return layout.images / rows.inside(value, layout.images, _IMAGE_FOLDER)
    if not isinstance(value, Mapping) or value.get("bytes") is value.get("path") is None:
        raise ValueError(f"image is {value!r}; needs an image or a path")
    return _stored(value.get("bytes"), value.get("path"), layout.cache)


def _stored(content: bytes | None, path: str | None, folder: Path) -> Path:
    """The image as a file of the folder."""
    if content is None and not Path(str(path)).is_file():
        raise ValueError(f"image {path} is not there; data.image_folder is where paths start from")
    content = content if content is not None else Path(str(path)).read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{hashlib.sha256(content).hexdigest()[:20]}{Path(path or '').suffix}"
    if not target.exists():
        with atomic(target, sync=False) as unfinished:
            unfinished.write_bytes(content)
    return target
