"""A table of labelled images as balanced multiple-choice questions: how users bring their data.

Sets of two to four images of one modality, label group and split, each with another label, are
asked about with the same options: their labels. So each option is right for exactly one image of
the set, each time at another letter. Neither option strings nor letters nor the set of options tell
anything, and the options-only baseline is at chance.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medreason.data import rows, splits
from medreason.data.names import modality_of
from medreason.data.rows import BadRow, Row
from medreason.samples import MODALITIES, Sample, letter_at


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
    columns: Mapping[str, str | None],
    ask: Mapping[str, Mapping[str, str]],
    *,
    choices: int = 4,
    min_images: int = 2,
    separator: str = ",",
    encoding: str = "utf-8-sig",
    split: str,
    test_share: float,
    seed: int,
) -> Iterator[Row]:
    """Questions about the images of a CSV file below the root.

    `columns` names the columns of image, modality, label, group and, optionally, patient and split.
    `ask` maps a label group to its `task` and `question`; rows of other groups are left out. Labels
    with fewer than `min_images` images in their group and modality make bad rows. An image that
    fits in no set has no question.
    """
    root = rows.folder(root)
    columns = {key: column for key, column in columns.items() if column}
    records = rows.table(root / table, columns.values(), separator=separator, encoding=encoding)
    selected = [(i, row) for i, row in enumerate(records) if row[columns["group"]] in ask]
    if not selected:
        groups = sorted({row[columns["group"]] for row in records})
        raise ValueError(
            f"{root / table}: no row of the groups {sorted(ask)}; its groups are {groups}: "
            "name in data.ask those to ask about"
        )
    labelled: list[_Labelled] = []
    for index, row in selected:
        try:
            labelled.append(_labelled(root, f"{table}:{index}", row, columns, ask))
        except ValueError as error:
            yield BadRow(table, index, str(error))
    usable, bad = _usable(labelled, min_images)
    yield from bad
    yield from _questions(_split(usable, split, test_share, seed), choices, seed)


def _labelled(
    root: Path,
    name: str,
    row: Mapping[str, str],
    columns: Mapping[str, str],
    ask: Mapping[str, Mapping[str, str]],
) -> _Labelled:
    image, label = (rows.text(row, columns[key]).strip() for key in ("image", "label"))
    modality = modality_of(rows.text(row, columns["modality"]))
    if modality not in MODALITIES:
        raise ValueError(
            f"{columns['modality']!r} is {row[columns['modality']]!r}; known: "
            f"{', '.join(MODALITIES)}"
        )
    group = row[columns["group"]]
    split = (row[columns["split"]] or "").strip() if "split" in columns else ""
    if split not in ("", "train", "test"):
        raise ValueError(f"{columns['split']!r} is {split!r}; known: 'train', 'test', ''")
    sample = Sample(
        id=name,
        image=root / rows.inside(image),
        question=ask[group]["question"].format(modality=MODALITIES[modality]),
        options=(),
        answer=label.replace("_", " "),
        explanation=None,
        modality=modality,
        task=ask[group]["task"],
        source=Path(name.rpartition(":")[0]).stem,
        patient=(row[columns["patient"]] or "").strip() or None if "patient" in columns else None,
        split=split,
    )
    return _Labelled(sample, group, sample.answer.lower())


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
            problem = f"repeats image and label {s.answer!r} of another row; keep one"
        elif labels[s.modality, item.group] < 2:
            problem = (
                f"{s.answer!r} is the only label of {s.modality} images in group {item.group!r}: "
                "no other option to offer; add images of another label"
            )
        elif n < min_images:
            problem = (
                f"{s.answer!r} has {n} {s.modality} images, fewer than data.min_images="
                f"{min_images}; add images, or lower it"
            )
        else:
            usable.append(item)
            continue
        file, _, row = s.id.rpartition(":")
        bad.append(BadRow(file, int(row), problem))
    return usable, bad


def _split(labelled: Sequence[_Labelled], how: str, share: float, seed: int) -> list[_Labelled]:
    """Split by image (and patient); each label is a cell, so that it is divided evenly."""
    if how not in ("published", "by_image", "by_patient"):
        raise ValueError(f"data.split={how!r} needs published files; set by_patient or by_image")
    stand_ins = [
        replace(item.sample, task=f"{item.group}/{item.label}", id=f"{place}")
        for place, item in enumerate(labelled)
    ]
    split = splits.split(stand_ins, how, test_share=share, seed=seed)
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
