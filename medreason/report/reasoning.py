"""Answers and reasoning beside each other: arms trained on the same cells, over all their seeds.

The reasoning score is the overlap with the reference explanation
(`rewards.reasoning.reasoning_similarity`), computed for every arm alike, whatever it was rewarded
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from medreason.evaluation import predictions
from medreason.metrics import Metric
from medreason.report import comparisons, matrices
from medreason.report.matrices import Arm
from medreason.report.runs import Run, name_questions
from medreason.stats import Difference, holm, paired_difference, sign_flip

_SCORES = {"correct": "accuracy", "reasoning_similarity": "reasoning"}
_WHERE = ("in-domain", "held-out")
_WIDTH = 1000  # characters: no cell of a Markdown table is cut
_LEVELS = "Right answers and overlap of the reasoning with the reference explanation, in percent"
_CHANGES = "a minus b in percent points, paired by question; p_holm: by Holm over all rows"

Scores = pd.DataFrame
"""A row a sample, a column a seed, NaN where a seed has no score."""


def write(runs: Sequence[Run], target: Path) -> list[Path]:
    """`reasoning.md`, and its two tables as CSV and Parquet; nothing where runs have no reasoning
    score, or were trained on different cells, for which there are the matrices."""
    arms = matrices.arms(runs)
    trained = {frozenset(run.trained_on) for arm in arms if not arm.untrained for run in arm.runs}
    if len(trained) != 1 or not all(_has_reasoning(run) for arm in arms for run in arm.runs):
        return []
    scores = {
        (arm.name, *key): values
        for arm in arms
        for key, values in _scores(arm, set(next(iter(trained)))).items()
    }
    levels = [_level(*key, values) for key, values in scores.items()]
    changes = [
        _change(a.name, b.name, where, score, values, scores[b.name, where, score])
        for a, b in comparisons.pairs(arms)
        for (name, where, score), values in scores.items()
        if name == a.name and (b.name, where, score) in scores
    ]
    adjusted = holm([row["p"] for row in changes])
    changes = [row | {"p_holm": p} for row, p in zip(changes, adjusted, strict=True)]
    page = target / "reasoning.md"
    with page.open("w", encoding="utf-8") as file:
        for title, rows in ((_LEVELS, levels), *([(_CHANGES, changes)] if changes else [])):
            print(f"{title}\n", file=file)
            Console(file=file, width=_WIDTH).print(_table(rows))
    files = matrices.write(levels, target / "reasoning")
    return [page, *files, *matrices.write(changes, target / "reasoning-differences")]


def _has_reasoning(run: Run) -> bool:
    """Whether its questions have reference explanations."""
    return run.overall.get(Metric.REASONING_SIMILARITY) is not None


def _scores(arm: Arm, cells: set[str]) -> dict[tuple[str, str], Scores]:
    """In-domain and held-out, each score."""
    columns = ["question_digest", "modality", "task", *_SCORES]
    rows = predictions.read_frame([run.evaluation.path for run in arm.runs], columns)
    seeds = {run.name: run.config.seed for run in arm.runs if run.config}
    rows["seed"] = (rows["run"] + "/" + rows["evaluation"]).map(seeds)
    rows["question"] = name_questions(rows, "run", "evaluation")
    in_domain = (rows["modality"] + "/" + rows["task"]).isin(cells)
    scores = {}
    for where, chosen in zip(_WHERE, (rows[in_domain], rows[~in_domain]), strict=True):
        for column, score in _SCORES.items():
            table = chosen.pivot(index="question", columns="seed", values=column).astype(float)
            table = table[chosen["seed"].unique()].dropna(axis=1, how="all")
            if not table.empty:
                scores[where, score] = table
    return scores


def _level(arm: str, where: str, score: str, scores: Scores) -> dict[str, Any]:
    means = _over_seeds(scores)
    change = paired_difference(means, [0.0] * len(means), seed=0)
    row = {"arm": arm, "where": where, "score": score, "n": len(means)}
    return row | _ends(change, 100 * scores.mean())


def _change(
    a: str, b: str, where: str, score: str, scores_a: Scores, scores_b: Scores
) -> dict[str, Any]:
    """Arm a minus arm b: means over seeds, paired by question, p by flipped signs; and seed by seed
    where both have it (a start model has one seed, which then counts for each)."""
    both = pd.concat([_over_seeds(scores_a), _over_seeds(scores_b)], axis=1, join="inner")
    change = paired_difference(both[0], both[1], seed=0)
    p = sign_flip(both[0] - both[1], seed=0)
    a_of, b_of = scores_a.loc[both.index], scores_b.loc[both.index]
    each = [
        100 * (a_of[seed] - b_of[seed if seed in b_of else b_of.columns[0]]).mean() for seed in a_of
    ]
    row = {"a": a, "b": b, "where": where, "score": score, "n": len(both)}
    return row | _ends(change, each) | {"p": p}


def _over_seeds(scores: Scores) -> pd.Series:
    """Mean score of each question that every seed has."""
    return scores.dropna().mean(axis=1)


def _ends(change: Difference, each: Sequence[float] | pd.Series) -> dict[str, Any]:
    """In percent: mean, its 95 % interval by a bootstrap over questions, and each seed's value."""
    return {
        "mean": 100 * change.mean,
        "low": 100 * change.low,
        "high": 100 * change.high,
        "seeds": " ".join(f"{value:.1f}" for value in each),
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=MARKDOWN)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    return table


def _cell(column: str, value: float | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if column.startswith("p") else f"{value:.1f}"
