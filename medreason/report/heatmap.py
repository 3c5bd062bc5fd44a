"""Heat maps as pictures: modalities x question types, with means of rows and columns."""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medreason.metrics import rounded
from medreason.samples import MODALITIES, TASKS, UNKNOWN

_GAP = 0.18  # cell widths between the matrix and its means
_INK, _FAINT, _EMPTY, _HATCH = "#10151c", "#5b6675", "#f4f5f7", "#d9dde3"
_INK_LUMINANCE = 0.007
_PALE = 0.68  # share of white where a value may be chance
_DENSE = 12  # columns; with more, colours alone can be seen
_RED_BLUE = LinearSegmentedColormap.from_list(  # RdBu without its ends, which are grey when pale
    "red_blue", colormaps["RdBu"]([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
)
_NOTE_POINTS = 8.0  # size of the line below the map
_CHARACTER = 0.6  # width of a letter, of its size
_NAMES_INCHES = 1.3  # beside the map, for the names of its rows


@dataclass(frozen=True)
class Marks:
    """Which values are more than chance; the others are drawn pale."""

    clear: AbstractSet[Any]
    """Keys of the values; of means `ct/all`, `all/disease`, `all/all`."""
    rule: str
    """The meaning of pale, for the line below the map."""


def heat_map(
    values: Mapping[str, float | None],
    *,
    title: str,
    unit: str = "%",
    vmin: float = 0,
    vmax: float = 100,
    center: float | None = None,
    weights: Mapping[str, float] | None = None,
    marks: Marks | None = None,
) -> Figure:
    """Draw values keyed `modality/task`; a cell without one stays empty and is in no mean, a row or
    a column without any is left out.

    Cells whose modality or task is not said (`unknown/disease`) are left out, as in the paper.

    Means are over questions where `weights` has the number of questions of each cell, else over
    cells. With `center` the colours diverge from it: for differences. `vmin` and `vmax` are the
    ends of the colours, not of the numbers.

    Raises:
        ValueError: a key is no cell of the matrix.
    """
    values = {cell: v for cell, v in values.items() if UNKNOWN not in cell.split("/")}
    _refuse_unknown_cells(values)
    norm, colours = _colours(vmin, vmax, center)
    known = {key: value for key, value in values.items() if value is not None}
    modalities = {
        m: name for m, name in MODALITIES.items() if any(f"{m}/{t}" in known for t in TASKS)
    }
    tasks = {t: name for t, name in TASKS.items() if any(f"{m}/{t}" in known for m in MODALITIES)}
    rows, columns = len(modalities), len(tasks)
    figure = Figure(
        figsize=(2.0 + 0.77 * (columns + 1), 1.35 + 0.43 * (rows + 1)),
        dpi=160,
        facecolor="white",
        layout="constrained",
    )
    axes = figure.add_subplot()

    def draw(x: float, y: float, name: str, value: float | None) -> None:
        pale = bool(marks) and name not in marks.clear
        strong = bool(marks) and not pale
        signed = center is not None
        _cell(axes, x, y, value, norm, colours, signed=signed, pale=pale, strong=strong)

    def mean(cells: Iterable[str]) -> float | None:
        members = [cell for cell in cells if cell in known]
        factors = [weights[cell] for cell in members] if weights else None
        return statistics.fmean([known[cell] for cell in members], factors) if members else None

    for i, m in enumerate(modalities):
        for j, t in enumerate(tasks):
            draw(j, i, f"{m}/{t}", known.get(f"{m}/{t}"))
        draw(columns + _GAP, i, f"{m}/all", mean(f"{m}/{t}" for t in tasks))
    for j, t in enumerate(tasks):
        draw(j, rows + _GAP, f"all/{t}", mean(f"{m}/{t}" for m in modalities))
    draw(columns + _GAP, rows + _GAP, "all/all", mean(known))
    ends = [*modalities.values()], [*tasks.values()]
    average = "questions" if weights else "cells"
    _frame(axes, *ends, f"{title} ({unit}; All: mean over {average})", "All")
    _explain(axes, marks)
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
    marks: Marks | None = None,
) -> Figure:
    """Draw train (rows) x test (columns) of any size, numbers in the cells where they can be read.

    Places trained and tested on the same are outlined. A row or a column without a value is left
    out.
    """
    every = rows, columns
    rows = [row for row in rows if any((row, column) in values for column in columns)]
    columns = [column for column in columns if any((row, column) in values for row in rows)]
    norm, colours = _colours(vmin, vmax, center)
    dense = len(columns) > _DENSE
    names = [*columns] if dense else [column.replace(", ", ",\n") for column in columns]
    least = 0.95 if names != [*columns] else 0.72
    side = 0.22 if dense else max(least, min(1.0, 5 / max(len(columns), 1)))
    figure = Figure(
        figsize=(side * len(columns) + 1.6, side * len(rows) + (2.4 if dense else 1.2)),
        dpi=110 if dense else 160,
        facecolor="white",
        layout="constrained",
    )
    axes = figure.add_subplot()
    clear = marks.clear if marks else ()
    if dense:
        table = [[values.get((row, column), math.nan) for column in columns] for row in rows]
        dots = [(columns.index(column) + 0.5, rows.index(row) + 0.5) for row, column in clear]
        _colours_alone(axes, table, dots, norm, colours)
        _separate(axes, rows, columns)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns if not dense else ()):
            strong = (row, column) in clear
            look = {"signed": center is not None, "pale": bool(marks) and not strong}
            value = values.get((row, column))
            _cell(axes, j, i, value, norm, colours, strong=strong, **look)
        if row in columns:
            place = (columns.index(row), i)
            axes.add_patch(Rectangle(place, 1, 1, fill=False, linewidth=1.2, edgecolor=_INK))
    _name_places(axes, rows, names, dense=dense)
    _headline(axes, f"{title} ({unit})")
    if dense:
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, fraction=0.025, pad=0.01)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.ax.tick_params(length=0, labelsize=8, labelcolor=_INK)
    _explain(axes, marks, dense=dense, left_out=_left_out(every, (rows, columns)))
    return figure


def _name_places(axes: Axes, rows: Sequence[str], columns: Sequence[str], *, dense: bool) -> None:
    """The names of a train x test table around it."""
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), ylabel="trained on", xlabel="tested on")
    size = 6.5 if dense else 8.5
    axes.set_xticks([j + 0.5 for j in range(len(columns))], columns, rotation=90 if dense else 0)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.tick_params(length=0, labelsize=size, labelcolor=_INK, pad=3)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_visible(False)


def _separate(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """A line between the cells (`CT, Disease`) of one modality and those of the next."""
    for names, line in ((rows, axes.axhline), (columns, axes.axvline)):
        modalities = [name.partition(",")[0] for name in names]
        for place, (before, after) in enumerate(itertools.pairwise(modalities), start=1):
            if before != after:
                line(place, color=_FAINT, linewidth=0.8)


def _left_out(every: tuple[Sequence[str], ...], shown: tuple[Sequence[str], ...]) -> str:
    """How many rows and columns the map lacks; empty where none."""
    counts = [len(names) - len(own) for names, own in zip(every, shown, strict=True)]
    whats = ("not trained on", "row"), ("not tested on", "column")
    parts = [
        f"{count} {name}{'s' * (count > 1)} ({why})"
        for count, (why, name) in zip(counts, whats, strict=True)
        if count
    ]
    return f"Left out: {', '.join(parts)}" if parts else ""


def _colours_alone(
    axes: Axes,
    table: Sequence[Sequence[float]],
    dots: Sequence[tuple[float, float]],
    norm: Normalize,
    colours: Colormap,
) -> None:
    """One mesh, since 1,600 patches take half a minute; a dot marks more than chance."""
    background = {"facecolor": _EMPTY, "edgecolor": _HATCH, "hatch": "////", "linewidth": 0}
    axes.add_patch(Rectangle((0, 0), len(table[0]), len(table), **background))
    axes.pcolormesh(table, norm=norm, cmap=colours, edgecolors="white", linewidth=0.4)
    if dots:
        axes.plot(*zip(*dots, strict=True), "o", color=_INK, markersize=3)


def _explain(axes: Axes, marks: Marks | None, *, dense: bool = False, left_out: str = "") -> None:
    """The meaning of pale cells, or of dots where cells are too small, below the map."""
    text = left_out
    if marks:
        none = "" if marks.clear else "; here that is every place"
        rule = f"Pale: {marks.rule}{none}"
        if dense:
            none = "" if marks.clear else "; here there is none"
            rule = f"Dot: more than chance; without a dot: {marks.rule}{none}"
        text = f"{rule}. {left_out}" if left_out else rule
    if not text:
        return
    assert isinstance(axes.figure, Figure)
    width, height = axes.figure.get_size_inches()
    # In lines, since the layout makes the map narrower until a long one fits beside it.
    letters = 72 * (width - _NAMES_INCHES) / (_NOTE_POINTS * _CHARACTER)
    lines = textwrap.wrap(text, int(letters))
    axes.figure.set_size_inches(width, height + 1.3 * _NOTE_POINTS / 72 * (len(lines) - 1))
    font: dict[str, Any] = {"va": "top", "fontsize": _NOTE_POINTS, "color": _FAINT}
    axes.text(0, -0.02, "\n".join(lines), transform=axes.transAxes, **font)


def _colours(vmin: float, vmax: float, center: float | None) -> tuple[Normalize, Colormap]:
    """Both maps keep their order for colour-blind readers and in grey."""
    if center is None:
        return Normalize(vmin, vmax, clip=True), colormaps["viridis"]
    low, high = min(vmin, center - 1e-9), max(vmax, center + 1e-9)
    return TwoSlopeNorm(center, low, high), _RED_BLUE


def _cell(
    axes: Axes,
    x: float,
    y: float,
    value: float | None,
    norm: Normalize,
    colours: Colormap,
    *,
    signed: bool,
    pale: bool = False,
    strong: bool = False,
) -> None:
    if value is None:
        fill = _EMPTY
        text, ink, hatch, edge = "\u2013", _FAINT, "////", _HATCH
    else:
        clipped = min(max(value, norm.vmin or 0.0), norm.vmax or 0.0)
        red, green, blue = (
            _PALE + (1 - _PALE) * part if pale else part for part in colours(norm(clipped))[:3]
        )
        fill = (red, green, blue)
        text = rounded(value, signed=signed).replace("-", "\u2212")
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
    weight = "bold" if strong else "normal"
    font: dict[str, Any] = {"fontsize": 9.5, "fontweight": weight}
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=ink, **font)


def _headline(axes: Axes, text: str) -> None:
    """The title; smaller where it is long, since matplotlib cuts off a wider one."""
    assert isinstance(axes.figure, Figure)
    size = min(11.5, 97 * axes.figure.get_figwidth() / len(text))
    axes.set_title(text, loc="left", fontsize=size, color=_INK, pad=12)


def _frame(
    axes: Axes, modalities: Sequence[str], tasks: Sequence[str], title: str, mean: str
) -> None:
    rows, columns = len(modalities), len(tasks)
    axes.set(xlim=(0, columns + 1 + _GAP), ylim=(rows + 1 + _GAP, 0))
    middles = [*(j + 0.5 for j in range(columns)), columns + _GAP + 0.5]
    axes.set_xticks(middles, [*tasks, mean.replace(" ", "\n")])
    axes.set_yticks([*(i + 0.5 for i in range(rows)), rows + _GAP + 0.5], [*modalities, mean])
    axes.tick_params(length=0, labelsize=9.5, labelcolor=_INK, pad=5)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    _headline(axes, title)


def _luminance(red: float, green: float, blue: float) -> float:
    """Relative luminance, 0 to 1. Source: WCAG 2.2, "relative luminance"."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _refuse_unknown_cells(values: Mapping[str, float | None]) -> None:
    known = {f"{modality}/{task}" for modality in MODALITIES for task in TASKS}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"{unknown[0]!r} is no cell; modalities are {list(MODALITIES)}, tasks {list(TASKS)}"
        )
