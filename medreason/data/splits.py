"""Train and test without an image or a patient in both, for files without a published split."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from medreason.samples import Sample


def split_by_group(samples: Sequence[Sample], *, test_share: float, seed: int) -> list[Sample]:
    """The samples in their order with `split` set, about `test_share` of each cell in test.

    Samples that share an image or a patient, directly or through others, stay together; cells are
    met as well as that permits. The same for every order of the rows and place of the root. Raises
    ValueError where a share between 0 and 1 leaves one side empty.
    """
    if not 0 <= test_share <= 1:
        raise ValueError(f"test_share={test_share}; needs a number from 0 to 1")
    groups = _groups(samples)
    random.Random(seed).shuffle(groups)
    test = _fill(groups, test_share)
    if 0 < test_share < 1 and len(test) in (0, len(groups)):
        raise ValueError(
            f"test_share={test_share} of {len(samples)} samples in {len(groups)} groups that share"
            " no image and no patient leaves train or test empty; change test_share or add data"
        )
    held_out = {sample.id for index in test for sample in groups[index]}
    return [replace(s, split="test" if s.id in held_out else "train") for s in samples]


def _groups(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Connected components of shared image and patient, sorted by their first image."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for sample in samples:
        image = root(("image", str(sample.image)))
        if sample.patient is not None:
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
