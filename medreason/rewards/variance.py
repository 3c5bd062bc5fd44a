"""Variance of a reward within groups: one without any has no advantage, so it teaches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WINDOW = 20
"""Logged steps that a collapse has to last."""

CONSTANT = 0.95
"""Mean share of constant groups at which a reward counts as collapsed [ours]."""


def within_groups(groups: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """(mean variance, share of constant groups) of a reward's values, by group of completions.

    Groups of one are left out; None where no other is left.
    """
    compared = [group for group in groups if len(group) > 1]
    if not compared:
        return None
    variances = [_variance(group) for group in compared]
    constant = [max(group) - min(group) < 1e-9 for group in compared]
    return sum(variances) / len(compared), sum(constant) / len(compared)


def collapsed_rewards(logged: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of each reward that was constant within nearly all groups of the last steps.

    `logged` are the rows of metrics.jsonl. Semantic rewards collapse (arXiv:2508.12957); so does a
    reward that every completion earns in full, which has done its work.
    """
    rows = logged[-WINDOW:]
    if len(rows) < WINDOW:
        return {}
    suffix = "/constant_groups"
    collapsed = {}
    for name in [key.split("/")[1] for key in rows[-1] if key.endswith(suffix)]:
        shares = _values(rows, f"rewards/{name}{suffix}")
        means = _values(rows, f"rewards/{name}/mean")
        if means and len(shares) == WINDOW and sum(shares) >= CONSTANT * WINDOW:
            collapsed[name] = sum(means) / len(means)
    return collapsed


def collapse_warning(name: str, mean: float) -> str:
    """A sentence about one of `collapsed_rewards` for the log and the report."""
    return (
        f"reward {name} is the same within nearly every group of the last {WINDOW} steps "
        f"(mean {round(mean, 2) + 0.0:.2f}): it no longer teaches anything"
    )


def _values(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _variance(group: Sequence[float]) -> float:
    mean = sum(group) / len(group)
    return sum((value - mean) ** 2 for value in group) / len(group)
