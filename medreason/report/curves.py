"""Learning curves from what the trainers logged in metrics.jsonl; curves.html draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar

import numpy as np

from medreason.metrics import Metric
from medreason.report.runs import Run
from medreason.runs.run_folder import RunFolder
from medreason.stats import FEWEST_FOR_INTERVAL

Points = list[tuple[float, float]]
"""(optimizer step, value)"""
Spread = list[tuple[float, float, float, float]]
"""(optimizer step, lower end, value, upper end); of what has no interval all three are equal."""

_TOP, _BOTTOM = 10, 26  # margins
_SMOOTHED_FROM = 30  # points; shorter curves are drawn as they are


@dataclass(frozen=True)
class Line:
    """The runs behind one line of a chart: a single one, or all of an arm."""

    label: str
    runs: tuple[Run, ...]
    colour: int
    """Of the eight of the page."""


@dataclass(frozen=True)
class Mark:
    """A line of a chart, or the band around one."""

    band: bool
    style: str
    """CSS classes."""
    points: list[str]
    """As `x,y`."""


@dataclass(frozen=True)
class Ring:
    """The step whose weights a run kept."""

    step: float
    value: float
    colour: int
    title: str
    """What it is and why, in its tooltip."""


@dataclass(frozen=True)
class Frame:
    """A picture with a vertical axis, in the units of its SVG."""

    title: str
    ticks: list[tuple[str, str]]
    """(y, label)"""
    width: ClassVar[int] = 340
    height: ClassVar[int] = 190
    left: ClassVar[int] = 46
    right: ClassVar[int] = 330


@dataclass(frozen=True)
class Chart(Frame):
    """A quantity over optimizer steps, or over lengths."""

    start: str
    end: str
    """Labels of the ends of the axis, such as `0` and `200 steps`."""
    marks: list[Mark]
    legend: list[tuple[str, int]]
    """(name, colour)"""
    rings: list[tuple[str, Ring]] = field(default_factory=list)
    """(place as `x,y`, ring)"""


def charts(lines: Sequence[Line]) -> list[Chart]:
    """One for each logged quantity; none where nothing was logged.

    A line of several runs is their mean, with a band from their 10th to their 90th percentile; the
    band of a single run's validation is its 95 % interval. Validations have a ring at the step
    whose weights were kept.
    """
    quantities: dict[str, dict[int, list[Spread]]] = {}
    rings: dict[str, list[Ring]] = {}
    for index, line in enumerate(lines):
        for run in line.runs:
            for key, spread in logged(run.folder).items():
                if not (title := _title(key, run)):
                    continue
                quantities.setdefault(title, {}).setdefault(index, []).append(spread)
                if key in _VALIDATIONS:
                    rings.setdefault(title, []).extend(_rings(run, spread, line.colour))
    order = sorted(quantities, key=lambda title: (_PLACES.get(title.split(",")[0], 1), title))
    return [chart(title, quantities[title], lines, rings.get(title, ())) for title in order]


_PLACES = {
    **{"Validation accuracy %": -1, "Reward": 0, "Completion length": 2},
    **{"Groups without reward variance": 3, "Loss": 4},
}
QUANTITIES = {
    "reward": "Reward, weighted sum",
    "completions/mean_length": "Completion length, mean tokens",
    "frac_reward_zero_std": "Groups without reward variance, share",
}
"""Of every GRPO training, by the key that TRL logs."""
_VALIDATIONS = {
    "validation/accuracy": "Validation accuracy %, in-domain",
    "transfer/accuracy": "Validation accuracy %, other cells",
    "validation/blank_image": "Validation accuracy %, in-domain, blank image",
}


def _title(key: str, run: Run) -> str:
    """The heading of a logged key, empty for one that is not drawn."""
    parts = key.split("/")
    if key in _VALIDATIONS:
        return _VALIDATIONS[key]
    if key in QUANTITIES:
        return QUANTITIES[key]
    if parts[0] == "rewards" and parts[-1] == "mean":
        return f"Reward “{'/'.join(parts[1:-1])}”"
    if key == "loss":  # losses of different algorithms have nothing in common
        return f"Loss, {run.config.method.algorithm.upper() if run.config else run.method}"
    return ""


def logged(folder: RunFolder) -> dict[str, Spread]:
    """Logged values by key; shares of validation in percent, with their intervals."""
    series: dict[str, Spread] = {}
    for row in folder.logged():
        for key, value in row.items():
            if key == "step" or value is None:
                continue
            side, _, name = key.partition("/")
            low, high = validation_ends(row, side)
            if name != Metric.ACCURACY or low is None or high is None:
                low, high = value, value
            factor = 100 if key in _VALIDATIONS else 1
            values = (factor * low, factor * value, factor * high)
            series.setdefault(key, []).append((row["step"], *values))
    return series


def validation_ends(
    row: Mapping[str, Any], side: str = "validation"
) -> tuple[float | None, float | None]:
    """The interval of a logged validation, 0 to 1; None of too few clusters."""
    if row.get(f"{side}/{Metric.CLUSTERS}", FEWEST_FOR_INTERVAL) < FEWEST_FOR_INTERVAL:
        return None, None
    return row.get(f"{side}/{Metric.CI_LOW}"), row.get(f"{side}/{Metric.CI_HIGH}")


def _rings(run: Run, spread: Spread, colour: int) -> Iterator[Ring]:
    """At the step whose weights the run kept, where it was validated."""
    for step, _, value, _ in spread:
        if step == run.state.chosen_step:
            title = f"{run.label}: step {step:g} was kept, {run.state.chosen_because}"
            yield Ring(step, value, colour, title)


def chart(
    title: str,
    series: dict[int, list[Spread]],
    lines: Sequence[Line],
    rings: Sequence[Ring],
    first: float = 0,
    unit: str = "steps",
) -> Chart:
    """A line for each index of `lines` in `series`: the spreads of its runs. The axis begins at
    `first`."""
    spreads = {index: over_runs(runs) for index, runs in series.items()}
    steps = [step for spread in spreads.values() for step, *_ in spread]
    values = [value for spread in spreads.values() for _, *ends in spread for value in ends]
    values += [ring.value for ring in rings]
    ticks, last = ticks_around(min(values), max(values)), max(steps)
    drawn = Chart(title, [], f"{round(first, 1):g}", f"{round(last, 1):g} {unit}", [], [])

    def place(point: tuple[float, float]) -> str:
        share = (point[0] - first) / ((last - first) or 1)
        x = drawn.left + share * (drawn.right - drawn.left)
        return f"{x:.1f},{height_at(ticks, point[1])}"

    drawn.ticks.extend((f"{height_at(ticks, tick)}", f"{tick:g}") for tick in ticks)
    for index, spread in spreads.items():
        runs = len(series[index])
        drawn.marks.extend(_marks(spread, f"s{lines[index].colour}", place, several=runs > 1))
        label = lines[index].label + (f", mean of {runs}" if runs > 1 else "")
        drawn.legend.append((label, lines[index].colour))
    drawn.rings.extend((place((ring.step, ring.value)), ring) for ring in rings)
    return drawn


def height_at(ticks: Sequence[float], value: float) -> float:
    """The y of a value on the axis of a `Frame`."""
    share = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return round(Frame.height - _BOTTOM - share * (Frame.height - _TOP - _BOTTOM), 1)


def _marks(
    spread: Spread,
    colour: str,
    place: Callable[[tuple[float, float]], str],
    *,
    several: bool,
) -> Iterator[Mark]:
    """A line with its band, or smoothed with its raw values."""
    points = [(step, value) for step, _, value, _ in spread]
    smooth = smoothed(points)
    if several or any(low < high for _, low, _, high in spread):
        around = [(step, low) for step, low, _, _ in spread]
        around += [(step, high) for step, _, _, high in reversed(spread)]
        yield Mark(True, colour, [*map(place, around)])
    elif smooth is not points:
        yield Mark(False, f"raw {colour}", [*map(place, points)])
    yield Mark(False, colour, [*map(place, smooth)])


def over_runs(runs: Sequence[Spread]) -> Spread:
    """Of one run as it is; of several (step, 10th percentile, mean, 90th percentile) of the steps
    that most of them reached."""
    if len(runs) == 1:
        return runs[0]
    by_step: dict[float, list[float]] = {}
    for spread in runs:
        for step, _, value, _ in spread:
            by_step.setdefault(step, []).append(value)
    return [
        (step, float(np.quantile(values, 0.1)), fmean(values), float(np.quantile(values, 0.9)))
        for step, values in sorted(by_step.items())
        if 2 * len(values) >= len(runs)
    ]


def smoothed(points: Points) -> Points:
    """Mean of a window of a tenth of the curve around each point; a short curve as it is."""
    if len(points) < _SMOOTHED_FROM:
        return points
    half = len(points) // 20
    smooth = []
    for i, (step, _) in enumerate(points):
        window = [value for _, value in points[max(0, i - half) : i + half + 1]]
        smooth.append((step, sum(window) / len(window)))
    return smooth


def ticks_around(low: float, high: float) -> list[float]:
    """Three to six round values around the range."""
    if math.isclose(low, high, rel_tol=1e-6, abs_tol=1e-9):
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]
