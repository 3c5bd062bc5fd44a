"""Train x test: the 8 x 5, 8 x 8, 5 x 5 and 40 x 40 tables of each method.

An arm is what is compared: runs that differ in the cell they were trained on and in the seed alone.
A start model was trained on no cell and stands beside every row.
"""

from __future__ import annotations

import statistics as plain
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from medreason.metrics import Metric
from medreason.report import names
from medreason.report.runs import Cell, Run
from medreason.samples import MODALITIES, TASKS
from medreason.stats import mean_over_strata, wilson

CELLS = [f"{modality}/{task}" for modality in MODALITIES for task in TASKS]
TABLES: dict[str, tuple[list[str], list[str]]] = {
    "8x5": (list(MODALITIES), list(TASKS)),
    "8x8": (list(MODALITIES), list(MODALITIES)),
    "5x5": (list(TASKS), list(TASKS)),
    "40x40": (CELLS, CELLS),
}
"""Rows and columns. Rows are what was trained on and columns what was tested, except in 8x5: there
each cell's model on its own cell."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ in cell and seed alone."""

    name: str
    runs: tuple[Run, ...]
    untrained: bool

    @property
    def seeds(self) -> list[int]:
        return sorted({run.config.seed for run in self.runs if run.config})


@dataclass(frozen=True)
class Place:
    """What an arm came to in one place of one table."""

    arm: str
    table: str
    train: str
    test: str
    in_domain: bool
    models: int
    """Runs that answered here: cells times seeds."""
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
        """The interval of the accuracy does not hold the prior."""
        return self.prior is not None and not self.ci_low <= self.prior <= self.ci_high


def arms(runs: Sequence[Run]) -> list[Arm]:
    """The arms of a sweep in the order of its runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config and run.metrics:
            groups.setdefault(names.arm_key(run.config), []).append(run)
    found = list(groups.values())
    called = names.arm_names([members[0].config for members in found if members[0].config])
    return [
        Arm(name, tuple(members), members[0].method == "base")
        for name, members in zip(called, found, strict=True)
    ]


def places(arm: Arm) -> list[Place]:
    """Every place of every table the arm has answers for; the others are left out, never 0."""
    found = []
    for table in TABLES:
        for train, test in addresses(table):
            if members := members_of(arm, table, train):
                place = _place(arm, members, table, train, test)
                if place:
                    found.append(place)
    return found


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> list[Path]:
    """The same rows as CSV and Parquet; nothing where there are none."""
    if not rows:
        return []
    table = pa.Table.from_pylist([dict(row) for row in rows])
    written = [path.with_suffix(".csv"), path.with_suffix(".parquet")]
    pyarrow.csv.write_csv(table, written[0])
    pq.write_table(table, written[1])
    return written


def wide(found: Iterable[Place], table: str) -> list[dict[str, Any]]:
    """A table as readers know it, in percent: a row for each training set, a column for each test.

    8x5 has modalities as rows and tasks as columns. What has no value stays empty.
    """
    values = {(p.train, p.test): 100 * p.accuracy for p in found if p.table == table}
    rows, columns = TABLES[table]
    return [
        {"train": row} | {column: values.get(_address(table, row, column)) for column in columns}
        for row in rows
    ]


def _address(table: str, row: str, column: str) -> tuple[str, str]:
    own = f"{row}/{column}"
    return (own, own) if table == "8x5" else (row, column)


def addresses(table: str) -> list[tuple[str, str]]:
    rows, columns = TABLES[table]
    return [_address(table, row, column) for row in rows for column in columns]


def members_of(arm: Arm, table: str, train: str) -> list[Run]:
    """The runs that stand in a row: of 8x8 those trained within the modality, and so on."""
    if arm.untrained:
        return list(arm.runs)
    return [run for run in arm.runs if _stands_in(run.trained_on, table, train)]


def _stands_in(trained: set[Cell], table: str, train: str) -> bool:
    if table in ("8x5", "40x40"):
        return trained == {_cell(train)}
    axis = 0 if table == "8x8" else 1
    return {cell[axis] for cell in trained} == {train}


def _tests(table: str, test: str, cell: Cell) -> bool:
    if table in ("8x5", "40x40"):
        return "/".join(cell) == test
    return cell[0 if table == "8x8" else 1] == test


def answers_of(members: Sequence[Run], table: str, test: str) -> dict[int, dict[str, list[bool]]]:
    """By seed and sample; several models of a row may answer the same question."""
    found: dict[int, dict[str, list[bool]]] = {}
    for run in members:
        assert run.config
        mine = found.setdefault(run.config.seed, {})
        for cell, answers in run.answers.items():
            if _tests(table, test, cell):
                for sample, correct in answers.items():
                    mine.setdefault(sample, []).append(correct)
    return {seed: answers for seed, answers in found.items() if answers}


def _place(arm: Arm, members: Sequence[Run], table: str, train: str, test: str) -> Place | None:
    answers = answers_of(members, table, test)
    if not answers:
        return None
    each = [
        plain.fmean(right for given in found.values() for right in given)
        for found in answers.values()
    ]
    prior = _prior(members, table, test)
    accuracy = plain.fmean(each)
    low, high = interval(list(means(answers).values()))
    return Place(
        arm.name,
        table,
        train,
        test,
        not arm.untrained and train == test,
        len(members),
        len(answers),
        len({sample for found in answers.values() for sample in found}),
        accuracy,
        low,
        high,
        plain.stdev(each) if len(each) > 1 else None,
        prior,
        accuracy - prior if prior is not None else None,
    )


def means(answers: Mapping[int, Mapping[str, Sequence[bool]]]) -> dict[str, float]:
    """The share of right answers to each sample, over seeds and models."""
    found: dict[str, list[bool]] = {}
    for samples in answers.values():
        for sample, given in samples.items():
            found.setdefault(sample, []).extend(given)
    return {sample: plain.fmean(given) for sample, given in found.items()}


def interval(shares: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of what each question got, 0 to 1."""
    if all(share in (0.0, 1.0) for share in shares):
        return wilson(int(sum(shares)), len(shares))
    found = mean_over_strata([shares], seed=0)
    return found.low, found.high


def _prior(members: Sequence[Run], table: str, test: str) -> float | None:
    """The options-only baseline on the same questions, weighted as they are."""
    found = [
        metrics
        for run in members
        for key, metrics in run.cells.items()
        if _tests(table, test, _cell(key))
    ]
    known = [
        (prior, metrics[Metric.N])
        for metrics in found
        if (prior := metrics.get(Metric.PRIOR)) is not None
    ]
    if not known or len(known) < len(found):
        return None
    return plain.fmean([prior for prior, _ in known], [n for _, n in known])


def _cell(key: str) -> Cell:
    modality, task = key.split("/")
    return modality, task
