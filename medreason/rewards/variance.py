"""A reward that no longer tells the completions of a question apart teaches nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WINDOW = 20
"""Logged steps a collapse has to last."""

CONSTANT = 0.95
"""Share of groups without any difference that counts as collapsed [ours]."""


def within_groups(
    groups: Sequence[Sequence[float]],
) -> tuple[float, float] | None:
    """(mean variance within a group, share of groups without any), None where no group has two."""
    compared = [group for group in groups if len(group) > 1]
    if not compared:
        return None
    variances = [_variance(group) for group in compared]
    constant = [max(group) - min(group) < 1e-9 for group in compared]
    return sum(variances) / len(compared), sum(constant) / len(compared)


def collapsed(logged: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Reward -> its mean, for each that was the same within nearly all groups of the last steps.

    `logged` are the rows of metrics.jsonl. Semantic rewards collapse (arXiv:2508.12957); one that
    every completion fully earns does, too, and has done its work.
    """
    rows = logged[-WINDOW:]
    if len(rows) < WINDOW:
        return {}
    ending = "/constant_groups"
    names = [key.split("/")[1] for key in rows[-1] if key.endswith(ending)]
    found = {}
    for name in names:
        shares = _known(rows, f"rewards/{name}{ending}")
        means = _known(rows, f"rewards/{name}/mean")
        if means and len(shares) == WINDOW and sum(shares) >= CONSTANT * WINDOW:
            found[name] = sum(means) / len(means)
    return found


def message(name: str, mean: float) -> str:
    return (
        f"reward {name} is the same within nearly every group of the last {WINDOW} steps "
        f"(mean {mean:.2f}): it teaches nothing more"
    )


def _known(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _variance(group: Sequence[float]) -> float:
    mean = sum(group) / len(group)
    return sum((value - mean) ** 2 for value in group) / len(group)
