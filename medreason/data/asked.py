"""Files of `action=predict`: the questions that it asks, in the columns that a data set of one's
own has, and the answers to them."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from medreason.config import rules
from medreason.data import question_columns, question_files, question_options, rows
from medreason.data.column_names import plain
from medreason.data.question_columns import Given, Layout
from medreason.data.question_files import Part
from medreason.data.rows import JSON_LINES, Record
from medreason.runs.files import atomic, write_json, write_parquet
from medreason.samples import LETTERS

FORMATS = (
    "a table (.csv, .tsv, .parquet) with the columns image, question, option_A, option_B ..., or "
    'a list (.json, .jsonl) of {"image", "question", "options"}'
)
OUTPUTS = (".csv", ".tsv", ".json", *JSON_LINES, ".parquet")
"""Suffixes of files that answers are written to."""
_JSON = (".json", *JSON_LINES)
_OPTIONS = {"options", "choices", *(f"option{letter.lower()}" for letter in LETTERS)}
"""Plain names under which options are given."""


@dataclass(frozen=True)
class Asked:
    """One row of a file of questions."""

    place: str
    """File and row, for messages."""
    image: str | None
    """As the row names it."""
    text: str
    options: tuple[str, ...]
    """Of columns of their own, or a list."""
    yes_no: tuple[str, ...] = ()
    """Yes and No where the row's own answer is one of them, as in training; for a question whose
    text has no options."""
    yes_no_remedy: str = ""
    """How the file gives the row Yes and No as options."""


def read(
    path: Path,
    given: Given,
    *,
    needs_image: bool,
    before: str = "",
    of_training: Given | None = None,
) -> tuple[list[Asked], list[str]]:
    """The questions of a file, and what is to be said about its columns.

    `given` is `data.columns`; `before` is what a user types in front of its keys. `of_training` are
    those of the model's training, which are taken where the file has them and `given` names none.

    Raises:
        ValueError: the file cannot be read, has an unknown key, or a row lacks its question, or its
            image where `needs_image`.
    """
    try:
        part = question_files.of_file(path, "")
    except ValueError as error:
        raise ValueError(f"predict.questions={error}; it takes {FORMATS}") from error
    required = ("image", "question") if needs_image else ("question",)
    taken = _taken(part, given, of_training or {})
    given = {**given, **taken}
    typed = " ".join(rules.typed(f"data.columns.{our}", names) for our, names in taken.items())
    said = [_AS_TRAINED.format(typed)] if taken else []
    records = list(part.records(part.columns))
    numbers = part.numbers or range(len(records))
    if path.suffix.lower() in _JSON:
        each = zip(numbers, _json_rows(path), strict=True)
        return [_of_object(path, n, row, given, required, before) for n, row in each], said
    found = question_columns.find(None, part, given, required=required, before=before)
    layout = Layout(**found._asdict())
    question_options.refuse_options_in_one_cell(part, layout)
    remedy = _yes_no_remedy(layout)
    asked = [
        replace(_of_row(f"{path}, row {number}", row, layout, required), yes_no_remedy=remedy)
        for number, row in zip(numbers, records, strict=True)
    ]
    return asked, [*said, *_notes(part, layout, before)]


_AS_TRAINED = "columns as in the training of the model: {}; typed ones take precedence"


def _taken(part: Part, given: Given, of_training: Given) -> dict[str, str | Sequence[str]]:
    """The columns of the training that the file has, of keys that name none."""
    names = {our: name for our, name in of_training.items() if name and not given.get(our)}
    columns = {*part.columns}
    return {
        our: name
        for our, name in names.items()
        if {*([name] if isinstance(name, str) else name)} <= columns
    }


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """The objects with their own keys: those that a row lacks are not None here."""
    values = rows.json_array(path)
    return [dict(value) for value in values]


def _of_object(
    path: Path,
    number: int,
    row: dict[str, Any],
    given: Given,
    required: Sequence[str],
    before: str,
) -> Asked:
    place = f"{path}, question {number}"
    part = Part(path.name, place, "", [*row], 1, lambda _: [row], table=path)
    own = {our: name for our, name in given.items() if isinstance(name, str) and name in row}
    lists = {
        our: [name for name in names if name in row]
        for our, names in given.items()
        if not isinstance(names, str | None)
    }
    own |= {our: names for our, names in lists.items() if len(names) > 1}
    layout = Layout(**question_columns.find(None, part, own, required=())._asdict())
    _refuse_unknown_keys(place, row, layout, before)
    asked = _of_row(place, row, layout, required)
    return replace(asked, yes_no_remedy='give it "options": ["Yes", "No"]')


def _yes_no_remedy(layout: Layout) -> str:
    if column := layout.columns.get("options"):
        return f"put the list of Yes and No in its column {column!r}"
    first, second, *_ = (*layout.options, "option_A", "option_B")
    return f"fill its columns {first!r} and {second!r} with Yes and No"


def _refuse_unknown_keys(
    place: str, row: Mapping[str, object], layout: Layout, before: str
) -> None:
    """Refuse keys that nothing reads, above all options that would be lost."""
    used = (*layout.columns.values(), *layout.options, *layout.foreign.values())
    known = question_columns.known_names()
    for name in (name for name in row if name not in used):
        if plain(name) not in map(plain, known):
            near = difflib.get_close_matches(name, known, n=1)
            other = rules.typed("data.columns.KEY", name)
            hint = f"did you mean {near[0]!r}?" if near else f"{before}{other} gives it a use"
            raise ValueError(
                f'{place}: "{name}" is unknown; known: image, question, options, or option_A, '
                f"option_B ..., and the columns of a training; {hint}"
            )
        if plain(name) in _OPTIONS and row[name] not in (None, "", []):
            raise ValueError(
                f'{place}: "{name}" is not used: give all options as one list at "options", or '
                "from A on at option_A, option_B ..."
            )


def _of_row(place: str, row: Record, layout: Layout, required: Sequence[str]) -> Asked:
    image, text = (row.get(layout.columns.get(our, "")) for our in ("image", "question"))
    given = {"image": image, "question": text}
    lacks = any(not str(given[our] or "").strip() for our in required)
    if lacks or not isinstance(text, str) or not isinstance(image, str | None):
        names = " and ".join(f'"{our}"' for our in required)
        texts = "texts" if len(required) > 1 else "a text"
        raise ValueError(f"{place}: needs {names} as {texts}; found {dict(row)!r}")
    try:
        options = question_options.options_of(row, layout)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    answer = layout.columns.get("answer", "")
    yes_no: tuple[str, ...] = ()
    if not options and row.get(answer) not in (None, ""):
        kind = rows.answer_type(row, layout.columns.get("answer_type", ""))
        yes_no = rows.yes_or_no(rows.text_or_number(row, answer), kind)[0]
    return Asked(place, image or None, text.strip(), options, yes_no)


def _notes(part: Part, layout: Layout, before: str) -> Iterator[str]:
    """The remarks on columns that a training makes, but for those about cells of the matrix."""
    for remark in question_columns.remarks(part, replace(layout, foreign={}), before):
        yield str(remark)


def check_output(path: Path) -> None:
    """Raise ValueError for a suffix under which no answers are written."""
    if path.suffix.lower() not in OUTPUTS:
        raise ValueError(
            f"predict.output={path}: no answers are written to a file that ends with "
            f"{path.suffix!r}; give a name that ends with {', '.join(OUTPUTS)}"
        )


def write(path: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write answers in the format that the suffix says, atomically; README.md of the report says
    what each key holds. In tables each letter has columns of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix.lower():
        case ".json":
            write_json(path, list(answers))
        case ".parquet":
            write_parquet(path, pa.Table.from_pylist(_flat(answers)))
        case suffix:
            with atomic(path) as unfinished, unfinished.open("w", newline="") as stream:
                if suffix in JSON_LINES:
                    stream.writelines(f"{json.dumps(a, ensure_ascii=False)}\n" for a in answers)
                    return
                table = _flat(answers)
                separator = "\t" if suffix == ".tsv" else ","
                writer = csv.DictWriter(stream, [*table[0]], delimiter=separator)
                writer.writeheader()
                writer.writerows(table)


def _flat(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row an answer: of each letter that any question has the option and its likelihood."""
    letters = sorted({letter for answer in answers for letter in answer["options"]})
    table = []
    for answer in answers:
        row = {name: value for name, value in answer.items() if not isinstance(value, dict)}
        row |= {f"option_{letter}": answer["options"].get(letter) for letter in letters}
        likelihoods = answer["option_likelihoods"]
        row |= {f"likelihood_{letter}": likelihoods.get(letter) for letter in letters}
        table.append(row)
    return table
