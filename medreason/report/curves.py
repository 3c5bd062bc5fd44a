"""Learning curves from what the trainers logged in metrics.jsonl; curves.html draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from medreason.report.runs import Run
from medreason.runs.run_folder import RunFolder

Points = list[tuple[float, float]]
"""(optimizer step, value)"""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 26  # margins
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
class Chart:
    """One logged quantity over optimizer steps, in the units of its SVG."""

    title: str
    ticks: list[tuple[str, str]]
    """(y, label)"""
    steps: str
    """Label of the last step."""
    marks: list[Mark]
    legend: list[tuple[str, int]]
    """(name, colour)"""
    width: int = 340
    height: int = 190
    left: int = _LEFT
    right: int = 340 - _RIGHT


def charts(lines: Sequence[Line]) -> list[Chart]:
    """One for each logged quantity; none where nothing was logged.

    A line of several runs is their mean, with a band from their 10th to their 90th percentile.
    """
    quantities: dict[str, dict[int, list[Points]]] = {}
    for index, line in enumerate(lines):
        for run in line.runs:
            for key, points in _series(run.folder).items():
                if title := _title(key, run):
                    quantities.setdefault(title, {}).setdefault(index, []).append(points)
    order = sorted(quantities, key=lambda title: (_PLACES.get(title.split(",")[0], 1), title))
    return [_chart(title, quantities[title], lines) for title in order]


_PLACES = {"Reward": 0, "Completion length": 2, "Loss": 3}


def _title(key: str, run: Run) -> str:
    """The heading of a logged key, empty for one that is not drawn."""
    parts = key.split("/")
    if key == "reward":
        return "Reward, weighted sum"
    if parts[0] == "rewards" and parts[-1] == "mean":
        return f"Reward “{'/'.join(parts[1:-1])}”"
    if key == "completions/mean_length":
        return "Completion length, mean tokens"
    if key == "loss":  # losses of different algorithms have nothing in common
        return f"Loss, {run.config.method.algorithm.upper() if run.config else run.method}"
    return ""


def _series(folder: RunFolder) -> dict[str, Points]:
    """Logged values by key."""
    series: dict[str, Points] = {}
    for row in folder.logged():
        for key, value in row.items():
            if key != "step" and value is not None:
                series.setdefault(key, []).append((row["step"], value))
    return series


def _chart(title: str, series: dict[int, list[Points]], lines: Sequence[Line]) -> Chart:
    spreads = {index: _spread(runs) for index, runs in series.items()}
    steps = [step for spread in spreads.values() for step, *_ in spread]
    values = [value for spread in spreads.values() for _, *ends in spread for value in ends]
    ticks, last = _ticks(min(values), max(values)), max(steps)
    chart = Chart(title, [], f"{last:g}", [], [])

    def place(point: tuple[float, float]) -> str:
        x = _LEFT + point[0] / max(last, 1) * (chart.width - _LEFT - _RIGHT)
        share = (point[1] - ticks[0]) / (ticks[-1] - ticks[0])
        return f"{x:.1f},{chart.height - _BOTTOM - share * (chart.height - _TOP - _BOTTOM):.1f}"

    chart.ticks.extend((place((0, tick)).split(",")[1], f"{tick:g}") for tick in ticks)
    for index, spread in spreads.items():
        colour, runs = f"s{lines[index].colour}", len(series[index])
        points = [(step, mean) for step, _, mean, _ in spread]
        smooth = _smoothed(points)
        if runs > 1:
            around = [(step, low) for step, low, _, _ in spread]
            around += [(step, high) for step, _, _, high in reversed(spread)]
            chart.marks.append(Mark(True, colour, [*map(place, around)]))
        elif smooth is not points:
            chart.marks.append(Mark(False, f"raw {colour}", [*map(place, points)]))
        chart.marks.append(Mark(False, colour, [*map(place, smooth)]))
        label = lines[index].label + (f", mean of {runs}" if runs > 1 else "")
        chart.legend.append((label, lines[index].colour))
    return chart


def _spread(runs: Sequence[Points]) -> list[tuple[float, float, float, float]]:
    """(step, 10th percentile, mean, 90th percentile) of the steps that most runs reached."""
    by_step: dict[float, list[float]] = {}
    for points in runs:
        for step, value in points:
            by_step.setdefault(step, []).append(value)
    return [
        (step, float(np.quantile(values, 0.1)), fmean(values), float(np.quantile(values, 0.9)))
        for step, values in sorted(by_step.items())
        if 2 * len(values) >= len(runs)
    ]


def _smoothed(points: Points) -> Points:
    """Mean of a window of a tenth of the curve around each point."""
    if len(points) < _SMOOTHED_FROM:
        return points
    half = len(points) // 20
    smooth = []
    for i, (step, _) in enumerate(points):
        window = [value for _, value in points[max(0, i - half) : i + half + 1]]
        smooth.append((step, sum(window) / len(window)))
    return smooth


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values around the range."""
    if math.isclose(low, high, rel_tol=1e-6, abs_tol=1e-9):
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]
