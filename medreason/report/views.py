"""Train x test tables as the page's script reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medreason.metrics import ACCURACY, Metric
from medreason.report import matrices
from medreason.report.comparisons import MEANS, Comparison
from medreason.report.matrices import TABLES, Arm, Place
from medreason.report.names import cell_name
from medreason.report.questions import shown_power
from medreason.report.runs import Run
from medreason.report.tables import Tables, in_table
from medreason.stats import LEVEL, Power

Numbers = list[float | None]
"""As `questions.compared` has them."""
Changes = Mapping[tuple[str, str, str, str], dict[str, Numbers]]
"""(arm, table, train, test) -> index of the other arm -> the difference."""


def embedded(tables: Tables, evaluated: Sequence[Run]) -> list[dict[str, Any]]:
    """Name, runs and tables of each arm; a place is keyed `train|test`.

    `run` of a place is the index in `evaluated` of the model whose questions it opens. `means` are
    the differences of 8x5's means over rows, columns and all.
    """
    changes = _changes(tables)
    return [
        {
            "label": arm.name,
            "runs": [[evaluated.index(run), _part(arm, run)] for run in arm.runs],
            "tables": {
                table: {
                    f"{place.train}|{place.test}": _place(place, arm, evaluated, changes)
                    for place in places
                }
                for table in TABLES
                if (places := in_table(arm, tables.places[arm.name], table))
            },
            "means": {
                train: differences
                for (name, table, train, _), differences in changes.items()
                if (name, table) == (arm.name, MEANS)
            },
        }
        for arm in tables.arms
    ]


def _part(arm: Arm, run: Run) -> str:
    """The cell and seed that tell a run from the others of its arm."""
    cell = cell_name(run.config) if run.config else ""
    seed = f"seed {run.config.seed}" if run.config and len(arm.seeds) > 1 else ""
    return ", ".join(filter(None, [cell, seed])) or "all"


def _changes(tables: Tables) -> Changes:
    """Each arm minus each other, both ways."""
    index = {arm.name: str(i) for i, arm in enumerate(tables.arms)}
    changes: dict[tuple[str, str, str, str], dict[str, Numbers]] = {}
    for c in tables.compared:
        a_minus_b = _numbers(c, c.difference, c.low, c.high)
        b_minus_a = _numbers(c, -c.difference, -c.high, -c.low)
        changes.setdefault((c.a, c.table, c.train, c.test), {})[index[c.b]] = a_minus_b
        changes.setdefault((c.b, c.table, c.train, c.test), {})[index[c.a]] = b_minus_a
    return changes


def _numbers(row: Comparison, middle: float, low: float, high: float) -> Numbers:
    ends = round(middle, 2), round(low, 2), round(high, 2)
    able = Power(row.smallest_difference, row.questions_needed)
    return [*ends, _short(row.p_holm), row.n, row.clusters, *shown_power(able)]


def _short(p: float) -> float:
    """Two digits, on the same side of the level."""
    short = float(f"{p:.2g}")
    return short if (short < LEVEL) == (p < LEVEL) else p


def _place(place: Place, arm: Arm, evaluated: Sequence[Run], changes: Changes) -> dict[str, Any]:
    members = matrices.members_of(arm, place.table, place.train)
    numbers: dict[str, Any] = {
        metric: None if (value := getattr(place, metric)) is None else round(value, 4)
        for metric in (*ACCURACY, Metric.PRIOR, Metric.ABOVE_PRIOR, Metric.GUESSING)
    }
    return numbers | {
        Metric.N: place.n,
        Metric.CLUSTERS: place.clusters,
        "models": place.models,
        "run": evaluated.index(members[0]),
        "against": changes.get((arm.name, place.table, place.train, place.test), {}),
    }
