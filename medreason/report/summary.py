"""The sentence on top of a report: accuracy after training beside its baselines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from medreason.metrics import Metric
from medreason.report.arms import gain
from medreason.report.domains import IN_DOMAIN, Total
from medreason.report.runs import Cell, Run, base_of, changes, difference
from medreason.report.table import percent
from medreason.report.tables import Tables
from medreason.stats import wilson

_BASELINES = {
    Metric.PRIOR: "the options-only baseline gives",
    Metric.BLANK_IMAGE: "a blank image",
}


def lead(runs: Sequence[Run], tables: Tables) -> str:
    """The sentence; of methods with several models about their means, since the best of many models
    is best by luck."""
    chosen = best(runs)
    if chosen is None:
        return "No run of this sweep has been evaluated yet."
    if any(len(arm.runs) > 1 for arm in tables.arms):
        return _of_arms(tables)
    return _of_run(chosen, _counting(chosen), base_of(chosen, runs))


def best(runs: Sequence[Run]) -> Run | None:
    """Highest accuracy on the cells that count; a start model only where nothing else is."""
    evaluated = [run for run in runs if run.metrics]
    trained = [run for run in evaluated if run.trained_on]
    return max(
        trained or evaluated,
        key=lambda run: _over(run, _counting(run))[Metric.ACCURACY],
        default=None,
    )


def _of_arms(tables: Tables) -> str:
    """Every arm is named: the best of them alone would be a choice after the fact, too."""
    totals = [
        total
        for arm in tables.arms
        if not arm.untrained and (total := tables.domains.total(arm.name, IN_DOMAIN))
    ]
    if not totals:
        return "No trained run of this sweep was tested on what it was trained on."
    parts = [_of_arm(total, tables, first=i == 0) for i, total in enumerate(totals)]
    text = f"On what they were trained on, models answer {', '.join(parts)}"
    if len({t.n for t in totals}) > 1:
        text += " (not all on the same questions: compare the differences alone)"
    baselines = {
        metric: _range([t.metrics[metric] for t in totals]) + "\u00a0%"
        for metric in _BASELINES
        if all(metric in t.metrics for t in totals)
    }
    return text + _beside(baselines)


def _beside(baselines: Mapping[Metric, str]) -> str:
    """The end of the sentence."""
    texts = [f"{_BASELINES[metric]} {percent}" for metric, percent in baselines.items()]
    return ("; " + ", ".join(texts) if texts else "") + "."


def _of_arm(total: Total, tables: Tables, *, first: bool) -> str:
    text = f"{percent(total.accuracy)} %{' right' if first else ''} after {_named(total.arm)}"
    change = gain(tables, total.arm, IN_DOMAIN)
    if change is None:
        return f"{text} (95 % interval {percent(total.ci_low)} to {percent(total.ci_high)})"
    more = "more" if change.difference >= 0 else "less"
    points = f"{abs(change.difference):.1f}{' points' if first else ''} {more}"
    points += " than the start model" if first else ""
    return f"{text}, {points} ({_ends(change.low, change.high, first=first)})"


def _named(arm: str) -> str:
    method, _, rest = arm.partition(" ")
    return f"{method.upper()} ({rest})" if rest else method.upper()


def _range(values: Sequence[float]) -> str:
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low} to {high}"


def _ends(low: float, high: float, *, first: bool = True) -> str:
    ends = f"{low:.1f} to {high:.1f}".replace("-", "\u2212")
    doubt = ", so no clear difference" if low <= 0 <= high else ""
    return f"{'95 % interval ' if first else ''}{ends}{doubt}"


def _counting(run: Run) -> set[Cell]:
    """The cells a run was trained on, as far as it was tested there, else all."""
    return run.trained_on & run.tested_on or run.tested_on


def _of_run(run: Run, cells: set[Cell], base: Run | None) -> str:
    metrics = _over(run, cells)
    trained = run.trained_on and not run.tested_on <= cells
    which = "in-domain questions" if trained else "questions"
    accuracy, n = percent(metrics[Metric.ACCURACY]), metrics[Metric.N]
    text = f"{_title(run)} answers {accuracy} % of {n} {which} right"
    if change := difference(changes(run, base)[run.answers["cell"].isin(cells)]):
        more = "more" if change.mean >= 0 else "less"
        text += f", {abs(change.mean):.1f} points {more} than the start model "
        text += f"({_ends(change.low, change.high)})"
    else:
        low, high = wilson(metrics[Metric.CORRECT], n)
        text += f" (95 % interval {percent(low)} to {percent(high)})"
    known = [metric for metric in _BASELINES if metrics[metric] is not None]
    return text + _beside({metric: f"{percent(metrics[metric])} %" for metric in known})


def _over(run: Run, cells: set[Cell]) -> dict[str, Any]:
    """Metrics of the questions in some cells, from the metrics of each."""
    members = [metrics for key, metrics in run.cells.items() if key in cells]
    weights = [metrics[Metric.N] for metrics in members]

    def mean(metric: Metric) -> float | None:
        values = [metrics.get(metric) for metrics in members]
        return None if None in values else statistics.fmean(values, weights)  # pyright: ignore[reportArgumentType]

    n, correct = sum(weights), sum(metrics[Metric.CORRECT] for metrics in members)
    baselines = {metric: mean(metric) for metric in _BASELINES}
    return {Metric.N: n, Metric.CORRECT: correct, Metric.ACCURACY: correct / n, **baselines}


def _title(run: Run) -> str:
    method, _, rest = run.label.partition(" ")
    name = "The start model" if method == "base" else method.upper()
    return f"{name} ({rest})" if rest else name
