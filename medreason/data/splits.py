"""Train and test: as published, without an image or a patient in both, or both families' test."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from medreason.samples import Sample

LOW_DATA = {"train": 600, "test": 300}
"""Rows of each modality in the low-data protocol. Source: PAPERS section 1 "Recipe", KEPO."""


def split(samples: Sequence[Sample], how: str, *, test_share: float, seed: int) -> list[Sample]:
    """The samples with `split` set as `data.split` says.

    `published` keeps what file names say; where they say nothing, the samples are split by image
    and patient. Raises ValueError where the samples do not have what the split needs.
    """
    if not samples:
        return []
    match how:
        case "published":
            return _published(samples, test_share, seed)
        case "by_image":
            return split_by_group(merged(samples), test_share=test_share, seed=seed, patients=False)
        case "by_patient":
            if not any(sample.patient for sample in samples):
                raise ValueError(
                    "data.split=by_patient: no row names a patient; name a table in data.patients "
                    "where the data set takes one, or set data.split=by_image"
                )
            return split_by_group(merged(samples), test_share=test_share, seed=seed)
        case "joint":
            return joint(samples)
        case "low_data":
            return low_data(_published(samples, test_share, seed), seed)
        case _:
            raise AssertionError(how)  # config.Handling knows no other


def merged(samples: Sequence[Sample]) -> list[Sample]:
    """Rows that ask the same of the same image once, with what each file knows of their cell.

    For the published families, which list every question twice: once under its modality, once
    under its type.
    """
    first: dict[tuple[object, ...], Sample] = {}
    for sample in samples:
        key = _question(sample)
        known = first.setdefault(key, sample)
        cell = {
            name: getattr(sample, name)
            for name in ("modality", "task")
            if getattr(known, name) == "unknown" != getattr(sample, name)
        }
        if cell:
            first[key] = replace(known, **cell)
    return list(first.values())


def joint(samples: Sequence[Sample]) -> list[Sample]:
    """One clean split of two families of files that were split independently.

    Test: rows in the test of both families. Train: rows in a train file and in no test file. The
    others are left out, since one family trains on what the other tests.
    """
    families: dict[tuple[object, ...], set[tuple[bool, str]]] = defaultdict(set)
    for sample in samples:
        families[_question(sample)].add((sample.modality == "unknown", sample.split))
    both_tests = {(True, "test"), (False, "test")}
    if not any(found >= both_tests for found in families.values()):
        raise ValueError(
            "data.split=joint: no row is in the tests of both families; name files of both in "
            "data.files, e.g. data.files=['modality/*/*.json', 'question_type/*/*.json']"
        )
    kept = []
    for sample in merged(samples):
        found = families[_question(sample)]
        if found >= both_tests:
            kept.append(replace(sample, split="test"))
        elif {side for _, side in found} == {"train"}:
            kept.append(replace(sample, split="train"))
    return kept


def low_data(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """At most LOW_DATA rows of each modality and side, drawn by the seed, in their order."""
    members: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        members[sample.modality, sample.split].append(sample)
    drawn: set[str] = set()
    for (modality, side), rows in sorted(members.items()):
        ids = sorted(row.id for row in rows)
        size = min(LOW_DATA[side], len(ids))
        drawn.update(random.Random(f"{seed}/{modality}/{side}").sample(ids, size))
    return [sample for sample in samples if sample.id in drawn]


def split_by_group(
    samples: Sequence[Sample], *, test_share: float, seed: int, patients: bool = True
) -> list[Sample]:
    """The samples in their order with `split` set, about `test_share` of each cell in test.

    Samples that share an image or, with `patients`, a patient, directly or through others, stay
    together; cells are met as well as that permits. The same for every order of the rows and place
    of the root. Raises ValueError where a share between 0 and 1 leaves one side empty.
    """
    if not 0 <= test_share <= 1:
        raise ValueError(f"test_share={test_share}; needs a number from 0 to 1")
    groups = _groups(samples, patients)
    random.Random(seed).shuffle(groups)
    test = _fill(groups, test_share)
    if 0 < test_share < 1 and len(test) in (0, len(groups)):
        raise ValueError(
            f"test_share={test_share} of {len(samples)} samples in {len(groups)} groups that share"
            " no image and no patient leaves train or test empty; change test_share or add data"
        )
    held_out = {sample.id for index in test for sample in groups[index]}
    return [replace(s, split="test" if s.id in held_out else "train") for s in samples]


def _published(samples: Sequence[Sample], test_share: float, seed: int) -> list[Sample]:
    unsplit = [sample for sample in samples if not sample.split]
    if not unsplit:
        return list(samples)
    if len(unsplit) < len(samples):
        raise ValueError(
            f"{unsplit[0].id.rpartition(':')[0]} has no published split (_train.json, _test.json), "
            "other files have; set data.split=by_image or data.split=by_patient to split them "
            "together, or read them apart with data.files"
        )
    return split_by_group(samples, test_share=test_share, seed=seed)


def _question(sample: Sample) -> tuple[object, ...]:
    return str(sample.image), sample.question, sample.options, sample.answer


def _groups(samples: Sequence[Sample], patients: bool) -> list[list[Sample]]:
    """Connected components of shared image (and patient), sorted by their first image."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for sample in samples:
        image = root(("image", str(sample.image)))
        if patients and sample.patient is not None:
            parent[image] = root(("patient", sample.patient))
    groups = defaultdict(list)
    for sample in samples:
        groups[root(("image", str(sample.image)))].append(sample)
    return sorted(groups.values(), key=lambda group: min(str(sample.image) for sample in group))


def _fill(groups: list[list[Sample]], share: float) -> set[int]:
    """Indices of the test groups: moved one by one while that brings the cells nearer to the share.

    The sum of squared misses, each relative to the size of its cell, falls with every move.
    """
    cells = [Counter(sample.cell for sample in group) for group in groups]
    total = Counter[tuple[str, str]]()
    for counts in cells:
        total.update(counts)
    miss = {cell: -share * count for cell, count in total.items()}
    test: set[int] = set()
    moved = True
    while moved:
        moved = False
        for index, counts in enumerate(cells):
            sign = -1 if index in test else 1
            change = sum(
                ((miss[cell] + sign * n) ** 2 - miss[cell] ** 2) / total[cell]
                for cell, n in sorted(counts.items())
            )
            if change < -1e-9:
                moved = True
                test ^= {index}
                for cell, n in counts.items():
                    miss[cell] += sign * n
    return test
