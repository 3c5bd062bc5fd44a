"""Data sets: one module each, whose `load` gives `Sample`."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medreason import config as configuration
from medreason.config import Config
from medreason.samples import Sample


def load(spec: dict[str, Any], cache: Path) -> tuple[Sample, ...]:
    """All samples of the data set a config names; loaded once in a process.

    Raises:
        ValueError: the data cannot be used; the message names file, row and remedy.
    """
    return _load(json.dumps(spec, sort_keys=True), cache)


@functools.lru_cache(maxsize=2)
def _load(spec_json: str, cache: Path) -> tuple[Sample, ...]:
    spec = json.loads(spec_json)
    function = configuration.target(spec["_target_"])
    takes_cache = "cache" in inspect.signature(function).parameters
    samples = configuration.call(spec, **({"cache": cache} if takes_cache else {}))
    _refuse_same_ids(samples)
    return tuple(samples)


def trained_on(config: Config, samples: Iterable[Sample]) -> list[Sample]:
    """The training rows the configuration selects; none for a start model."""
    if config.method.algorithm == "none":
        return []
    return select(samples, "train", config.modality.members, config.task.members)


def tested_on(config: Config, samples: Iterable[Sample]) -> list[Sample]:
    """The test rows the configuration selects."""
    chosen = select(samples, "test", config.evaluation.modalities, config.evaluation.tasks)
    return at_most(chosen, config.evaluation.samples_per_cell, config.seed)


def read_for_prior(config: Config, samples: Iterable[Sample]) -> list[Sample]:
    """The rows whose options the question-only prior counts: what was trained on.

    A start model was trained on none of them and is measured against all.
    """
    if config.method.algorithm == "none":
        return [sample for sample in samples if sample.split == "train"]
    return trained_on(config, samples)


def select(
    samples: Iterable[Sample], split: str, modalities: Sequence[str], tasks: Sequence[str]
) -> list[Sample]:
    """The samples of one split that lie in these cells."""
    return [s for s in samples if s.split == split and s.modality in modalities and s.task in tasks]


def at_most(samples: Iterable[Sample], per_cell: int | None, seed: int) -> list[Sample]:
    """At most `per_cell` samples of each cell, drawn by the seed, in their order."""
    if per_cell is None:
        return list(samples)
    cells: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        cells.setdefault(sample.cell, []).append(sample)
    kept: list[Sample] = []
    for cell, members in cells.items():
        rng = np.random.default_rng([seed, *"/".join(cell).encode()])
        chosen = rng.permutation(len(members))[:per_cell]
        kept += [members[i] for i in sorted(chosen)]
    return kept


def digest(samples: Iterable[Sample]) -> str:
    """A hash of what the samples say and of their images' names and sizes, wherever they lie."""
    state = hashlib.sha256()
    sizes: dict[Path, int] = {}
    for s in samples:
        if s.image not in sizes:
            sizes[s.image] = s.image.stat().st_size if s.image.exists() else -1
        row = (s.id, s.problem, s.answer, s.explanation, *s.cell, s.patient, s.split)
        state.update(repr((row, s.image.name, sizes[s.image])).encode())
    return state.hexdigest()[:16]


def _refuse_same_ids(samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise ValueError(f"two samples have the id {sample.id!r}; is a file listed twice?")
        seen.add(sample.id)
