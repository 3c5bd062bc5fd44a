"""Answers and reasoning beside each other: arms trained on the same cells, over all their seeds.

The reasoning score is the overlap with the reference explanation (`scores.reasoning_similarity`),
taken of every arm alike, whatever it was rewarded for.
"""

from __future__ import annotations

import statistics as plain
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from medreason.metrics import Metric
from medreason.report import comparisons, matrices
from medreason.report.matrices import Arm
from medreason.report.runs import Cell, Run
from medreason.stats import Difference, holm, paired_difference, sign_flip

_SCORES = {"correct": "accuracy", Metric.REASONING_SIMILARITY: "reasoning"}
_WIDTH = 140  # of the Markdown tables, which are not to be wrapped
_LEVELS = "Right answers and overlap of the reasoning with the reference explanation, in percent"
_CHANGES = "a minus b in percent points, paired by question; p_holm: by Holm over all rows"

Scores = dict[int, dict[str, float]]
"""Seed -> sample -> score."""


def write(runs: Sequence[Run], target: Path) -> list[Path]:
    """`reasoning.md`, and its two tables as CSV and Parquet; nothing where runs have no reasoning
    score, or were trained on different cells, for which there are the matrices."""
    arms = matrices.arms(runs)
    trained = {frozenset(run.trained_on) for arm in arms if not arm.untrained for run in arm.runs}
    if len(trained) != 1 or not all(_has_reasoning(run) for arm in arms for run in arm.runs):
        return []
    cells = set(next(iter(trained)))
    found = {
        (arm.name, where, score): values
        for arm in arms
        for where, inside in (("in-domain", True), ("held-out", False))
        for score in _SCORES
        if (values := _scores(arm, cells, inside, score))
    }
    levels = [_level(key, values) for key, values in found.items()]
    changes = [
        _change(a.name, b.name, where, score, mine, found[b.name, where, score])
        for a, b in comparisons.pairs(arms)
        for (name, where, score), mine in found.items()
        if name == a.name and (b.name, where, score) in found
    ]
    adjusted = holm([row["p"] for row in changes])
    changes = [row | {"p_holm": p} for row, p in zip(changes, adjusted, strict=True)]
    page = target / "reasoning.md"
    with page.open("w", encoding="utf-8") as file:
        for title, rows in ((_LEVELS, levels), (_CHANGES, changes)):
            print(f"{title}\n", file=file)
            Console(file=file, width=_WIDTH).print(_table(rows))
    written = matrices.write(levels, target / "reasoning")
    return [page, *written, *matrices.write(changes, target / "reasoning-differences")]


def _has_reasoning(run: Run) -> bool:
    """Predictions of older runs have no such column; their figures have no mean of it."""
    return run.overall.get(Metric.REASONING_SIMILARITY) is not None


def _scores(arm: Arm, cells: set[Cell], inside: bool, score: str) -> Scores:
    found: Scores = {}
    for run in arm.runs:
        assert run.config
        table = pq.read_table(
            run.evaluation / "predictions.parquet",
            columns=["sample", "modality", "task", score],
            filters=[("control", "==", "original")],
        )
        values = {
            row["sample"]: float(row[score])
            for row in table.to_pylist()
            if ((row["modality"], row["task"]) in cells) == inside and row[score] is not None
        }
        if values:
            found[run.config.seed] = values
    return found


def _level(key: tuple[str, str, str], values: Scores) -> dict[str, Any]:
    arm, where, score = key
    means = _over_seeds(values)
    found = paired_difference([*means.values()], [0.0] * len(means), seed=0)
    each = [100 * plain.fmean(of_seed.values()) for of_seed in values.values()]
    return {"arm": arm, "where": where, "score": _SCORES[score], "n": len(means)} | _ends(
        found, each
    )


def _change(a: str, b: str, where: str, score: str, mine: Scores, theirs: Scores) -> dict[str, Any]:
    """Arm a minus arm b: means over seeds, paired by question, p by flipped signs; and seed by seed
    where both have it (a start model has one seed, which then stands beside each)."""
    x, y = _over_seeds(mine), _over_seeds(theirs)
    shared = [sample for sample in x if sample in y]
    found = paired_difference([x[s] for s in shared], [y[s] for s in shared], seed=0)
    p = sign_flip([x[s] - y[s] for s in shared], seed=0)
    each = []
    for seed, answers in mine.items():
        other = theirs.get(seed) or next(iter(theirs.values()))
        each.append(100 * plain.fmean(answers[s] - other[s] for s in shared))
    row = {"a": a, "b": b, "where": where, "score": _SCORES[score], "n": len(shared)}
    return row | _ends(found, each) | {"p": p}


def _over_seeds(values: Scores) -> dict[str, float]:
    """Mean score of each question that every seed has."""
    samples = set.intersection(*(set(of_seed) for of_seed in values.values()))
    return {s: plain.fmean(of_seed[s] for of_seed in values.values()) for s in sorted(samples)}


def _ends(found: Difference, each: Sequence[float]) -> dict[str, Any]:
    """Of 100: mean, its 95 % interval by a bootstrap over questions, and each seed's own value."""
    return {
        "mean": 100 * found.mean,
        "low": 100 * found.low,
        "high": 100 * found.high,
        "seeds": " ".join(f"{value:.1f}" for value in each),
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=MARKDOWN)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(_shown(name, value) for name, value in row.items()))
    return table


def _shown(name: str, value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if name.startswith("p") else f"{value:.1f}"
