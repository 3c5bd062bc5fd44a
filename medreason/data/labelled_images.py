"""A table of labelled images as balanced multiple-choice questions: how users bring their data.

Sets of two to four images of one modality, label group and split, each with another label, are
asked about with the same options: their labels. So each option is right for exactly one image of
the set, each time at another letter. Neither option strings nor letters nor the set of options tell
anything, and the options-only baseline is at chance.
"""

from __future__ import annotations

import difflib
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict

from medreason.console import counted
from medreason.data import checks, csv_table, image_cache, rows, splits
from medreason.data.column_names import by_plain, plain
from medreason.data.names import OTHER_MODALITY_NAMES, modality_of
from medreason.data.rows import BadRow, LeftOut, Remark, Row, SplitColumn
from medreason.samples import (
    LETTERS,
    MODALITIES,
    TASK_NAMES,
    Sample,
    letter_at,
    refuse_glued,
)


class Group(TypedDict):
    """How `data.ask` asks about a label group."""

    task: str
    question: str
    """With `{modality}` where the name of the modality belongs."""
    optional: NotRequired[bool]
    """The table may have no row of it."""


@dataclass(frozen=True)
class _Labelled:
    """A row of the table; its sample has the label as its answer and no options yet."""

    sample: Sample
    group: str
    label: str
    """In lower case with spaces for underscores: `No_tumor` and `no tumor` are equal."""


def read(
    root: Path | str | None,
    table: str,
    columns: Mapping[str, str | Sequence[str] | None],
    ask: Mapping[str, Group],
    *,
    choices: int = 4,
    min_images: int = 2,
    separator: str = ",",
    encoding: str = "utf-8-sig",
    validation: str | None = None,
    split: str,
    test_share: float,
    seed: int,
    images: str,
    cache: Path,
) -> Iterator[Row]:
    """Questions about the images of a CSV file below the root.

    `columns` names the columns of image, modality, label, group and, optionally, patient and split;
    of several names the first that the table has.
    Rows of a fold for validation belong to the split `validation`; None leaves them out.
    Labels with fewer than `min_images` images in their group and modality make bad rows. So do
    images that cannot be decoded, before sets are made, so that these stay balanced.

    Raises:
        ValueError: the table cannot be read, or has no row of a group that `ask` names.
    """
    root = rows.folder(root)
    _refuse_settings(columns, ask)
    if min_images < 1:
        raise ValueError(f"data.min_images={min_images}; give 1 or more")
    if not 2 <= choices <= len(LETTERS):
        raise ValueError(f"data.choices={choices}; a question has from 2 to {len(LETTERS)} options")
    found = csv_table.table(
        root / table, separator=separator, encoding=encoding, encoding_key="data.encoding"
    )
    given, columns = columns, _columns(found, columns)
    yield from _renamed(table, given, columns)
    keys = {column: f"data.columns.{key}" for key, column in columns.items()}
    csv_table.check(found, columns.values(), separator=separator, keys=keys)
    has_split = "split" in columns and any(row[columns["split"]] for row in found.rows)
    if has_split:
        yield SplitColumn(table, columns["split"])
    needs_split = has_split and split == "published"
    labelled, others = _labelled_rows(root, table, found.rows, columns, ask, needs_split)
    yield from others
    if split == "published":
        labelled, others = _folds(labelled, validation, columns.get("split", "split"))
        yield from others
    if images == "decode":
        labelled, bad = _readable(labelled, root, cache)
        yield from bad
    usable, bad = _usable(labelled, min_images)
    yield from bad
    digests = image_cache.digests({item.sample.image for item in usable}, cache, root)
    divided = _split(usable, split, test_share, seed, digests)
    yield from _overruled_split(usable, divided, split, table, columns)
    usable = divided
    questions = list(_questions(usable, choices, seed))
    yield from questions
    yield from _surplus(usable, questions)


def _refuse_settings(
    columns: Mapping[str, str | Sequence[str] | None], ask: Mapping[str, Group]
) -> None:
    """Raise ValueError for columns and groups of `data.ask` that are not said in full."""
    required = ("image", "modality", "label", "group")
    known = (*required, "patient", "split")
    for name in required:
        if not columns.get(name):
            raise ValueError(f"data.columns.{name} has no value; name the column of the {name}")
    if unknown := [name for name in columns if name not in known]:
        raise ValueError(f"data.columns.{unknown[0]} is unknown; known: {', '.join(known)}")
    for name, group in ask.items():
        if not isinstance(group, Mapping) or not group.get("question"):
            raise ValueError(f"data.ask.{name}={group!r}; needs a task and a question")
        if group.get("task") not in TASK_NAMES:
            raise ValueError(
                f"data.ask.{name}.task={group.get('task')!r}; known: {', '.join(TASK_NAMES)}"
            )


def _columns(
    table: csv_table.Table, columns: Mapping[str, str | Sequence[str] | None]
) -> dict[str, str]:
    """The column of each of our names that has one.

    Raises ValueError for a table of questions.
    """
    loosely = by_plain(table.names)
    found = {}
    for key, named in _several(columns).items():
        like = (loosely[plain(name)] for name in named if plain(name) in loosely)
        exact = next((name for name in named if name in table.names), None)
        found[key] = exact or next(like, named[0])
    if found["label"] not in table.names and {"question", "answer"} <= loosely.keys():
        raise ValueError(
            f"{table.path} looks like a table of questions (columns {', '.join(table.names)}), not "
            f"of labels: use data=hub data.hub={table.path}"
        )
    return found


def _several(columns: Mapping[str, str | Sequence[str] | None]) -> dict[str, list[str]]:
    """The names that a column may have, of our names that have any."""
    lists = {key: [c] if isinstance(c, str) else list(c or ()) for key, c in columns.items()}
    return {key: named for key, named in lists.items() if named}


def _renamed(
    table: str, given: Mapping[str, str | Sequence[str] | None], columns: Mapping[str, str]
) -> Iterator[Remark]:
    """Which columns are read that differ from those of the configuration in case or signs."""
    names = {
        column: names[0]
        for key, names in _several(given).items()
        if (column := columns[key]) not in names and plain(column) in map(plain, names)
    }
    if names:
        read = ", ".join(f"{column} as {name}" for column, name in names.items())
        yield Remark(table, -1, f"columns that are read under our names: {read}")


def _labelled_rows(
    root: Path,
    table: str,
    records: Sequence[csv_table.TableRow],
    columns: Mapping[str, str],
    ask: Mapping[str, Group],
    needs_split: bool,
) -> tuple[list[_Labelled], list[BadRow | LeftOut]]:
    """Rows of the groups to ask about, and the other rows."""
    groups = [row[columns["group"]] for row in records]
    _refuse_unknown_groups(root / table, ask, sorted(set(groups)))
    labelled: list[_Labelled] = []
    others: list[BadRow | LeftOut] = []
    for row, group in zip(records, groups, strict=True):
        if problem := csv_table.extra_problem(row):
            others.append(BadRow(table, row.line, problem))
            continue
        if group not in ask:
            reason = f"group {group!r} is not in data.ask"
            others.append(LeftOut(table, row.line, reason, "of a group not in data.ask"))
            continue
        if needs_split and not row[columns["split"]]:
            others.append(BadRow(table, row.line, rows.EMPTY_SPLIT.format(columns["split"])))
            continue
        try:
            labelled.append(_labelled(root, f"{table}:{row.line}", row, columns, group, ask[group]))
        except ValueError as error:
            others.append(BadRow(table, row.line, str(error)))
    return labelled, others


def _refuse_unknown_groups(table: Path, ask: Mapping[str, Group], names: Sequence[str]) -> None:
    """Refuse a group of `data.ask` without rows, unless it is optional and not like another."""
    absent = [group for group in ask if group not in names]
    others = {name.lower(): name for name in names if name not in ask}
    for group in absent:
        if near := difflib.get_close_matches(group.lower(), others, n=1):
            raise ValueError(
                f"{table}: no row of the group {group!r}, which data.ask names; did you mean "
                f"{others[near[0]]!r}? Correct one of them, or take {group!r} out of data.ask"
            )
    if len(absent) == len(ask):
        raise ValueError(
            f"{table}: no row of the groups {sorted(ask)}; its groups are {names}: "
            "name in data.ask those to ask about"
        )
    if required := [group for group in absent if not ask[group].get("optional")]:
        raise ValueError(
            f"{table}: no row of the groups {required}, which data.ask names; its groups are "
            f"{names}: correct the names, or take these groups out of data.ask"
        )


def _readable(
    labelled: Sequence[_Labelled], root: Path, cache: Path
) -> tuple[list[_Labelled], list[BadRow]]:
    """Rows whose image can be decoded, and the other rows."""
    problems = checks.image_problems({item.sample.image for item in labelled}, root, cache)
    readable = [item for item in labelled if item.sample.image not in problems]
    bad = [
        BadRow(*checks.file_and_row(sample), problems[sample.image], checks.UNREADABLE)
        for sample in (item.sample for item in labelled)
        if sample.image in problems
    ]
    return readable, bad


def _labelled(
    root: Path,
    name: str,
    row: Mapping[str, str],
    columns: Mapping[str, str],
    group: str,
    asked: Group,
) -> _Labelled:
    texts = {our: rows.text(row, columns[our], our) for our in ("image", "label", "modality")}
    image, label = texts["image"], _label(texts["label"])
    modality = modality_of(texts["modality"])
    if modality not in MODALITIES:
        raise ValueError(
            f"{columns['modality']!r} is {row[columns['modality']]!r}; known: "
            f"{', '.join(MODALITIES)}; {OTHER_MODALITY_NAMES}"
        )
    fold = row[columns["split"]] if "split" in columns else ""
    if (split := _FOLDS.get(fold.lower())) is None:
        known = ", ".join(map(repr, _FOLDS))
        raise ValueError(f"{columns['split']!r} is {fold!r}; known: {known}")
    sample = Sample(
        id=name,
        image=root / rows.inside(image, root),
        question=asked["question"].replace("{modality}", MODALITIES[modality]),
        options=(),
        answer=label,
        explanation=None,
        modality=modality,
        task=asked["task"],
        source=Path(name.rpartition(":")[0]).stem,
        patient=rows.patient(row[columns["patient"]]) if "patient" in columns else None,
        split=split,
    )
    return _Labelled(sample, group, sample.answer.lower())


_FOLDS = rows.FOLDS | {"": ""}


def _folds(
    labelled: Sequence[_Labelled], validation: str | None, column: str
) -> tuple[list[_Labelled], list[LeftOut]]:
    """Rows with those of the fold for validation where `validation` puts them, and rows left out
    where it is None; `column` says the fold of each."""
    kept, others = [], []
    reason = rows.left_out_of_validation(column)
    for item in labelled:
        if item.sample.split != "validation":
            kept.append(item)
        elif validation:
            kept.append(replace(item, sample=replace(item.sample, split=validation)))
        else:
            place = checks.file_and_row(item.sample)
            others.append(LeftOut(*place, reason, reason))
    return kept, others


def _overruled_split(
    usable: Sequence[_Labelled],
    divided: Sequence[_Labelled],
    how: str,
    table: str,
    columns: Mapping[str, str],
) -> Iterator[Remark]:
    """A warning where the column of folds is there and rows are on another side than it says."""
    before, after = ([item.sample for item in items] for items in (usable, divided))
    whose = f"the column {columns.get('split')!r}"
    if text := splits.overruled(before, after, how, whose):
        yield Remark(table, -1, text, is_warning=True)


def _label(written: str) -> str:
    """A label without what no reader sees: two that look alike are one label, not two options.

    Raises ValueError where it would read as several options.
    """
    seen = unicodedata.normalize("NFC", written.replace("_", " "))
    label = " ".join("".join(c for c in seen if unicodedata.category(c) != "Cf").split())
    refuse_glued([label])
    return label


def _usable(labelled: Sequence[_Labelled], min_images: int) -> tuple[list[_Labelled], list[BadRow]]:
    """Rows of labels with enough images, each image and label once; and the other rows."""
    images: dict[tuple[str, str, str], set[Path]] = defaultdict(set)
    for item in labelled:
        images[item.sample.modality, item.group, item.label].add(item.sample.image)
    labels = Counter((modality, group) for modality, group, _ in images)
    usable, bad, seen = [], [], set()
    for item in labelled:
        s = item.sample
        n = len(images[s.modality, item.group, item.label])
        repeated = (s.image, item.group, item.label) in seen
        seen.add((s.image, item.group, item.label))
        if repeated:
            count = "repeated"
            problem = f"repeats image and label {s.answer!r} of another row; keep one"
        elif labels[s.modality, item.group] < 2:
            count = "of the only label of their group"
            problem = (
                f"{s.answer!r} is the only label of {s.modality} images in group {item.group!r}: "
                "no other option to offer; add images of another label"
            )
        elif n < min_images:
            count = "of a label too rare"
            problem = (
                f"{s.answer!r} has {counted(n, f'{s.modality} image')}, fewer than data.min_images="
                f"{min_images}; add images, or lower it"
            )
        else:
            usable.append(item)
            continue
        bad.append(BadRow(*checks.file_and_row(s), problem, count))
    return usable, bad


def _split(
    labelled: Sequence[_Labelled], how: str, share: float, seed: int, digests: Mapping[Path, str]
) -> list[_Labelled]:
    """Split by image (and patient); each label is a cell, so that it is divided evenly."""
    if how not in ("published", "by_image", "by_patient"):
        raise ValueError(f"data.split={how!r} needs published files; set by_patient or by_image")
    stand_ins = [
        replace(item.sample, task=f"{item.group}/{item.label}", id=f"{place}")
        for place, item in enumerate(labelled)
    ]
    split = splits.split(stand_ins, how, test_share=share, seed=seed, image_digests=digests)
    split_of = {int(sample.id): sample.split for sample in split}
    return [
        replace(item, sample=replace(item.sample, split=split_of[place]))
        for place, item in enumerate(labelled)
    ]


def _questions(labelled: Sequence[_Labelled], choices: int, seed: int) -> Iterator[Sample]:
    spelling: dict[str, str] = {}  # one for each label, whatever the order of the rows
    labels_of: dict[tuple[Path, str], set[str]] = defaultdict(set)
    tables: dict[tuple[str, str, str], list[_Labelled]] = defaultdict(list)
    for item in sorted(labelled, key=lambda item: (str(item.sample.image), item.label)):
        written = item.sample.answer
        spelling[item.label] = min(spelling.get(item.label, written), written)
        labels_of[item.sample.image, item.group].add(item.label)
        tables[item.sample.modality, item.group, item.sample.split].append(item)
    for key, items in sorted(tables.items()):
        rng = random.Random(f"{seed}/{'/'.join(key)}")
        rng.shuffle(items)
        for members in _sets(items, labels_of, choices):
            first = rng.randrange(len(members))
            for place, item in enumerate(members):
                right = (first + place) % len(members)
                others = [spelling[other.label] for other in members if other is not item]
                rng.shuffle(others)
                options = (*others[:right], spelling[item.label], *others[right:])
                yield replace(item.sample, options=options, answer=letter_at(right))


def _surplus(labelled: Sequence[_Labelled], questions: Sequence[Sample]) -> Iterator[LeftOut]:
    """The rows that fit in no set."""
    ids = {sample.id for sample in questions}
    for sample in (item.sample for item in labelled if item.sample.id not in ids):
        reason = f"no image with another label is left in {sample.split} for a set of options"
        yield LeftOut(*checks.file_and_row(sample), reason, "surplus for balance")


def _sets(
    items: Sequence[_Labelled], labels_of: Mapping[tuple[Path, str], set[str]], choices: int
) -> Iterator[list[_Labelled]]:
    """Sets of up to `choices` rows of different labels, none true of another image of the set.

    Labels with most remaining rows come first, so that few rows remain.
    """
    remaining: dict[str, list[_Labelled]] = defaultdict(list)
    for item in items:
        remaining[item.label].append(item)
    while True:
        members: list[_Labelled] = []
        taken: set[str] = set()
        for label in sorted(remaining, key=lambda label: (-len(remaining[label]), label)):
            for item in remaining[label]:
                labels = labels_of[item.sample.image, item.group]
                if label not in taken and not any(other.label in labels for other in members):
                    members.append(item)
                    taken |= labels
                    break
            if len(members) == choices:
                break
        if len(members) < 2:
            return
        for item in members:
            remaining[item.label].remove(item)
            if not remaining[item.label]:
                del remaining[item.label]
        yield members
