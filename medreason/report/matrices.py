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

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from medreason.metrics import Metric
from medreason.report import names
from medreason.report.runs import Cell, Run
from medreason.samples import MODALITIES, MODALITY_NAMES, TASK_NAMES, TASKS
from medreason.stats import mean_over_strata, wilson

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
    """Runs that differ in cell and seed alone."""

    name: str
    runs: tuple[Run, ...]
    untrained: bool

    @property
    def run_names(self) -> set[str]:
        return {run.name for run in self.runs}

    @property
    def seeds(self) -> list[int]:
        return sorted({run.config.seed for run in self.runs if run.config})

    @functools.cached_property
    def answers(self) -> pd.DataFrame:
        """The answers of all its runs, with the seed and the cells trained on of each."""
        return pd.concat([run.answers.assign(**_facts(run)) for run in self.runs])

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
        """By table, the `share` of right answers over models and seeds: train, test, sample."""
        return {
            table: _placed(self, self.answers, table, ["question", "correct"])
            .groupby([*_PLACE, "question"], sort=False)["correct"]
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
    n: int
    """Questions, each counted once."""
    accuracy: float
    """Mean over seeds, 0 to 1."""
    ci_low: float
    ci_high: float
    """95 % over questions: Wilson's, or a bootstrap where several models answered each."""
    spread: float | None
    """Standard deviation over seeds; none of one seed."""
    prior: float | None
    above_prior: float | None

    @property
    def off_prior(self) -> bool:
        """The interval of the accuracy does not include the options-only baseline."""
        return self.prior is not None and not self.ci_low <= self.prior <= self.ci_high


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


def by_place(frame: pd.DataFrame, column: str) -> dict[tuple[str, str], np.ndarray]:
    """The values of a column in each place (train, test)."""
    groups = frame.groupby(_PLACE, sort=False)[column]
    return {(str(train), str(test)): values.to_numpy() for (train, test), values in groups}


def key(arm: Arm, train: str, test: str) -> tuple[str, str]:
    """The place as `by_place` has it: a start model's values hold for every row."""
    return (_EVERY_ROW if arm.untrained else train), test


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> list[Path]:
    """The same rows as CSV and Parquet; nothing where there are none."""
    if not rows:
        return []
    table = pa.Table.from_pylist([dict(row) for row in rows])
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


def interval(shares: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of the questions' shares, 0 to 1."""
    if np.isin(shares, (0.0, 1.0)).all():
        return wilson(int(shares.sum()), len(shares))
    mean = mean_over_strata([shares], seed=0)
    return mean.low, mean.high


def _facts(run: Run) -> dict[str, Any]:
    assert run.config
    return {
        "run": run.name,
        "seed": run.config.seed,
        "trained": trained_key(run),
    }


def trained_key(run: Run) -> str:
    """The cells a run was trained on as one string, empty for a start model."""
    return " ".join(sorted(run.trained_on))


def _axes(cell: Cell) -> dict[str, str]:
    modality, task = cell.split("/")
    return {"cell": cell, "modality": modality, "task": task}


def _row(run: Run, table: str) -> str | None:
    """The row of the table a trained run belongs to, if its cells are all in one row."""
    rows = {_axes(cell)[_AXES[table]] for cell in run.trained_on}
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
    answers = _placed(arm, arm.answers, table, ["seed", "correct"])
    by_seed = answers.groupby([*_PLACE, "seed"])["correct"].mean().groupby(_PLACE)
    summary = by_seed.agg(["mean", "std", "size"]).to_dict("index")
    shares = by_place(arm.shares[table], "share")
    intervals = {place: (len(values), interval(values)) for place, values in shares.items()}
    priors = _priors(arm, table)
    models = Counter(_row(run, table) for run in arm.runs)
    places = []
    for train, test in addresses(table):
        if (place := key(arm, train, test)) not in summary:
            continue
        accuracy, spread, seeds = summary[place].values()
        n, (low, high) = intervals[place]
        prior = priors.get(place)
        places.append(
            Place(
                arm=arm.name,
                table=table,
                train=train,
                test=test,
                in_domain=not arm.untrained and train == test,
                models=len(arm.runs) if arm.untrained else models[train],
                seeds=int(seeds),
                n=n,
                accuracy=accuracy,
                ci_low=low,
                ci_high=high,
                spread=None if math.isnan(spread) else spread,
                prior=prior,
                above_prior=None if prior is None else accuracy - prior,
            )
        )
    return places


def _priors(arm: Arm, table: str) -> dict[Any, float]:
    """By place the options-only baseline on its questions; none where a cell has none."""
    metrics = _placed(arm, arm.metrics, table, [Metric.PRIOR, Metric.N])
    prior = metrics[Metric.PRIOR].astype(float)
    weighted = metrics.assign(weighted=prior * metrics[Metric.N], unknown=prior.isna())
    sums = weighted.groupby(_PLACE)[["weighted", Metric.N, "unknown"]].sum()
    return (sums["weighted"] / sums[Metric.N])[sums["unknown"] == 0].to_dict()
