"""Which step's weights a training keeps, when it has seen enough, and which of several trainings is
the best: by their validations alone.

`rows` are those of `TrainerState.log_history`, which every checkpoint carries. So a resumed run
chooses by the same numbers as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from medreason.runs.run_folder import RunFolder

SCORE = "validation/accuracy"
"""Accuracy on in-domain questions; those of other cells choose nothing."""

Row = Mapping[str, Any]


def scores(rows: Iterable[Row]) -> dict[int, float]:
    """Step -> in-domain accuracy of each validation, in their order."""
    return {row["step"]: row[SCORE] for row in rows if row.get(SCORE) is not None}


def best_step(rows: Iterable[Row]) -> int | None:
    """The step of the highest accuracy, the earliest of equal ones; None without validations."""
    return _best(scores(rows))


def _best(by_step: Mapping[int, float]) -> int | None:
    return max(by_step, key=lambda step: (by_step[step], -step), default=None)


def is_over(rows: Iterable[Row], patience: int | None) -> bool:
    """Whether the last `patience` validations brought no higher accuracy."""
    by_step = scores(rows)
    best = _best(by_step)
    return (
        patience is not None
        and best is not None
        and sum(step > best for step in by_step) >= patience
    )


def explained(rows: Iterable[Row], chosen: int, last: int) -> str:
    """Why the weights are those of step `chosen` of `last`; empty without validations."""
    by_step = scores(rows)
    if not by_step:
        return ""
    steps = dict.fromkeys(step for step in (chosen, last) if step in by_step)
    accuracies = ", ".join(f"step {step}: {100 * by_step[step]:.1f} %" for step in steps)
    kind = "best" if chosen == _best(by_step) else "last"
    validations = "1 validation" if len(by_step) == 1 else f"{len(by_step)} validations"
    return f"{kind} of {validations} ({accuracies})"


def kept_score(folder: RunFolder) -> float | None:
    """The accuracy on validation questions of the weights that a trained run kept."""
    state = folder.state()
    return scores(folder.logged()).get(state.chosen_step) if state.trained else None


def best_run(folders: Iterable[RunFolder]) -> RunFolder | None:
    """The trained run of the highest score, of equal ones the first by name; None without any."""
    by_name = {folder.path.name: folder for folder in folders}
    known = {
        name: score for name, each in by_name.items() if (score := kept_score(each)) is not None
    }
    best = max(sorted(known), key=lambda name: known[name], default=None)
    return by_name[best] if best else None
