"""What the papers argue with beside accuracies: curves of training, and accuracy by length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medreason.report import matrices
from medreason.report.curves import (
    QUANTITIES,
    Chart,
    Line,
    Spread,
    chart,
    logged,
    over_runs,
    smoothed,
)
from medreason.report.matrices import Arm
from medreason.report.runs import estimate
from medreason.stats import FEWEST

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 5
BY_LENGTH = "Accuracy % by completion length"
LENGTH_NOTE = (
    "Answers of all arms in fifths of their common lengths, at the mean length of each fifth; "
    "band: 95 % interval. Not a cause: harder questions may have longer replies, and a reply that "
    f"was cut off is wrong. A fifth with fewer than {FEWEST} clusters of an arm is left out; "
    "tables/accuracy-by-length.csv has it."
)
_COLOURS = ("#6b7684", "#0072b2", "#d55e00", "#00875f", "#b3568c", "#b07700", "#2b8cc4", "#4b4fa3")
"""Those of the page, --s0 to --s7 of page.css."""


@dataclass(frozen=True)
class Length:
    """The answers of an arm whose completions have from `low` to `high` tokens."""

    arm: str
    low: int
    high: int
    tokens: float
    """Mean."""
    answers: int
    """Of all models of the arm."""
    clusters: int
    accuracy: float
    """0 to 1, with its 95 % interval."""
    ci_low: float
    ci_high: float


def by_length(arms: Sequence[Arm]) -> list[Length]:
    """Accuracy in fifths of the lengths of all arms together; nothing where all are equal."""
    if not arms:
        return []
    tokens = pd.concat([arm.answers["completion_tokens"] for arm in arms])
    ends = np.unique(np.quantile(tokens, np.linspace(0, 1, _BINS + 1), method="nearest"))
    if len(ends) < 2:
        return []
    return [length for arm in arms for length in _lengths(arm, ends.tolist())]


def _lengths(arm: Arm, ends: Sequence[float]) -> Iterator[Length]:
    fifths = pd.cut(arm.answers["completion_tokens"], ends, include_lowest=True)
    for _, rows in arm.answers.groupby(fifths, observed=True):
        accuracy = estimate(rows, arm.statistics)
        tokens = rows["completion_tokens"]
        yield Length(
            *(arm.name, int(tokens.min()), int(tokens.max()), float(tokens.mean())),
            *(accuracy.n, accuracy.clusters, accuracy.mean, accuracy.low, accuracy.high),
        )


def length_charts(arms: Sequence[Arm], colours: Mapping[str, int]) -> list[Chart]:
    """Accuracy over length as a chart of the page, none where lengths do not differ, or where
    no arm has enough clusters in two fifths."""
    lines = [Line(arm.name, arm.runs, colours[arm.runs[0].name]) for arm in arms]
    # One fifth alone is no line.
    spreads = {a: spread for a, spread in _spreads(by_length(arms)).items() if len(spread) > 1}
    series = {i: [spreads[arm.name]] for i, arm in enumerate(arms) if arm.name in spreads}
    if not series:
        return []
    shortest = min(tokens for spread in spreads.values() for tokens, *_ in spread)
    return [chart(BY_LENGTH, series, lines, (), shortest, "tokens")]


def _spreads(lengths: Sequence[Length]) -> dict[str, Spread]:
    """By arm (mean length, lower end, accuracy, upper end), in percent, of enough clusters: the
    band of few is from 0 to 100."""
    spreads: dict[str, Spread] = {}
    for row in (row for row in lengths if row.clusters >= FEWEST):
        low, middle, high = (100 * value for value in (row.ci_low, row.accuracy, row.ci_high))
        spreads.setdefault(row.arm, []).append((row.tokens, low, middle, high))
    return spreads


def training(arms: Sequence[Arm]) -> dict[str, dict[str, Spread]]:
    """Quantity -> arm -> (step, 10th percentile, mean, 90th percentile over its models), of what
    was logged."""
    curves: dict[str, dict[str, Spread]] = {}
    for arm in arms:
        series = [logged(run.folder) for run in {r.folder.path: r for r in arm.runs}.values()]
        for key in QUANTITIES:
            if members := [values[key] for values in series if key in values]:
                curves.setdefault(key, {})[arm.name] = over_runs(members)
    return curves


def write(arms: Sequence[Arm], folder: Path) -> list[Path]:
    """`training` and `accuracy-by-length` as CSV, Parquet and pictures, where there are data."""
    curves, lengths = training(arms), by_length(arms)
    colours = {arm.name: _COLOURS[i % len(_COLOURS)] for i, arm in enumerate(arms)}
    rows: list[dict[str, Any]] = [
        {"arm": arm, "quantity": key, "step": step, "low": low, "mean": mean, "high": high}
        for key, by_arm in curves.items()
        for arm, spread in by_arm.items()
        for step, low, mean, high in spread
    ]
    files = matrices.write(rows, folder / "training")
    files += matrices.write([asdict(row) for row in lengths], folder / "accuracy-by-length")
    if curves:
        titles = {QUANTITIES[key]: by_arm for key, by_arm in curves.items()}
        files.append(_draw(titles, colours, "optimizer step", folder / "training.png"))
    if spreads := _spreads(lengths):
        files.append(
            _draw({BY_LENGTH: spreads}, colours, "tokens", folder / "accuracy-by-length.png")
        )
    return files


def _draw(
    panels: Mapping[str, Mapping[str, Spread]], colours: Mapping[str, str], unit: str, path: Path
) -> Path:
    """Panels beside each other; `colours` are those of the arms."""
    from matplotlib.figure import Figure  # half a second

    figure = Figure(figsize=(4.6 * len(panels), 3.6), dpi=160, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (title, by_arm) in zip(axes, panels.items(), strict=True):
        _draw_panel(panel, by_arm, colours)
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xlabel(unit, fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path)
    return path


def _draw_panel(axes: Axes, by_arm: Mapping[str, Spread], colours: Mapping[str, str]) -> None:
    for arm, spread in by_arm.items():
        places, low, mean, high = zip(*spread, strict=True)
        marker = "o" if len(places) <= _BINS else ""
        smooth = [value for _, value in smoothed(list(zip(places, mean, strict=True)))]
        axes.plot(places, smooth, marker=marker, markersize=4, color=colours[arm], label=arm)
        if smooth != list(mean):
            axes.plot(places, mean, color=colours[arm], alpha=0.25, linewidth=0.8)
        axes.fill_between(places, low, high, color=colours[arm], alpha=0.16, linewidth=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
