"""Validation questions: which a run asks while it trains, and which settings leave it none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from medreason import data
from medreason.config import Config
from medreason.console import counted
from medreason.data import splits
from medreason.samples import Sample

IN_DOMAIN = "validation"
TRANSFER = "transfer"
"""Questions of the cells that are trained on, and those of the others. Metrics begin with these."""


def questions(config: Config, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """IN_DOMAIN (and TRANSFER) -> the questions that a run asks while it trains; empty where it
    asks none.

    At most `validation.questions` of each, chosen by seed and content: neither the order of the
    rows nor the paths of images change the choice.
    """
    if config.validation.every is None or config.method.algorithm == "none":
        return {}
    sides = {IN_DOMAIN: in_domain(config, samples)}
    if config.validation.name == "transfer":
        own = {sample.id for sample in sides[IN_DOMAIN]}
        others = [s for s in samples if s.split == "validation" and s.id not in own]
        sides[TRANSFER] = others
    return {side: _at_most(config, members) for side, members in sides.items()}


def in_domain(config: Config, samples: Sequence[Sample]) -> list[Sample]:
    """All validation rows of the cells that the run trains on."""
    return data.select(samples, "validation", config.modality.members, config.task.members)


def _at_most(config: Config, samples: Sequence[Sample]) -> list[Sample]:
    """At most `validation.questions` of the samples, in their order."""
    images = data.image_digests(config.data, config.folder / "cache", samples)

    def order(sample: Sample) -> tuple[str, str]:
        content = data.question_digest(sample, images[sample.image])
        drawn = hashlib.sha256(f"{config.validation.seed}/{content}".encode()).hexdigest()
        return drawn, sample.id

    chosen = {sample.id for sample in sorted(samples, key=order)[: config.validation.questions]}
    return [sample for sample in samples if sample.id in chosen]


def digest(config: Config, asked: dict[str, list[Sample]]) -> str:
    """A hash of the questions that a run asks; empty where it asks none."""
    if not asked:
        return ""
    members = [sample for side in asked.values() for sample in side]
    images = data.image_digests(config.data, config.folder / "cache", members)
    return data.digest(members, images)


def refuse_unusable(config: Config, samples: Sequence[Sample]) -> None:
    """Raise ValueError where a run has nothing to validate on, or nothing left to train on."""
    settings = config.validation
    if not settings.is_on or config.method.algorithm == "none":
        return
    if settings.source == "train":
        _refuse_share(config, samples)
    if not in_domain(config, samples):
        remedy = (
            "all rows of each cell are of one patient or one image, which no share divides; choose "
            "other cells, or validation=none"
            if settings.source == "train"
            else "set validation.source=train, which holds rows back from train, or choose other "
            "cells"
        )
        raise ValueError(
            f"validation={settings.name}: no validation row is in modality={config.modality.name} "
            f"task={config.task.name}; {remedy}"
        )
    updates = config.updates(len(data.trained_on(config, samples)))
    if (every := settings.given_every) and every > updates:
        raise ValueError(
            f"validation.every={every} is beyond the {counted(updates, 'update')} of this run: "
            "nothing would be validated; set validation.every=auto, or validation.every=null"
        )


def notes(config: Config, samples: Sequence[Sample]) -> Iterator[str]:
    """Sentences about cells that are trained on and not validated."""
    if config.validation.is_on and config.method.algorithm != "none":
        trained = {sample.cell for sample in data.trained_on(config, samples)}
        for cell in sorted(trained - {sample.cell for sample in in_domain(config, samples)}):
            yield f"{'/'.join(cell)} is trained on and has no validation row"


def _refuse_share(config: Config, samples: Sequence[Sample]) -> None:
    """Raise ValueError where the share leaves a cell that can be divided without a side."""
    before = [replace(s, split="train") if s.split == "validation" else s for s in samples]
    train = [sample for sample in before if sample.split == "train"]
    images = data.image_digests(config.data, config.folder / "cache", train)
    undivided = splits.undivided_cells(train, images)
    selected = data.select(before, "train", config.modality.members, config.task.members)
    cells = {sample.cell for sample in selected} - undivided
    share, seed = config.validation.share, config.validation.seed
    if not (empty := _without_a_side(samples, cells)):
        return
    cell, side = empty
    for hundredths in sorted(range(1, 100), key=lambda n: abs(n / 100 - share)):
        other = hundredths / 100
        divided = splits.hold_back(train, share=other, seed=seed, image_digests=images)
        if not _without_a_side(divided, cells):
            remedy = f"validation.share={other} is the nearest that does not"
            break
    else:
        remedy = "no share does otherwise; choose fewer cells, or validation=none"
    raise ValueError(
        f"validation.share={share} leaves modality={cell[0]} task={cell[1]} without {side} rows; "
        f"{remedy}"
    )


def _without_a_side(
    samples: Sequence[Sample], cells: set[tuple[str, str]]
) -> tuple[tuple[str, str], str] | None:
    """(cell, side) of the first cell that lacks train or validation rows."""
    counts = Counter((sample.cell, sample.split) for sample in samples)
    empty = ((c, s) for c in sorted(cells) for s in ("validation", "train") if not counts[c, s])
    return next(empty, None)
