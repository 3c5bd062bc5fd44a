"""Learning curves as inline SVG: what the trainers logged in metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

import numpy as np

from medreason.report.runs import Run
from medreason.runs.run_folder import RunFolder

Points = list[tuple[float, float]]
"""(optimizer step, value)"""

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 26
_SMOOTHED_FROM = 30  # points; shorter curves are drawn as they are


@dataclass(frozen=True)
class Line:
    """What one line of a chart is drawn from: a run, or all runs of an arm."""

    label: str
    runs: tuple[Run, ...]


def curves(lines: Sequence[Line]) -> str:
    """One small chart for each logged quantity; empty where nothing was logged.

    A line of several runs is their mean, with a band from their 10th to their 90th percentile.
    """
    charts: dict[str, dict[int, list[Points]]] = {}
    for index, line in enumerate(lines):
        for run in line.runs:
            for key, points in _series(run.folder).items():
                if title := _title(key, run):
                    charts.setdefault(title, {}).setdefault(index, []).append(points)
    order = sorted(charts, key=lambda title: (_PLACES.get(title.split(",")[0], 1), title))
    return "".join(_chart(title, charts[title], lines) for title in order)


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


def _series(run: RunFolder) -> dict[str, Points]:
    """Logged values by key."""
    found: dict[str, Points] = {}
    for row in run.logged():
        for key, value in row.items():
            if key != "step" and value is not None:
                found.setdefault(key, []).append((row["step"], value))
    return found


def _chart(title: str, found: dict[int, list[Points]], lines: Sequence[Line]) -> str:
    drawn = {index: _spread(runs) for index, runs in found.items()}
    steps = [step for spread in drawn.values() for step, *_ in spread]
    values = [value for spread in drawn.values() for _, *some in spread for value in some]
    ticks = _ticks(min(values), max(values))
    last = max(steps)

    def place(point: tuple[float, float]) -> str:
        x = _LEFT + point[0] / max(last, 1) * (_WIDTH - _LEFT - _RIGHT)
        share = (point[1] - ticks[0]) / (ticks[-1] - ticks[0])
        return f"{x:.1f},{_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    marks = [_grid(ticks, place, last)]
    for index, spread in drawn.items():
        points = [(step, mean) for step, _, mean, _ in spread]
        smooth = _smoothed(points)
        if len(found[index]) > 1:
            around = [(step, low) for step, low, _, _ in spread]
            around += [(step, high) for step, _, _, high in reversed(spread)]
            marks.append(
                f'<polygon class="band s{index % 8}" points="{" ".join(map(place, around))}"/>'
            )
        elif smooth is not points:
            marks.append(_line(points, place, f"raw s{index % 8}"))
        marks.append(_line(smooth, place, f"s{index % 8}"))
    names = ", ".join(_name(lines[index], len(runs)) for index, runs in found.items())
    legend = "".join(_legend(_name(lines[i], len(runs)), i) for i, runs in found.items())
    return (
        f'<figure class="curve"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)} over optimizer steps: {escape(names)}">{"".join(marks)}</svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _spread(runs: Sequence[Points]) -> list[tuple[float, float, float, float]]:
    """(step, 10th percentile, mean, 90th percentile) of the steps most of the runs came to."""
    at: dict[float, list[float]] = {}
    for points in runs:
        for step, value in points:
            at.setdefault(step, []).append(value)
    return [
        (step, float(np.quantile(values, 0.1)), fmean(values), float(np.quantile(values, 0.9)))
        for step, values in sorted(at.items())
        if 2 * len(values) >= len(runs)
    ]


def _name(line: Line, runs: int) -> str:
    return line.label if runs == 1 else f"{line.label}, mean of {runs}"


def _grid(ticks: Sequence[float], place, last: float) -> str:  # noqa: ANN001
    drawn = []
    for tick in ticks:
        _, y = place((0, tick)).split(",")
        drawn.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
            f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{tick:g}</text>'
        )
    for step, anchor in ((0, "start"), (last, "end")):
        x, _ = place((step, ticks[0])).split(",")
        label = f"{step:g} steps" if step else "0"
        drawn.append(f'<text x="{x}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{label}</text>')
    return "".join(drawn)


def _line(points: Points, place, style: str) -> str:  # noqa: ANN001
    if len(points) == 1:
        x, y = place(points[0]).split(",")
        return f'<circle class="dot {style}" cx="{x}" cy="{y}" r="3"/>'
    return f'<polyline class="line {style}" points="{" ".join(map(place, points))}"/>'


def _legend(name: str, index: int) -> str:
    return f'<li><span class="swatch s{index % 8}"></span>{escape(name)}</li>'


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
