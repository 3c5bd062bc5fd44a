"""Columns that look like options and are not read as such, and what to type so that they are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from medreason.config import rules
from medreason.data.question_files import Part
from medreason.data.rows import Record

COLUMN_EACH = "give each option a column, option_A, option_B ..."
_WORDS = r"option|choice|answer|alternative|distractor|antwort|auswahl|wahl|respuesta|r[ée]ponse"
_ENDS_IN_PLACE = re.compile(r"(.*?)[\s_.-]*(?:([A-Za-z])|(\d{1,2}))[.):]?")
"""A stem and the letter or number of an option: `Antwort A`, `opt_1`, `B`."""
_WHOLE = re.compile(rf"(?:{_WORDS}|opt)(?:en|es|s)?", re.IGNORECASE)
_STEM = re.compile(rf"(?:.*(?:{_WORDS})s?|opt)?", re.IGNORECASE)


def problem(part: Part, names: Sequence[str], answer: str, before: str = "") -> str:
    """Which of the columns `names`, which are not used, look like options, and what to type; empty
    where none does. `answer` is the column of the answers, whose texts are looked for in the cells,
    or empty: then names alone are judged. `before` is what a user types in front of the key."""
    if not (found := by_name(names)) and answer:
        found = _by_cells(part, names, answer)
    if not found and answer:
        return _in_one_cell(part, names, answer, before)
    if not found:
        return ""
    one = len(found) == 1
    return (
        f"column{'' if one else 's'} {', '.join(found)} look{'s' * one} like options and "
        f"{'is' if one else 'are'} not used; set {before}"
        + rules.typed("data.columns.options", found[0] if one else found)
    )


def by_name(names: Sequence[str]) -> list[str]:
    """Columns with one stem and the letters from A on, or numbers from 0 or 1 on; else one that is
    called options."""
    stems: dict[tuple[str, bool], dict[int, str]] = defaultdict(dict)
    for name in names:
        if (match := _ENDS_IN_PLACE.fullmatch(name)) and _STEM.fullmatch(match[1]):
            place = int(match[3]) if match[3] else ord(match[2].lower()) - ord("a")
            if match[1] or not match[3]:  # a number alone is anything
                stems[match[1].lower(), bool(match[3])][place] = name
    for (_, is_number), places in stems.items():
        first = min(places)
        in_sequence = sorted(places) == [*range(first, first + len(places))]
        if len(places) > 1 and in_sequence and first <= is_number:
            return [places[place] for place in sorted(places)]
    return [name for name in names if _WHOLE.fullmatch(name)][:1]


def _by_cells(part: Part, names: Sequence[str], answer: str) -> list[str]:
    """Columns of which each has the answer of some rows and not of all, and which together have
    that of half of the rows or more."""
    hits: dict[str, int] = defaultdict(int)
    found = rows_read = 0
    for row in part.records([answer, *names]):
        right = _text(row, answer)
        cells = [name for name in names if _text(row, name)]
        if not right or len(cells) < 2:
            continue
        rows_read += 1
        equal = [name for name in cells if _text(row, name) == right]
        found += bool(equal)
        for name in equal:
            hits[name] += 1
    columns = [name for name in names if 0 < hits[name] < rows_read]
    return columns if len(columns) > 1 and 2 * found >= rows_read else []


def _in_one_cell(part: Part, names: Sequence[str], answer: str, before: str) -> str:
    """What to do about a column whose cells hold several texts, one of them the answer."""
    for name in names:
        listed = [(row, _split(row[name])) for row in part.records([answer, name])]
        listed = [(row, texts) for row, texts in listed if texts]
        right = [texts for row, texts in listed if _text(row, answer) in texts]
        if right and 2 * len(right) >= len(listed):
            cell = listed[0][0][name]
            is_list = isinstance(cell, list)
            typed = rules.typed("data.columns.options", name)
            remedy = f"set {before}{typed}" if is_list else COLUMN_EACH
            return (
                f"column {name} holds several texts a cell ({str(cell)[:60]!r}), as options would, "
                f"and is not used; {remedy}"
            )
    return ""


def _split(cell: object) -> list[str]:
    """The texts of a cell that holds several, in lower case; else none."""
    if isinstance(cell, list):
        return [str(each).strip().lower() for each in cell] if len(cell) > 1 else []
    for sign in (";", "|", "\n", ",", "/"):
        if isinstance(cell, str) and sign in cell:
            return [text.strip().lower() for text in cell.split(sign)]
    return []


def _text(row: Record, name: str) -> str:
    return "" if row[name] is None else str(row[name]).strip().lower()
