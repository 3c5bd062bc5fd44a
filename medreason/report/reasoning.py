"""Answers and reasoning beside each other: arms trained on the same cells, over all their seeds.

The reasoning score is the overlap with the reference explanation
(`rewards.reasoning.reasoning_similarity`), computed for every arm alike, whatever it was rewarded
for.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from medreason.config import Statistics
from medreason.console import counted
from medreason.evaluation import predictions
from medreason.metrics import Metric
from medreason.report import comparisons, matrices
from medreason.report.arms import p_text
from medreason.report.domains import ALL, ELSEWHERE, IN_DOMAIN
from medreason.report.matrices import Arm
from medreason.report.runs import Run, estimate, name_questions, paired
from medreason.stats import FEWEST, FEWEST_FOR_INTERVAL, LEVEL, Estimate, holm

_SCORES = {"correct": "accuracy", "reasoning_similarity": "reasoning"}
_WIDTH = 1000  # characters: no cell of a Markdown table is cut
_LEVELS = (
    "Right answers and overlap of the reasoning with the reference explanation, in percent, mean "
    "over {}"
)
_CHANGES = "a minus b in percent points, paired by question, mean over {}; p_holm: by Holm over "

Scores = pd.DataFrame
"""A row a question, its cluster and cell in the index; a column a seed, NaN where it has no
score."""
_INDEX = ["question", "cluster", "cell"]


def write(runs: Sequence[Run], target: Path) -> list[Path]:
    """`reasoning.md`, and its two tables as CSV and Parquet; nothing where runs have no reasoning
    score, or were trained on different cells, for which there are the matrices."""
    arms = matrices.arms(runs)
    trained = [run for arm in arms if not arm.untrained for run in arm.runs]
    explained = all(_has_reasoning(run) for arm in arms for run in arm.runs)
    chosen = {frozenset(run.chosen_cells) for run in trained}
    if len(chosen) > 1 or not arms or not explained:
        return []
    cells = set.intersection(*(run.trained_on for run in trained)) if trained else None
    scores = {
        (arm.name, *key): values for arm in arms for key, values in _scores(arm, cells).items()
    }
    statistics = runs[0].statistics
    levels = [_level(*key, values, statistics) for key, values in scores.items()]
    changes: list[dict[str, Any]] = [
        {"a": a.name, "b": b.name, "where": where, "score": score}
        | _change(values, scores[b.name, where, score], statistics)
        for a, b in comparisons.pairs(arms)
        for (name, where, score), values in scores.items()
        if name == a.name and _shares_questions(values, scores.get((b.name, where, score)))
    ]
    adjusted = holm([row["p"] for row in changes])
    changes = [row | {"p_holm": p} for row, p in zip(changes, adjusted, strict=True)]
    page = target / "reasoning.md"
    with page.open("w", encoding="utf-8") as file:
        parts = [(_LEVELS, levels)]
        parts += [(f"{_CHANGES}{_family(changes)}", changes)] if changes else []
        for title, rows in parts:
            print(f"{title.format(statistics.average)}\n\n{_markdown(rows)}\n", file=file)
        for note in _notes(levels, changes, arms):
            print(f"{note}\n", file=file)
    files = matrices.write(levels, target / "reasoning")
    return [page, *files, *matrices.write(changes, target / "reasoning-differences")]


def _family(changes: Sequence[Mapping[str, Any]]) -> str:
    """Over how many comparisons Holm's adjustment is; page and terminal have another number."""
    wheres, scores = ({row[key] for row in changes} for key in ("where", "score"))
    of = f"{' and '.join(s for s in _SCORES.values() if s in scores)}"
    of += f", {' and '.join(sorted(wheres))}"
    return (
        f"the {counted(len(changes), 'row')} of this table ({of}), where page and terminal adjust "
        "those of accuracy in one place by themselves"
    )


def _notes(
    levels: Sequence[Mapping[str, Any]], changes: Sequence[Mapping[str, Any]], arms: Sequence[Arm]
) -> list[str]:
    """Why intervals are left out, and what a small p does not say."""
    notes = []
    if any(_without(row) for row in (*levels, *changes)):
        notes.append(
            f"-: no interval of fewer than {FEWEST_FOR_INTERVAL} clusters, and neither interval "
            f"nor p of a difference of fewer than {FEWEST}; the CSV has the numbers"
        )
    single = comparisons.of_one_seed(arms)
    clear = (row for row in changes if row["p_holm"] < LEVEL and not _without(row))
    members = (arm for row in clear for arm in (row["b"], row["a"]) if arm in single)
    return [*notes, *filter(None, [comparisons.one_seed_note(members)])]


def _without(row: Mapping[str, Any]) -> set[str]:
    """The columns that say nothing of so few clusters."""
    fewest = FEWEST if "p" in row else FEWEST_FOR_INTERVAL
    return {"low", "high", "p", "p_holm"} & row.keys() if row["clusters"] < fewest else set()


def _shares_questions(a: Scores, b: Scores | None) -> bool:
    return b is not None and not a.index.intersection(b.index).empty


def _has_reasoning(run: Run) -> bool:
    """Whether its questions have reference explanations."""
    return run.overall.get(Metric.REASONING_SIMILARITY) is not None


def _scores(arm: Arm, cells: Collection[str] | None) -> dict[tuple[str, str], Scores]:
    """In-domain, on the cells trained on, and out of domain, each score; without cells of all
    questions."""
    columns = ["modality", "task", *predictions.CLUSTER_COLUMNS, *_SCORES]
    rows = predictions.read_frame([run.evaluation.path for run in arm.runs], columns)
    seeds = {run.name: run.config.seed for run in arm.runs if run.config}
    rows["seed"] = (rows["run"] + "/" + rows["evaluation"]).map(seeds)
    rows["question"] = name_questions(rows, "run", "evaluation")
    rows = rows.drop_duplicates(["run", "question"])  # asked in two evaluations of one model
    rows["cell"] = rows["modality"] + "/" + rows["task"]
    rows["cluster"] = predictions.clusters_of(rows, arm.statistics.clusters).to_numpy(object)
    places = {ALL: rows}
    if cells is not None:
        in_domain = rows["cell"].isin(cells)
        places = {IN_DOMAIN: rows[in_domain], ELSEWHERE: rows[~in_domain]}
    scores = {}
    for where, chosen in places.items():
        for column, score in _SCORES.items():
            table = chosen.pivot(index=_INDEX, columns="seed", values=column).astype(float)
            table = table[chosen["seed"].unique()].dropna(axis=1, how="all")
            if not table.empty:
                scores[where, score] = table
    return scores


def _level(
    arm: str, where: str, score: str, scores: Scores, statistics: Statistics
) -> dict[str, Any]:
    means = _over_seeds(scores).rename("score").reset_index()
    level = estimate(means, statistics, "score")
    row = {"arm": arm, "where": where, "score": score}
    return row | _row(level, 100, 100 * scores.mean())


def _change(a: Scores, b: Scores, statistics: Statistics) -> dict[str, Any]:
    """Arm a minus arm b: means over seeds, paired by question; and seed by seed where both have it
    (a start model has one seed, which then counts for each)."""
    both = pd.concat([_over_seeds(a), _over_seeds(b)], axis=1, join="inner")
    change = paired(both.index.to_frame(), both[0] - both[1], statistics)
    a_of, b_of = a.loc[both.index], b.loc[both.index]
    each = [
        100 * (a_of[seed] - b_of[seed if seed in b_of else b_of.columns[0]]).mean() for seed in a_of
    ]
    return _row(change, 1, each) | {"p": change.p}


def _over_seeds(scores: Scores) -> pd.Series:
    """Mean score of each question that every seed has."""
    return scores.dropna().mean(axis=1)


def _row(mean: Estimate, percent: int, each: Sequence[float] | pd.Series) -> dict[str, Any]:
    """The mean and its 95 % interval by `percent`, and each seed's mean over questions."""
    return {
        "n": mean.n,
        "clusters": mean.clusters,
        "mean": percent * mean.mean,
        "low": percent * mean.low,
        "high": percent * mean.high,
        "seeds": " ".join(f"{value:.1f}" for value in each),
    }


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    table = Table(box=MARKDOWN)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        lacking = _without(row)
        table.add_row(*("-" if n in lacking else _cell(n, value) for n, value in row.items()))
    console = Console(file=io.StringIO(), width=_WIDTH)
    with console.capture() as captured:
        console.print(table)
    lines = (line.rstrip() for line in captured.get().splitlines())
    return "\n".join(filter(None, lines))


def _cell(column: str, value: float | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return p_text(value) if column.startswith("p") else f"{value:.1f}"
