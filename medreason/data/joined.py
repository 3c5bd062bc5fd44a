"""Several data sets as one: trained on some, tested on others, of which no image was trained on."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medreason.config import function, targets
from medreason.data import checks, image_cache, rows
from medreason.data.rows import LeftOut, Loaded, Remark, Row
from medreason.samples import Sample


def read(
    root: Path | str | None,
    sets: Mapping[str, Mapping[str, Any]],
    train: Sequence[str],
    test: Sequence[str],
    *,
    cache: Path,
    train_rows: int | None = None,
    seed: int = 0,
) -> Iterator[Row]:
    """Training rows of the sets in `train` and test rows of those in `test`.

    Each set is read by its own function from the folder of its name below the root. Rows of a set
    that is in `test` alone are left out where a training row shows their image: the same picture by
    content, or by its name in SLAKE (xmlab12), of whose images Silvar-Med is made. `train_rows`
    takes so many training rows at random by the seed; a larger number has those of a smaller one.
    Raises ValueError for a set that cannot be read.
    """
    root = rows.folder(root)
    if unknown := sorted({*train, *test} - {*sets}):
        raise ValueError(f"data.sets has {', '.join(sets)}, and data.train or test {unknown[0]!r}")
    names = [*dict.fromkeys([*train, *test])]
    _refuse_missing(root, names)
    read_rows = [(name, row) for name in names for row in _rows(root, name, sets[name])]
    training = _of_side(read_rows, "train", train)
    if train_rows is not None and len(training) < train_rows:
        yield Remark(", ".join(train), -1, f"{len(training)} training rows, not {train_rows}")
    random.Random(seed).shuffle(training)
    training = training[:train_rows]
    trained_on = {sample.id for sample in training}
    asked = _of_side(read_rows, "test", {*test} - {*train})
    seen = _same_image(training, asked, root, cache)
    for name, row in read_rows:
        if not isinstance(row, Sample) or row.id in trained_on:
            yield row
        elif row.id in seen:
            yield _left_out(row, "a training row shows its image", "about images of training rows")
        elif row.split == "test" and name in test:
            yield row
        else:
            yield _left_out(row, f"{row.split} row of {name}", "neither trained on nor asked here")


def _refuse_missing(root: Path, names: Sequence[str]) -> None:
    """Raise ValueError unless each set has its folder."""
    if missing := [name for name in names if not (root / name).is_dir()]:
        raise ValueError(
            f"data.root={root} has no {_folders(missing)}; set data.root to the folder that holds "
            f"{_folders(names)}"
        )


def _folders(names: Sequence[str]) -> str:
    return ", ".join(f"{name}/" for name in names)


def _rows(root: Path, name: str, spec: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one set, their files named from the common root."""
    reader = dict(spec) | {"root": str(root / name)}
    targets.check(f"data.sets.{name}", reader)
    loaded = checks.with_release_named(Loaded.of(function(reader)()), reader)
    for row in (*loaded.samples, *loaded.bad_rows, *loaded.left_out, *loaded.remarks):
        if isinstance(row, Sample):
            yield replace(row, id=f"{name}/{row.id}")
        else:
            yield replace(row, file=f"{name}/{row.file}")


def _of_side(
    read_rows: Sequence[tuple[str, Row]], side: str, names: Collection[str]
) -> list[Sample]:
    """The samples of one split of the sets with these names."""
    samples = [row for name, row in read_rows if name in names and isinstance(row, Sample)]
    return [sample for sample in samples if sample.split == side]


def _same_image(
    training: Sequence[Sample], asked: Sequence[Sample], root: Path, cache: Path
) -> set[str]:
    """Ids of those samples of `asked` whose image a sample of `training` shows."""
    images = {sample.image for sample in (*training, *asked)}
    digests = image_cache.digests(images, cache, root)
    names = {name for sample in training for name in _slake_names(sample)}
    contents = {digests[sample.image] for sample in training}
    return {
        sample.id
        for sample in asked
        if digests[sample.image] in contents or names & _slake_names(sample)
    }


def _slake_names(sample: Sample) -> set[str]:
    return {*re.findall(r"xmlab\d+", sample.image.as_posix())}


def _left_out(sample: Sample, reason: str, count: str) -> LeftOut:
    return LeftOut(*checks.file_and_row(sample), reason, count)
