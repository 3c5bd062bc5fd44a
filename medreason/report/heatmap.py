"""One figure of the matrix: 8 modalities x 5 question types, with the means of rows and columns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medreason.samples import MODALITIES, TASKS

_GAP = 0.18  # cell widths between the matrix and its means
_INK, _FAINT, _EMPTY, _HATCH = "#10151c", "#5b6675", "#f4f5f7", "#d9dde3"
_INK_LUMINANCE = 0.007


def heat_map(
    values: Mapping[str, float | None],
    *,
    title: str,
    unit: str = "%",
    vmin: float = 0,
    vmax: float = 100,
    center: float | None = None,
) -> Figure:
    """Draw values keyed `modality/task`; what has none stays empty and is in no mean.

    With `center` the colours diverge from it: for differences. `vmin` and `vmax` are the ends of
    the colours, not of the numbers.

    Raises:
        ValueError: a key is no cell of the matrix.
    """
    _refuse_strangers(values)
    norm, colours = _colours(vmin, vmax, center)
    figure = Figure(figsize=(6.6, 5.2), dpi=160, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    rows, columns = len(MODALITIES), len(TASKS)
    known = {key: value for key, value in values.items() if value is not None}
    by_row = [[known.get(f"{m}/{t}") for t in TASKS] for m in MODALITIES]
    for i, row in enumerate(by_row):
        for j, value in enumerate(row):
            _cell(axes, j, i, value, norm, colours, signed=center is not None)
        _cell(axes, columns + _GAP, i, _mean(row), norm, colours, signed=center is not None)
    by_column = [*map(list, zip(*by_row, strict=True)), [v for row in by_row for v in row]]
    for j, column in enumerate(by_column):
        place = j if j < columns else columns + _GAP
        _cell(axes, place, rows + _GAP, _mean(column), norm, colours, signed=center is not None)
    _frame(axes, title, unit)
    return figure


def square(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    *,
    title: str,
    unit: str = "%",
    vmin: float = 0,
    vmax: float = 100,
    center: float | None = None,
) -> Figure:
    """Draw train (rows) x test (columns) of any size, numbers in the cells where they can be read.

    What was trained and tested on the same lies on the outlined diagonal.
    """
    norm, colours = _colours(vmin, vmax, center)
    large = len(columns) > 12
    side = max(5.0, (0.22 if large else 0.72) * len(columns))
    figure = Figure(
        figsize=(side + 1.6, side * len(rows) / len(columns) + 1.0),
        dpi=160,
        facecolor="white",
        layout="constrained",
    )
    axes = figure.add_subplot()
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            value = values.get((row, column))
            signed = center is not None
            _cell(axes, j, i, value, norm, colours, signed=signed, silent=large)
            if row == column:
                axes.add_patch(Rectangle((j, i), 1, 1, fill=False, linewidth=1.2, edgecolor=_INK))
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), ylabel="trained on")
    size = 5.5 if large else 9.5
    axes.set_xticks([j + 0.5 for j in range(len(columns))], columns, rotation=90 if large else 0)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.tick_params(length=0, labelsize=size, labelcolor=_INK, pad=3)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    axes.set_title(f"{title} ({unit})", loc="left", fontsize=11.5, color=_INK, pad=12)
    return figure


def _colours(vmin: float, vmax: float, center: float | None) -> tuple[Normalize, Colormap]:
    """Both maps keep their order for colour-blind readers and in grey."""
    if center is None:
        return Normalize(vmin, vmax, clip=True), colormaps["viridis"]
    low, high = min(vmin, center - 1e-9), max(vmax, center + 1e-9)
    return TwoSlopeNorm(center, low, high), colormaps["RdBu"]


def _cell(
    axes: Axes,
    x: float,
    y: float,
    value: float | None,
    norm: Normalize,
    colours: Colormap,
    *,
    signed: bool,
    silent: bool = False,
) -> None:
    if value is None:
        fill = _EMPTY
        text, ink, hatch, edge = "\u2013", _FAINT, "////", _HATCH
    else:
        clipped = min(max(value, norm.vmin or 0.0), norm.vmax or 0.0)
        red, green, blue, _ = colours(norm(clipped))
        fill = (red, green, blue)
        text = (f"{value:+.1f}" if signed else f"{value:.1f}").replace("-", "\u2212")
        light = _luminance(red, green, blue) + 0.05
        ink = "white" if 1.05 / light > light / (_INK_LUMINANCE + 0.05) else _INK
        hatch, edge = None, fill
    axes.add_patch(
        Rectangle(
            (x + 0.01, y + 0.01),
            0.98,
            0.98,
            linewidth=0,
            facecolor=fill,
            edgecolor=edge,
            hatch=hatch,
        )
    )
    if silent:
        return
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=ink, fontsize=9.5)


def _frame(axes: Axes, title: str, unit: str) -> None:
    rows, columns = len(MODALITIES), len(TASKS)
    axes.set(xlim=(0, columns + 1 + _GAP), ylim=(rows + 1 + _GAP, 0))
    middles = [*(j + 0.5 for j in range(columns)), columns + _GAP + 0.5]
    axes.set_xticks(middles, [*TASKS.values(), "Mean"])
    axes.set_yticks(
        [*(i + 0.5 for i in range(rows)), rows + _GAP + 0.5], [*MODALITIES.values(), "Mean"]
    )
    axes.tick_params(length=0, labelsize=9.5, labelcolor=_INK, pad=5)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    axes.set_title(f"{title} ({unit})", loc="left", fontsize=11.5, color=_INK, pad=12)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _luminance(red: float, green: float, blue: float) -> float:
    """Relative luminance, 0 to 1. Source: WCAG 2.2, "relative luminance"."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _refuse_strangers(values: Mapping[str, float | None]) -> None:
    known = {f"{modality}/{task}" for modality in MODALITIES for task in TASKS}
    if strangers := sorted(set(values) - known):
        raise ValueError(
            f"{strangers[0]!r} is no cell; modalities are {list(MODALITIES)}, tasks {list(TASKS)}"
        )
