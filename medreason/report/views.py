"""Train x test tables as the page's script reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medreason.report import matrices, tables
from medreason.report.comparisons import Comparison
from medreason.report.matrices import TABLES, Arm, Place
from medreason.report.runs import Run
from medreason.report.tables import Tables


def embedded(found: Tables | None, evaluated: Sequence[Run]) -> list[dict[str, Any]]:
    """Name and tables of each trained arm; a place is keyed `train|test`.

    `run` of a place is the index in `evaluated` of the model whose questions it opens.
    """
    if found is None:
        return []
    gains = {(c.a, c.table, c.train, c.test): c for c in found.compared if c.b == _start(found)}
    return [
        {
            "label": arm.name,
            "tables": {
                table: {
                    f"{place.train}|{place.test}": _place(place, arm, evaluated, gains)
                    for place in here
                }
                for table in TABLES
                if (here := tables.shown(arm, found.places[arm.name], table))
            },
        }
        for arm in found.arms
        if not arm.untrained
    ]


def _start(found: Tables) -> str | None:
    return next((arm.name for arm in found.arms if arm.untrained), None)


def _place(
    place: Place,
    arm: Arm,
    evaluated: Sequence[Run],
    gains: Mapping[tuple[str, str, str, str], Comparison],
) -> dict[str, Any]:
    members = matrices.members_of(arm, place.table, place.train)
    gain = gains.get((arm.name, place.table, place.train, place.test))
    return {
        "n": place.n,
        "accuracy": place.accuracy,
        "prior": place.prior,
        "above_prior": place.above_prior,
        "models": place.models,
        "run": evaluated.index(members[0]),
        "difference": [gain.difference, gain.low, gain.high] if gain else None,
        "p": gain.p_holm if gain else None,
    }
