"""Any table of labelled images as balanced multiple-choice questions: how users bring their data.

Images of one modality and label group are put together by twos to fours with different labels, all
on one side of the split. The labels of such a set are the options of each of its questions, so each
option is right in exactly one of them, at a letter of its own: neither option strings nor letters
nor the set of options say anything, and whoever does not look at the image is at chance.
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
    """One row of the table: `sample` has its label as the answer and no options yet."""

    sample: Sample
    group: str
    label: str
    """In lower case with spaces for underscores: `No_tumor` and `no tumor` are one label."""


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

    `columns` says where image, modality, label, group and, where there are any, patient and split
    are found. `ask` maps the groups to be asked about to their `task` and `question`; rows of other
    groups are left alone. Labels with fewer than `min_images` images in their group and modality
    are bad rows. Images that fit in no set are not asked about.
    """
    root = rows.folder(root)
    named = {key: column for key, column in columns.items() if column}
    found = rows.table(root / table, named.values(), separator=separator, encoding=encoding)
    asked = [(i, row) for i, row in enumerate(found) if row[named["group"]] in ask]
    if not asked:
        groups = sorted({row[named["group"]] for row in found})
        raise ValueError(
            f"{root / table}: no row of the groups {sorted(ask)}; its groups are {groups}: "
            "say in data.ask which to ask about"
        )
    labelled: list[_Labelled] = []
    for index, row in asked:
        try:
            labelled.append(_labelled(root, f"{table}:{index}", row, named, ask))
        except ValueError as error:
            yield BadRow(table, index, str(error))
    kept, bad = _frequent(labelled, min_images)
    yield from bad
    yield from _questions(_split(kept, split, test_share, seed), ask, choices, seed)


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


def _frequent(
    labelled: Sequence[_Labelled], min_images: int
) -> tuple[list[_Labelled], list[BadRow]]:
    """Rows of labels with enough images to ask about, each image and label once; and the others."""
    images: dict[tuple[str, str, str], set[Path]] = defaultdict(set)
    for item in labelled:
        images[item.sample.modality, item.group, item.label].add(item.sample.image)
    labels = Counter((modality, group) for modality, group, _ in images)
    kept, bad, seen = [], [], set()
    for item in labelled:
        s = item.sample
        n = len(images[s.modality, item.group, item.label])
        again = (s.image, item.group, item.label) in seen
        seen.add((s.image, item.group, item.label))
        if again:
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
            kept.append(item)
            continue
        file, _, row = s.id.rpartition(":")
        bad.append(BadRow(file, int(row), problem))
    return kept, bad


def _split(labelled: Sequence[_Labelled], how: str, share: float, seed: int) -> list[_Labelled]:
    """Split by image (and patient), with each label as a cell of its own to be divided evenly."""
    if how not in ("published", "by_image", "by_patient"):
        raise ValueError(f"data.split={how!r} needs published files; set by_patient or by_image")
    stand_ins = [
        replace(item.sample, task=f"{item.group}/{item.label}", id=f"{place}")
        for place, item in enumerate(labelled)
    ]
    sides = {int(s.id): s.split for s in splits.split(stand_ins, how, test_share=share, seed=seed)}
    return [
        replace(item, sample=replace(item.sample, split=sides[place]))
        for place, item in enumerate(labelled)
    ]


def _questions(
    labelled: Sequence[_Labelled], ask: Mapping[str, Mapping[str, str]], choices: int, seed: int
) -> Iterator[Sample]:
    shown: dict[str, str] = {}  # one spelling of each label, whatever the order of the rows
    labels_of: dict[tuple[Path, str], set[str]] = defaultdict(set)
    tables: dict[tuple[str, str, str], list[_Labelled]] = defaultdict(list)
    for item in sorted(labelled, key=lambda item: (str(item.sample.image), item.label)):
        spelling = item.sample.answer
        shown[item.label] = min(shown.get(item.label, spelling), spelling)
        labels_of[item.sample.image, item.group].add(item.label)
        tables[item.sample.modality, item.group, item.sample.split].append(item)
    for key, items in sorted(tables.items()):
        draw = random.Random(f"{seed}/{'/'.join(key)}")
        draw.shuffle(items)
        for members in _sets(items, labels_of, choices):
            first = draw.randrange(len(members))
            for place, item in enumerate(members):
                letter = (first + place) % len(members)
                others = [shown[other.label] for other in members if other is not item]
                draw.shuffle(others)
                options = (*others[:letter], shown[item.label], *others[letter:])
                yield replace(item.sample, options=options, answer=letter_at(letter))


def _sets(
    items: Sequence[_Labelled], labels_of: Mapping[tuple[Path, str], set[str]], choices: int
) -> Iterator[list[_Labelled]]:
    """Sets of up to `choices` rows of different labels, no image of which has another's label.

    Labels with most rows left come first, so that few are left over.
    """
    left: dict[str, list[_Labelled]] = defaultdict(list)
    for item in items:
        left[item.label].append(item)
    while True:
        members: list[_Labelled] = []
        taken: set[str] = set()
        for label in sorted(left, key=lambda label: (-len(left[label]), label)):
            for item in left[label]:
                theirs = labels_of[item.sample.image, item.group]
                if label not in taken and not any(other.label in theirs for other in members):
                    members.append(item)
                    taken |= theirs
                    break
            if len(members) == choices:
                break
        if len(members) < 2:
            return
        for item in members:
            left[item.label].remove(item)
            if not left[item.label]:
                del left[item.label]
        yield members
