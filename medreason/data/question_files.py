"""Where the rows of `data=hub` come from: tables of one's own, a saved folder, or the hub.

CSV, JSON and JSON lines are read here, as they are written and with their lines, so that a row is
named as an editor shows it; everything else is read by `datasets`.
"""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medreason.config import hub
from medreason.data import csv_table, rows, saved_sets
from medreason.data.rows import Record

if TYPE_CHECKING:
    from datasets import Dataset

TABLES = (".csv", ".tsv", ".json", *rows.JSON_LINES)
"""Suffixes of the tables that are read here."""
_OF_DATASETS = ("config.json", "dataset_info.json", "dataset_infos.json")
"""Files beside a set's tables that hold no rows."""


@dataclass(frozen=True)
class Part:
    """The rows of one file, or of one split of a set."""

    name: str
    """What its rows are named after in ids and messages."""
    where: str
    """The part itself in messages."""
    split: str
    columns: Sequence[str]
    count: int
    """Of its rows."""
    records: Callable[[Sequence[str]], Iterable[Record]]
    """The rows, with these columns at least."""
    numbers: Sequence[int] | None = None
    """Of its rows: their lines in the file; None counts from 0."""
    table: Path | None = None
    """The file, of a table of one's own."""


def read(name: str, revision: str | None, subset: str | None) -> list[Part]:
    """The parts of a hub id, of a folder, or of a file.

    Raises:
        ValueError: there is no such file or folder, a file cannot be read, or the hub cannot be
            reached and the set is not in the local cache.
    """
    if not name:
        raise ValueError("data.hub=''; give your table, a folder, or an id of the hub")
    path = Path(name)
    if path.is_file():
        return [of_file(path)]
    if saved_sets.is_saved(path):
        return _of_sets(name, saved_sets.read(path))
    if tables := _tables(path):
        return [of_file(table) for table in tables]
    _refuse_no_path(name)
    return _of_sets(name, _loaded(name, revision, subset))


def below(folder: Path) -> list[Path]:
    """All tables below a folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in TABLES)


def _tables(folder: Path) -> list[Path]:
    """The tables of a folder, unless it is laid out for `datasets`: with Parquet or Arrow files, a
    card that names its files, or a `metadata` that names its pictures."""
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    card = folder / "README.md"
    if any(path.suffix in (".parquet", ".arrow") for path in files) or (
        card.is_file() and re.search("^configs:", card.read_text("utf-8", "replace"), re.MULTILINE)
    ):
        return []
    return [
        path
        for path in files
        if path.suffix.lower() in TABLES
        and path.name not in _OF_DATASETS
        and not (path.stem == "metadata" and b"file_name" in path.read_bytes()[:4096])
    ]


def of_file(path: Path, before: str = "data.hub=") -> Part:
    """The rows of one file; those of JSON lines and CSV with their lines. `before` stands in front
    of the path in a message.

    Raises:
        ValueError: the file cannot be read.
    """
    numbers: Sequence[int] | None = None
    match path.suffix.lower():
        case ".parquet":
            return _parquet(path)
        case ".csv" | ".tsv":
            columns, records, numbers = _csv(path)
        case ".json":
            columns, records = _same_columns(path, rows.json_array(path))
        case suffix if suffix in rows.JSON_LINES:
            numbers, objects = _json_lines(path)
            columns, records = _same_columns(path, objects)
        case suffix:
            raise ValueError(
                f"{before}{path}: a file that ends with {suffix!r} cannot be read, only those that "
                f"end with {', '.join((*TABLES, '.parquet'))}; save the table as CSV"
            )
    return Part(
        path.name,
        str(path),
        _split_of(path),
        columns,
        len(records),
        lambda _: records,
        numbers,
        path,
    )


def _parquet(path: Path) -> Part:
    from datasets import Dataset  # seconds

    dataset = cast("Dataset", Dataset.from_parquet(str(path)))
    return _of_dataset(path.name, str(path), _split_of(path), dataset)


def _split_of(path: Path) -> str:
    """The split that a file's name has as one of its words, else train."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    named = {rows.FOLDS[word] for word in words if word in rows.FOLDS}
    return named.pop() if len(named) == 1 else "train"


def _csv(path: Path) -> tuple[list[str], list[Record], list[int]]:
    """(columns, rows, lines). Cells are texts as they are written, so that a patient 007 keeps its
    zeros and an answer `None` stays one; blank ones are None, and columns of true and false alone
    are truths."""
    table = csv_table.table(path)
    columns = [name for name in table.names if name]
    csv_table.check(table, columns)
    truths = [c for c in columns if {row[c].lower() for row in table.rows} <= {*_TRUTHS, ""}]
    records: list[Record] = [
        {**{name: cell or None for name, cell in row.items()}}
        | {name: _TRUTHS.get(row[name].lower()) for name in truths}
        for row in table.rows
    ]
    return columns, records, [row.line for row in table.rows]


_TRUTHS = {"true": True, "false": False}


def _json_lines(path: Path) -> tuple[list[int], list[object]]:
    """(lines, values) of a file with one JSON value a line."""
    numbers, values = [], []
    for number, line in enumerate(rows.decoded(path, "utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: is no JSON ({error}): {line[:80]!r}; correct the line"
            ) from error
        numbers.append(number)
    if not values:
        raise ValueError(f"{path}: holds no rows; give a file that does")
    return numbers, values


def _same_columns(path: Path, objects: Sequence[object]) -> tuple[list[str], list[Record]]:
    """The columns of all objects, and the objects with None at those that they lack."""
    if wrong := next((value for value in objects if not isinstance(value, Mapping)), None):
        raise ValueError(f"{path}: holds {repr(wrong)[:80]}; needs objects with a question each")
    members = cast(Sequence[Mapping[str, Any]], objects)
    columns = list(dict.fromkeys(name for member in members for name in member))
    return columns, [{name: member.get(name) for name in columns} for member in members]


def _refuse_no_path(name: str) -> None:
    """Refuse what can only be a path, or begins as one, and leads nowhere: the hub would be asked
    for half a minute. A word alone is a path: the sets that had no owner were given one."""
    path = Path(name)
    is_id = (
        name.count("/") == 1
        and not name.startswith((".", "/", "~"))
        and path.suffix.lower() not in TABLES
    )
    beside = path.parent.is_dir() and (not is_id or path.parent != Path())
    if path.exists() or (is_id and not beside):
        return
    names = sorted(other.name for other in path.parent.iterdir()) if beside else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    if not near and name.isidentifier():
        hint = f"; huggingface.co/datasets/{name} leads to the one that a set without owner has now"
    raise ValueError(
        f"data.hub={name}: no such file or folder here, and no id of the hub, which is owner/name"
        f"{hint}"
    )


def _loaded(name: str, revision: str | None, subset: str | None) -> dict[str, Dataset]:
    """The splits of a set as `datasets` reads it."""
    # datasets, seconds
    from datasets import DatasetDict, load_dataset

    try:
        if not Path(name).exists():
            hub.read_cache_if_unreached(f"data.hub={name}")
            _refuse_unknown_owner(name)
        dataset = load_dataset(name, subset, revision=revision)
    except (OSError, ValueError) as error:  # what `datasets` raises where it does not find one
        raise ValueError(
            f"data.hub={name!r} cannot be loaded ({error}); with a network it is downloaded once, "
            "without one give a folder that holds its files. Of a set with several, data.subset "
            "names one"
        ) from error
    assert isinstance(dataset, DatasetDict)
    return {str(name): part for name, part in dataset.items()}


def _refuse_unknown_owner(name: str) -> None:
    """Raise OSError for an id of whose owner the cache has nothing, where the hub is not asked."""
    from datasets import config

    owner, cache = name.partition("/")[0], Path(config.HF_DATASETS_CACHE)
    if config.HF_HUB_OFFLINE and not [*cache.glob(f"{glob.escape(owner)}___*")]:
        raise OSError(f"no network, or HF_HUB_OFFLINE is set, and it is not in {cache}")


def _of_sets(name: str, splits: Mapping[str, Dataset]) -> list[Part]:
    """Rows named by their split as the set has it: `data.split` may test on one of its train."""
    return [
        _of_dataset(f"published {split}", f"data.hub={name!r}", split, dataset)
        for split, dataset in splits.items()
    ]


def _of_dataset(name: str, where: str, split: str, dataset: Dataset) -> Part:
    undecoded = _undecoded(dataset)

    def records(columns: Sequence[str]) -> Iterator[Record]:
        return _records(undecoded.select_columns(list(columns)))

    return Part(name, where, split, dataset.column_names, len(dataset), records)


def _undecoded(part: Dataset) -> Dataset:
    """The rows with images as bytes and paths, whether a row has one or a list of them."""
    from datasets import Image, List

    for column, feature in part.features.items():
        match feature:
            case Image():
                part = part.cast_column(column, Image(decode=False))
            case List(feature=Image()):
                part = part.cast_column(column, List(Image(decode=False)))
    return part


def _records(part: Dataset) -> Iterator[Record]:
    """The rows, with the names of classes in place of their numbers."""
    from datasets import ClassLabel

    classes = {name: kind for name, kind in part.features.items() if isinstance(kind, ClassLabel)}
    for row in cast(Iterable[dict[str, Any]], part):
        named = {
            name: kind.int2str(row[name])
            for name, kind in classes.items()
            if row[name] is not None and row[name] >= 0
        }
        yield row | named
