"""Train and test: as published, without an image or patient in both, or joint for two families; and
validation, which is held back from train.

Pictures of one content are one image, whatever the names of their files.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medreason.console import counted
from medreason.samples import Sample

LOW_DATA = {"train": 600, "test": 300}
"""Rows of each modality in the low-data protocol. Source: KEPO, arXiv:2602.00400."""

DIVIDES_ANEW = ("by_image", "by_patient")
"""Values of `data.split` that overrule the split of the data set."""

_Divide = Callable[..., list[Sample]]
"""`split_by_group` of a share, seed and images."""


def split(
    samples: Sequence[Sample],
    how: str,
    *,
    test_share: float,
    seed: int,
    image_digests: Mapping[Path, str],
) -> list[Sample]:
    """The samples with `split` set as `data.split` says.

    `published` keeps the split of the files; files without one are split by image and patient.
    `image_digests` are of all images, or of none where `keeps_published` says so. Raises ValueError
    where the samples lack what the split needs.
    """
    if not samples:
        return []
    divide = functools.partial(
        split_by_group, test_share=test_share, seed=seed, image_digests=image_digests
    )
    match how:
        case "published":
            return _published(samples, divide)
        case "by_image":
            return divide(merged(samples), patients=False)
        case "by_patient":
            if not any(sample.patient for sample in samples):
                raise ValueError(
                    "data.split=by_patient: no row names a patient; set data.columns.patient to "
                    "the column of patients (data=hub, labelled_images), data.patients to their "
                    "table (data=med_r1), or data.split=by_image"
                )
            return _by_patient(merged(samples), divide)
        case "joint":
            return joint(samples)
        case "low_data":
            return low_data(_published(samples, divide), seed)
        case _:
            raise AssertionError(how)  # config.Handling knows no other


def keeps_published(samples: Iterable[Sample], how: str) -> bool:
    """Whether `split` divides no rows anew."""
    return how not in DIVIDES_ANEW and all(sample.split for sample in samples)


def overruled(before: Iterable[Sample], after: Iterable[Sample], how: str, whose: str) -> str:
    """That `data.split` divides anew what has a split of its own, which `whose` names, and how many
    rows change their side; empty where none does."""
    own = {sample.id: sample.split for sample in before}
    sizes = Counter(own.values())
    if not sizes["train"] or not sizes["test"]:  # it needs another split
        return ""
    pairs = Counter((own[sample.id], sample.split) for sample in after)
    moved = [
        f"{side} has {pairs[was, side]:,} of its {counted(sizes[was], f'{was} row')}"
        for was, side in itertools.product(("test", "validation", "train"), ("train", "test"))
        if was != side and pairs[was, side]
    ]
    if not moved:
        return ""
    return (
        f"data.split={how} overrules the split of {whose}: {', '.join(moved)}; "
        "data.split=published keeps it"
    )


def merged(samples: Sequence[Sample]) -> list[Sample]:
    """Each question about an image once, its cell merged from all rows that ask it.

    The published families list every question twice: once under its modality, once under its type.
    """
    unique: dict[tuple[object, ...], Sample] = {}
    for sample in samples:
        key = _question(sample)
        first = unique.setdefault(key, sample)
        cell = {
            name: getattr(sample, name)
            for name in ("modality", "task")
            if getattr(first, name) == "unknown" != getattr(sample, name)
        }
        if cell:
            unique[key] = replace(first, **cell)
    return list(unique.values())


def joint(samples: Sequence[Sample]) -> list[Sample]:
    """One clean split of two families of files that were split independently.

    Test: rows in the tests of both families. Train: rows in train files alone. The others are left
    out, since one family trains on what the other tests.
    """
    # (of the family of question types, split) of every row that asks a question
    places: dict[tuple[object, ...], set[tuple[bool, str]]] = defaultdict(set)
    for sample in samples:
        places[_question(sample)].add((sample.modality == "unknown", sample.split))
    both_tests = {(True, "test"), (False, "test")}
    if not any(place >= both_tests for place in places.values()):
        raise ValueError(
            "data.split=joint: no row is in the tests of both families; name files of both in "
            "data.files, e.g. data.files=['modality/*/*.json', 'question_type/*/*.json']"
        )
    split = []
    for sample in merged(samples):
        place = places[_question(sample)]
        if place >= both_tests:
            split.append(replace(sample, split="test"))
        elif {name for _, name in place} == {"train"}:
            split.append(replace(sample, split="train"))
    return split


def low_data(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """A random subset: at most LOW_DATA rows of each modality and split, in their order."""
    ids: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sample in samples:
        ids[sample.modality, sample.split].append(sample.id)
    selected: set[str] = set()
    for (modality, name), members in sorted(ids.items()):
        size = min(LOW_DATA.get(name, len(members)), len(members))  # all of validation
        selected.update(random.Random(f"{seed}/{modality}/{name}").sample(sorted(members), size))
    return [sample for sample in samples if sample.id in selected]


def split_by_group(
    samples: Sequence[Sample],
    *,
    test_share: float,
    seed: int,
    patients: bool = True,
    image_digests: Mapping[Path, str] | None = None,
) -> list[Sample]:
    """The samples in their order with `split` set, about `test_share` of each cell in test.

    Samples that share an image or, with `patients`, a patient, directly or through others, stay
    together; the share of each cell is met as well as that permits. Images of one digest are one;
    without digests, of one path. Neither the order of the rows nor the root changes the split.
    Raises ValueError where train or test would be empty.
    """
    if not 0 <= test_share <= 1:
        raise ValueError(f"data.test_share={test_share}; needs a number from 0 to 1")
    groups = _groups(samples, patients, _content(image_digests) if image_digests else _path)
    random.Random(seed).shuffle(groups)
    test = _fill(groups, test_share)
    if 0 < test_share < 1 and len(test) in (0, len(groups)):
        raise ValueError(
            f"data.test_share={test_share} of {counted(len(samples), 'sample')} in "
            f"{counted(len(groups), 'group')} that share no image and no patient leaves train or "
            "test empty; change data.test_share or add data"
        )
    held_out = {sample.id for index in test for sample in groups[index]}
    return [replace(s, split="test" if s.id in held_out else "train") for s in samples]


def hold_back(
    samples: Sequence[Sample], *, share: float, seed: int, image_digests: Mapping[Path, str]
) -> list[Sample]:
    """The samples in their order, about `share` of the training rows of each cell in validation.

    Training rows that share a patient or an image by its content, directly or through others, stay
    together; those of a cell that is all of one such group stay in train. Neither the order of the
    rows nor the paths of images change the choice, and no row of another split moves.
    """
    groups = _training_groups(samples, image_digests)
    undivided = _undivided(groups)
    groups = [group for group in groups if not undivided & {sample.cell for sample in group}]
    random.Random(seed).shuffle(groups)
    held_back = {sample.id for index in _fill(groups, share) for sample in groups[index]}
    return [replace(s, split="validation") if s.id in held_back else s for s in samples]


def undivided_cells(
    samples: Sequence[Sample], image_digests: Mapping[Path, str]
) -> set[tuple[str, str]]:
    """The cells whose training rows are all of one patient or image: no share divides them."""
    return _undivided(_training_groups(samples, image_digests))


def _undivided(groups: Sequence[Sequence[Sample]]) -> set[tuple[str, str]]:
    counts = Counter(cell for group in groups for cell in {sample.cell for sample in group})
    return {cell for cell, count in counts.items() if count == 1}


def _training_groups(
    samples: Sequence[Sample], image_digests: Mapping[Path, str]
) -> list[list[Sample]]:
    train = [sample for sample in samples if sample.split == "train"]
    content = _content(image_digests)
    return _groups(train, True, content, order=content)


def _by_patient(samples: Sequence[Sample], divide: _Divide) -> list[Sample]:
    """Patients who share a picture stay together, unless that leaves train or test empty: then the
    picture is in both, which the audit counts."""
    with contextlib.suppress(ValueError):
        return divide(samples)
    return divide(samples, image_digests=None)


def _published(samples: Sequence[Sample], divide: _Divide) -> list[Sample]:
    unsplit = [sample for sample in samples if not sample.split]
    if not unsplit:
        return list(samples)
    if len(unsplit) < len(samples):
        raise ValueError(
            f"{unsplit[0].id.rpartition(':')[0]} has no published split (_train.json, _test.json), "
            "other files have; set data.split=by_image or data.split=by_patient to split them "
            "together, or read them apart with data.files"
        )
    return _by_patient(samples, divide)


def _question(sample: Sample) -> tuple[object, ...]:
    return str(sample.image), sample.question, sample.options, sample.answer


def _path(sample: Sample) -> str:
    return str(sample.image)


def _content(image_digests: Mapping[Path, str]) -> Callable[[Sample], str]:
    return lambda sample: image_digests[sample.image]


def _groups(
    samples: Sequence[Sample],
    patients: bool,
    image_of: Callable[[Sample], str],
    order: Callable[[Sample], str] = _path,
) -> list[list[Sample]]:
    """Connected components of shared image (and patient), sorted by their first in `order`."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for sample in samples:
        image = root(("image", image_of(sample)))
        if patients and sample.patient is not None:
            parent[image] = root(("patient", sample.patient))
    groups = defaultdict(list)
    for sample in samples:
        groups[root(("image", image_of(sample)))].append(sample)
    return sorted(groups.values(), key=lambda group: min(map(order, group)))


def _fill(groups: list[list[Sample]], share: float) -> set[int]:
    """Indices of the test groups: groups move one by one while that brings cells nearer the share.

    Every move lowers the sum of squared differences, each relative to the size of its cell.
    """
    cells = [Counter(sample.cell for sample in group) for group in groups]
    total = Counter[tuple[str, str]]()
    for counts in cells:
        total.update(counts)
    excess = {cell: -share * count for cell, count in total.items()}  # of test rows
    test: set[int] = set()
    moved = True
    while moved:
        moved = False
        for index, counts in enumerate(cells):
            sign = -1 if index in test else 1
            change = sum(
                ((excess[cell] + sign * n) ** 2 - excess[cell] ** 2) / total[cell]
                for cell, n in sorted(counts.items())
            )
            if change < -1e-9:
                moved = True
                test ^= {index}
                for cell, n in counts.items():
                    excess[cell] += sign * n
    return test
