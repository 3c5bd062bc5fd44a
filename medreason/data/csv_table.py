"""CSV files: rows with the line that an editor shows, and what is wrong with the file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from medreason.data.rows import Record, decoded

if TYPE_CHECKING:
    from _csv import Reader


def read(
    path: Path, columns: Iterable[str], *, separator: str = ",", encoding: str = "utf-8-sig"
) -> list[TableRow]:
    """The rows of a CSV file with these columns.

    Raises:
        ValueError: as `table` and `check`.
    """
    found = table(path, separator=separator, encoding=encoding)
    check(found, columns, separator=separator)
    return found.rows


def table(
    path: Path,
    *,
    separator: str | None = None,
    encoding: str = "utf-8-sig",
    encoding_key: str = "",
) -> Table:
    """The rows of a CSV file as text; cells that a row lacks are empty, those beyond the last
    column are at EXTRA. None for the separator takes that of the names of the columns.
    `encoding_key` is the key of the configuration that names the encoding, if any.

    Raises:
        ValueError: the file is empty or no proper CSV.
    """
    content = decoded(path, encoding, encoding_key)
    if separator is None:
        separator = max((",", *_SEPARATORS), key=content.lstrip().partition("\n")[0].count)
    separator = "\t" if separator in ("\\t", "tab") else separator
    if len(separator) != 1:
        raise ValueError(f"data.separator={separator!r}; needs one character, such as ',', or tab")
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        (_, names), *rows = list(_numbered(reader)) or [(1, [])]
    except csv.Error as error:
        raise ValueError(
            f"{path}, up to line {reader.line_num}: {error}; is a quotation mark in a cell? Put "
            'the cell in "..." and write the mark twice'
        ) from error
    if not names:
        raise ValueError(f"{path}: is empty; save the table again")
    records = []
    for line, row in rows:
        record = TableRow(zip_longest(names, row[: len(names)], fillvalue=""))
        record.line = line
        if any(extra := row[len(names) :]):
            record[EXTRA] = ", ".join(extra)
        records.append(record)
    return Table(path, names, records)


class Table(NamedTuple):
    path: Path
    names: list[str]
    """Of its columns."""
    rows: list[TableRow]


class TableRow(dict[str, str]):
    """Column -> cell."""

    line = 0
    """Where it begins in the file, counted as an editor does: the names of the columns are in 1."""


def _numbered(reader: Reader) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row that has any; a cell in quotation marks may span lines."""
    line = 1
    for row in reader:
        if row:
            yield line, [cell.strip() for cell in row]
        line = reader.line_num + 1


EXTRA = "cells beyond the last column"
"""Key of a row that has such."""
_SEPARATORS = {";": ";", "\t": "tab", "|": "|", ",": ","}
"""What may separate cells, and how it is named."""


def check(
    table: Table,
    columns: Iterable[str],
    *,
    separator: str = ",",
    keys: Mapping[str, str] | None = None,
) -> None:
    """Raise ValueError for a column that is missing or there twice, and for a table without rows.

    `keys`, column -> key of the configuration that names it, are of a data set with the key
    data.separator.
    """
    path, names, _ = table
    required = list(dict.fromkeys(columns))
    if missing := [name for name in required if name not in names]:
        alone = names[0] if len(names) == 1 else ""
        likely = next((word for sign, word in _SEPARATORS.items() if sign in alone), "")
        remedy = f"set \"data.separator='{likely}'\"" if keys else f"save it with {separator!r}"
        hint = f"; is its separator {likely}? {remedy}" if likely else ""
        if keys and not likely:
            hint = f"; set {', '.join(_column_remedy(keys[name]) for name in missing)}"
        raise ValueError(f"{path}: no column {missing}; columns are {list(names)}{hint}")
    if twice := [name for name in required if names.count(name) > 1]:
        raise ValueError(
            f"{path}: {names.count(twice[0])} columns {twice[0]!r}; rename all but one"
        )
    if not table.rows:
        raise ValueError(f"{path}: holds no rows below the names of its columns")


def _column_remedy(key: str) -> str:
    optional = key in ("data.columns.patient", "data.columns.split")
    return f"{key}={'null, or the name of the column' if optional else 'the name of the column'}"


def extra_problem(row: Record) -> str:
    """What is wrong with a table's row that has more cells than the table has columns."""
    if EXTRA not in row:
        return ""
    cells = f"has cells beyond the last column ({row[EXTRA]})"
    return f'{cells}: is a separator in a cell? Put that cell in "..."'
