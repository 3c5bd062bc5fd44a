"""Accuracy on each data set that the test questions come from, such as the five of RARL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from medreason.report import matrices
from medreason.report.matrices import Arm
from medreason.report.runs import estimate
from medreason.report.table import accuracy_text, filled, method_note, size

_MOST = 8
"""Sets with a column each on terminal and page; OmniMedVQA's rows are of 42."""


@dataclass(frozen=True)
class OnSet:
    """An arm on the test questions of one data set (`Sample.source`). Accuracies: 0 to 1."""

    arm: str
    source: str
    models: int
    n: int
    """Questions; each counts as the share of the arm's models that answer it right."""
    clusters: int
    accuracy: float
    ci_low: float
    ci_high: float


def by_source(arms: Sequence[Arm]) -> list[OnSet]:
    """By set and arm; nothing where all questions are of one set."""
    rows = [row for arm in arms for row in _of(arm)]
    sources = sorted({row.source for row in rows})
    if len(sources) < 2:
        return []
    return sorted(rows, key=lambda row: sources.index(row.source))


def _of(arm: Arm) -> list[OnSet]:
    question = ["source", "question", "cluster", "cell"]
    shares = arm.answers.groupby(question, sort=False)["correct"].mean().reset_index()
    found = []
    for source, rows in shares.groupby("source"):
        accuracy = estimate(rows, arm.statistics)
        facts = arm.name, str(source), arm.models, accuracy.n, accuracy.clusters
        found.append(OnSet(*facts, accuracy.mean, accuracy.low, accuracy.high))
    return found


def shown(rows: Sequence[OnSet]) -> dict[str, dict[str, OnSet]]:
    """By set, then by arm; empty where there are too many sets for a column each."""
    sets: dict[str, dict[str, OnSet]] = {}
    for row in rows:
        sets.setdefault(row.source, {})[row.arm] = row
    return sets if len(sets) <= _MOST else {}


def table(sets: Mapping[str, Mapping[str, OnSet]], arms: Sequence[Arm]) -> Table:
    """A row for each arm, a column for each set."""
    columns = {"accuracy %": [arm.name for arm in arms]}
    for source, rows in sets.items():
        name = f"{source}\n{sizes(rows)}"
        columns[name] = [_text(rows.get(arm.name)) for arm in arms]
    return filled(columns, Text(f"by data set; {method_note(arms[0].statistics)}"))


def sizes(rows: Mapping[str, OnSet]) -> str:
    """ "451 in 203": questions in clusters; of all arms where they were asked unlike ones."""
    return " or ".join(dict.fromkeys(size(row.n, row.clusters) for row in rows.values()))


def _text(row: OnSet | None) -> str:
    if row is None:
        return "-"
    return accuracy_text(row.accuracy, row.ci_low, row.ci_high, row.clusters)


def write(rows: Sequence[OnSet], folder: Path) -> list[Path]:
    """`by-data-set` as CSV and Parquet, where there are several."""
    return matrices.write([asdict(row) for row in rows], folder / "by-data-set")
