"""Train x test: the 8 x 5, 8 x 8, 5 x 5 and 40 x 40 tables of each method.

The unit of comparison is the arm: runs that differ only in seed and in the cell they were trained
on. A start model was trained on no cell and is compared with every row.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from medreason.config import Statistics
from medreason.metrics import Metric
from medreason.report import names
from medreason.report.runs import Cell, Run, estimate
from medreason.samples import MODALITIES, MODALITY_NAMES, TASK_NAMES, TASKS

CELLS: list[Cell] = [f"{modality}/{task}" for modality in MODALITIES for task in TASKS]
EVERY_CELL: list[Cell] = [f"{m}/{task}" for m in MODALITY_NAMES for task in TASK_NAMES]
"""With the cells whose modality or task is not said, which no table has."""
TABLES: dict[str, tuple[list[str], list[str]]] = {
    "8x5": (list(MODALITIES), list(TASKS)),
    "8x8": (list(MODALITIES), list(MODALITIES)),
    "5x5": (list(TASKS), list(TASKS)),
    "40x40": (CELLS, CELLS),
}
"""Rows (trained on) and columns (tested on); 8x5 has each cell's model on its own cell."""
_AXES = {"8x5": "cell", "8x8": "modality", "5x5": "task", "40x40": "cell"}
_PLACE = ["train", "test"]
_EVERY_ROW = ""  # `train` of a start model


@dataclass(frozen=True, eq=False)
class Arm:
    """Evaluations that differ in cell, seed and the questions asked alone."""

    name: str
    runs: tuple[Run, ...]
    untrained: bool

    @property
    def run_names(self) -> set[str]:
        return {run.name for run in self.runs}

    @property
    def models(self) -> int:
        """Trainings; two evaluations of one are one model."""
        return len({run.folder.path for run in self.runs})

    @property
    def statistics(self) -> Statistics:
        return self.runs[0].statistics

    @property
    def seeds(self) -> list[int]:
        return sorted({run.config.seed for run in self.runs if run.config})

    @functools.cached_property
    def answers(self) -> pd.DataFrame:
        """The answers of all its runs, with the seed and the cells trained on of each. A question
        that two evaluations of one model asked counts once."""
        answers = pd.concat([run.answers.assign(**_facts(run)) for run in self.runs])
        folders = {run.name: run.folder.path.name for run in self.runs}
        return answers[
            ~answers.assign(run=answers["run"].map(folders)).duplicated(["run", "question"])
        ]

    @functools.cached_property
    def metrics(self) -> pd.DataFrame:
        """A row for each run and cell: the metrics of the cell, with the same facts of the run."""
        rows = [
            _facts(run) | _axes(cell) | metrics
            for run in self.runs
            for cell, metrics in run.cells.items()
        ]
        return pd.DataFrame(rows)

    @functools.cached_property
    def shares(self) -> dict[str, pd.DataFrame]:
        """By table, the `share` of right answers over models and seeds: train, test, question, its
        cluster and cell."""
        question = ["question", "cluster", "cell"]
        return {
            table: _placed(self, self.answers, table, [*question, "correct"])
            .groupby([*_PLACE, *question], sort=False)["correct"]
            .mean()
            .rename("share")
            .reset_index()
            for table in TABLES
        }


@dataclass(frozen=True)
class Place:
    """The results of an arm in one place of one table."""

    arm: str
    table: str
    train: str
    test: str
    in_domain: bool
    models: int
    """Runs of the row: cells times seeds."""
    seeds: int
    average: str
    """Means are over questions or over cells."""
    n: int
    """Questions, each counted once."""
    clusters: int
    accuracy: float
    """0 to 1; of a question the share of models and seeds that answer it right."""
    ci_low: float
    ci_high: float
    """95 %; a question counts once, however many models answered it."""
    spread: float | None
    """Standard deviation over seeds; none of one seed."""
    prior: float | None
    above_prior: float | None
    guessing: float | None
    """What guessing between the options of its questions gives."""

    @property
    def off_prior(self) -> bool:
        """The interval of the accuracy is below the options-only baseline, or above it and above
        guessing between the options."""
        if self.prior is None:
            return False
        return self.ci_low > max(self.prior, self.guessing or 0.0) or self.ci_high < self.prior


def arms(runs: Sequence[Run]) -> list[Arm]:
    """The arms of a sweep in the order of its runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config and run.metrics:
            groups.setdefault(names.arm_key(run.config), []).append(run)
    configs = [members[0].config for members in groups.values()]
    arm_names = names.arm_names([config for config in configs if config])
    return [
        Arm(name, tuple(members), members[0].method == "base")
        for name, members in zip(arm_names, groups.values(), strict=True)
    ]


def places(arm: Arm) -> list[Place]:
    """Every place of every table the arm has answers for; the others are left out, never 0."""
    return [place for table in TABLES for place in _places(arm, table)]


def by_place(frame: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """The rows of each place (train, test)."""
    groups = frame.groupby(_PLACE, sort=False)
    return {(str(train), str(test)): rows for (train, test), rows in groups}


def key(arm: Arm, train: str, test: str) -> tuple[str, str]:
    """The place as `by_place` has it: a start model's values hold for every row."""
    return (_EVERY_ROW if arm.untrained else train), test


def write(rows: Sequence[Mapping[str, Any]], path: Path, columns: Sequence[str] = ()) -> list[Path]:
    """The same rows as CSV and Parquet; where there are none, `columns` alone, or nothing."""
    if not rows and not columns:
        return []
    empty = {name: pa.array([], pa.string()) for name in columns}
    table = pa.Table.from_pylist([dict(row) for row in rows]) if rows else pa.table(empty)
    paths = [path.with_suffix(".csv"), path.with_suffix(".parquet")]
    pyarrow.csv.write_csv(table, paths[0])
    pq.write_table(table, paths[1])
    return paths


def wide(places: Iterable[Place], table: str) -> list[dict[str, Any]]:
    """A table as readers know it, in percent: a row for each training set, a column for each test.

    8x5 has modalities as rows and tasks as columns. A place without a value stays empty.
    """
    values = {(p.train, p.test): 100 * p.accuracy for p in places if p.table == table}
    rows, columns = TABLES[table]
    return [
        {"train": row} | {column: values.get(_address(table, row, column)) for column in columns}
        for row in rows
    ]


def addresses(table: str) -> list[tuple[str, str]]:
    """(train, test) of each place, row by row."""
    rows, columns = TABLES[table]
    return [_address(table, row, column) for row in rows for column in columns]


def _address(table: str, row: str, column: str) -> tuple[str, str]:
    cell = f"{row}/{column}"
    return (cell, cell) if table == "8x5" else (row, column)


def members_of(arm: Arm, table: str, train: str) -> list[Run]:
    """The runs of a row: in 8x8 those trained within the modality, and so on."""
    return [run for run in arm.runs if arm.untrained or _row(run, table) == train]


def _facts(run: Run) -> dict[str, Any]:
    assert run.config
    return {
        "run": run.name,
        "seed": run.config.seed,
        "trained": trained_key(run),
    }


def trained_key(run: Run) -> str:
    """The cells a run was trained on as one string, empty for a start model."""
    return " ".join(sorted(run.chosen_cells))


def _axes(cell: Cell) -> dict[str, str]:
    modality, task = cell.split("/")
    return {"cell": cell, "modality": modality, "task": task}


def _row(run: Run, table: str) -> str | None:
    """The row of the table a trained run belongs to, if its cells are all in one row."""
    rows = {_axes(cell)[_AXES[table]] for cell in run.chosen_cells}
    return rows.pop() if len(rows) == 1 else None


def _placed(arm: Arm, frame: pd.DataFrame, table: str, columns: list[str]) -> pd.DataFrame:
    """Columns of the arm's answers or metrics with the place (train, test) they belong to."""
    placed = frame[columns].assign(test=frame[_AXES[table]])
    if arm.untrained:
        return placed.assign(train=_EVERY_ROW)
    rows = {run.name: _row(run, table) for run in arm.runs}
    placed = placed.assign(train=frame["run"].map(rows)).dropna(subset="train")
    return placed[placed["train"] == placed["test"]] if table == "8x5" else placed


def _places(arm: Arm, table: str) -> list[Place]:
    spreads = _spreads(arm, table)
    priors, guessed = (_means(arm, table, metric) for metric in (Metric.PRIOR, Metric.GUESSING))
    rows = by_place(arm.shares[table])
    models = Counter({run.folder.path: _row(run, table) for run in arm.runs}.values())
    places = []
    for train, test in addresses(table):
        if (place := key(arm, train, test)) not in rows:
            continue
        accuracy = estimate(rows[place], arm.statistics, "share")
        seeds, spread = spreads[place]
        prior = priors.get(place)
        places.append(
            Place(
                arm=arm.name,
                table=table,
                train=train,
                test=test,
                in_domain=not arm.untrained and train == test,
                models=arm.models if arm.untrained else models[train],
                seeds=seeds,
                average=arm.statistics.average,
                n=accuracy.n,
                clusters=accuracy.clusters,
                accuracy=accuracy.mean,
                ci_low=accuracy.low,
                ci_high=accuracy.high,
                spread=spread,
                prior=prior,
                above_prior=None if prior is None else accuracy.mean - prior,
                guessing=guessed.get(place),
            )
        )
    return places


def _spreads(arm: Arm, table: str) -> dict[Any, tuple[int, float | None]]:
    """By place the number of seeds and the standard deviation of their accuracies."""
    answers = _placed(arm, arm.answers, table, ["seed", "cell", "correct"])
    if arm.statistics.average == "cells":
        answers = answers.groupby([*_PLACE, "seed", "cell"])["correct"].mean().reset_index()
    by_seed = answers.groupby([*_PLACE, "seed"])["correct"].mean().groupby(_PLACE)
    return {
        place: (int(row["size"]), None if math.isnan(row["std"]) else row["std"])
        for place, row in by_seed.agg(["std", "size"]).to_dict("index").items()
    }


def _means(arm: Arm, table: str, metric: Metric) -> dict[Any, float]:
    """By place a metric's mean on its questions; none where a cell has none."""
    metrics = _placed(arm, arm.metrics, table, [metric, Metric.N])
    value = metrics[metric].astype(float)
    weight = metrics[Metric.N] if arm.statistics.average == "questions" else 1
    weighted = metrics.assign(weight=weight, weighted=value * weight, unknown=value.isna())
    sums = weighted.groupby(_PLACE)[["weighted", "weight", "unknown"]].sum()
    return (sums["weighted"] / sums["weight"])[sums["unknown"] == 0].to_dict()
