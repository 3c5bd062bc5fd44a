"""Train x test tables as the page's script reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medreason.metrics import HEADLINE, Metric
from medreason.report import matrices, tables
from medreason.report.comparisons import LEVEL, MEANS, Comparison
from medreason.report.matrices import TABLES, Arm, Place
from medreason.report.names import cell_name
from medreason.report.runs import Run
from medreason.report.tables import Tables

Changes = Mapping[tuple[str, str, str, str], dict[str, list[float]]]
"""(arm, table, train, test) -> index of the other arm -> [difference, low, high, p], points."""


def embedded(found: Tables, evaluated: Sequence[Run]) -> list[dict[str, Any]]:
    """Name, runs and tables of each arm; a place is keyed `train|test`.

    `run` of a place is the index in `evaluated` of the model whose questions it opens. `means` are
    the differences of 8x5's rows, columns and whole.
    """
    changes = _changes(found)
    return [
        {
            "label": arm.name,
            "runs": [[evaluated.index(run), _part(arm, run)] for run in arm.runs],
            "tables": {
                table: {
                    f"{place.train}|{place.test}": _place(place, arm, evaluated, changes)
                    for place in here
                }
                for table in TABLES
                if (here := tables.shown(arm, found.places[arm.name], table))
            },
            "means": {
                train: some
                for (name, table, train, _), some in changes.items()
                if (name, table) == (arm.name, MEANS)
            },
        }
        for arm in found.arms
    ]


def _part(arm: Arm, run: Run) -> str:
    """What tells a run from the others of its arm."""
    cell = cell_name(run.config) if run.config else ""
    seed = f"seed {run.config.seed}" if run.config and len(arm.seeds) > 1 else ""
    return ", ".join(filter(None, [cell, seed])) or "all"


def _changes(found: Tables) -> Changes:
    """Each arm minus each other, both ways."""
    index = {arm.name: str(i) for i, arm in enumerate(found.arms)}
    changes: dict[tuple[str, str, str, str], dict[str, list[float]]] = {}
    for c in found.compared:
        there = _numbers(c, c.difference, c.low, c.high)
        back = _numbers(c, -c.difference, -c.high, -c.low)
        changes.setdefault((c.a, c.table, c.train, c.test), {})[index[c.b]] = there
        changes.setdefault((c.b, c.table, c.train, c.test), {})[index[c.a]] = back
    return changes


def _numbers(found: Comparison, middle: float, low: float, high: float) -> list[float]:
    return [round(middle, 2), round(low, 2), round(high, 2), _short(found.p_holm)]


def _short(p: float) -> float:
    """Two digits, on the same side of the level."""
    short = float(f"{p:.2g}")
    return short if (short < LEVEL) == (p < LEVEL) else p


def _place(place: Place, arm: Arm, evaluated: Sequence[Run], changes: Changes) -> dict[str, Any]:
    members = matrices.members_of(arm, place.table, place.train)
    numbers: dict[str, Any] = {
        metric: None if (value := getattr(place, metric)) is None else round(value, 4)
        for metric in (*HEADLINE[1:], Metric.PRIOR, Metric.ABOVE_PRIOR)
    }
    return numbers | {
        Metric.N: place.n,
        "models": place.models,
        "run": evaluated.index(members[0]),
        "against": changes.get((arm.name, place.table, place.train, place.test), {}),
    }
