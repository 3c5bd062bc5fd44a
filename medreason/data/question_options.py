"""The options of a row in whatever cells a set has them, and which of them is right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from medreason.config import rules
from medreason.data import option_columns
from medreason.data.option_columns import COLUMN_EACH
from medreason.data.question_columns import Layout
from medreason.data.question_files import Part
from medreason.data.rows import Record
from medreason.replies import parse
from medreason.samples import LETTERS, letter_at, letters_of, refuse_glued


def refuse_lost_options(part: Part, layout: Layout) -> None:
    """Refuse a set whose answers are all letters while no column holds options."""
    if "options" in layout.columns or layout.options or layout.has_problems:
        return
    column = layout.columns["answer"]
    like = option_columns.by_name([c for c in part.columns if c not in layout.columns.values()])
    answers = {str(row[column]).strip() for row in part.records([column])}
    if len(answers) > 1 and answers <= set(LETTERS[:8]):
        raise ValueError(
            f"{part.where}: the answers are letters ({', '.join(sorted(answers))}), and no column "
            f"of options is known; columns are {list(part.columns)}: set "
            f"{rules.typed('data.columns.options', like) if like else 'data.columns.options'}, or "
            f"{COLUMN_EACH}"
        )


def refuse_options_in_one_cell(part: Part, layout: Layout) -> None:
    """Refuse a set with a text where the list of options should be, such as `Yes; No`."""
    if column := layout.columns.get("options"):
        cells = [row[column] for row in part.records([column]) if row[column]]
        if cells and all(isinstance(cell, str) for cell in cells):
            raise ValueError(
                f"{part.where}: column {column!r} holds a text, {cells[0]!r}, not a list. A CSV "
                f"file holds no lists: {COLUMN_EACH}"
            )


def refuse_places_from_1(part: Part, layout: Layout) -> None:
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


def _texts(row: Record, layout: Layout) -> list[str]:
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


def options_of(row: Record, layout: Layout) -> tuple[str, ...]:
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


def letter(answer: object, options: Sequence[str]) -> str:
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
