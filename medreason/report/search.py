"""The trials of a search: what was tried, what validation said of it, and which was chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from medreason.console import counted, number_text
from medreason.metrics import Metric
from medreason.report.curves import Frame, height_at, ticks_around, validation_ends
from medreason.report.names import short, varying_values
from medreason.report.runs import Run
from medreason.report.table import filled, percent
from medreason.runs import status
from medreason.training import selection

_INSET = 24  # room for half a label at either end of the x-axis
_APART = 0.15  # of the x-axis, between labels of neighbours
_WIDE = 10 - 1e-9  # ratio of the largest to the smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Trial:
    """A run that was trained to be compared by validation alone. Shares are of 1."""

    run: Run
    values: dict[str, str]
    """Of what differs between the trials, by its key."""
    score: float | None
    """Accuracy on validation questions of the weights it kept; None where it is not trained."""
    low: float | None
    high: float | None
    chosen: bool


@dataclass(frozen=True)
class Point:
    """A trial in a picture, in the units of its SVG."""

    x: float
    y: float
    low: float
    high: float
    """Ends of its interval."""
    chosen: bool
    title: str


@dataclass(frozen=True)
class Picture(Frame):
    """Scores over the values of one key."""

    labels: list[tuple[str, str]]
    """(x, label), each with a tick"""
    axis: str
    """What the horizontal axis is, and whether it is logarithmic."""
    points: list[Point]


def split(runs: Sequence[Run]) -> tuple[list[Trial], list[Run]]:
    """The trials of a sweep, the best first, and its runs without those that were not tested."""
    validated = [run for run in runs if run.config and run.config.validation.every]
    members = [run for run in validated if status.is_trial(run.folder)]
    if len({run.folder.path for run in members}) < 2:
        return [], list(runs)  # such as a trial that another sweep asks for, too
    best = selection.best_run(run.folder for run in members)
    values = varying_values([run.config for run in members if run.config])
    trials = [
        Trial(run, of_run, *_score(run), chosen=run.folder == best)
        for run, of_run in zip(members, values, strict=True)
    ]
    trials.sort(key=lambda t: (t.score is None, -(t.score or 0), not t.chosen, t.run.name))
    untested = {run.name for run in members if not run.metrics}
    # Where none is tested yet, the page has their curves.
    return trials, [run for run in runs if run.name not in untested] or list(runs)


def without_trials(runs: Sequence[Run]) -> list[Run]:
    """The runs without trials that were not tested, where others are left."""
    return [run for run in runs if run.metrics or not status.is_trial(run.folder)] or list(runs)


def _score(run: Run) -> tuple[float | None, float | None, float | None]:
    kept = (row for row in run.folder.logged() if row["step"] == run.state.chosen_step)
    row = next(kept, {}) if run.state.trained else {}
    low, high = validation_ends(row)
    return row.get(selection.SCORE), low, high


def table(trials: Sequence[Trial]) -> Table:
    """The trials, the best first."""
    columns: dict[str, list[str]] = {"trial": [trial.run.label for trial in trials]}
    for key in trials[0].values:
        columns[key.rpartition(".")[2]] = [short(trial.values[key]) for trial in trials]
    columns["validation %"] = [score_text(trial) for trial in trials]
    columns["step"] = [str(trial.run.state.chosen_step or "-") for trial in trials]
    columns["tested"] = [tested_text(trial) for trial in trials]
    return filled(columns, Text(note(trials)))


def note(trials: Sequence[Trial]) -> str:
    """How the chosen one was chosen."""
    scores = [trial.score for trial in trials if trial.score is not None]
    equal = scores.count(max(scores, default=0.0))
    among = f" ({equal} are equal)" if equal > 1 else ""
    are = "is" if len(scores) == 1 else "are"
    return (
        f"{len(scores)} of {counted(len(trials), 'trial')} {are} trained; the best by "
        f"validation{among}, of equal ones the first by the name of its folder, is chosen, and it "
        "alone is tested"
    )


def score_text(trial: Trial) -> str:
    """61.2 [50.1, 71.3]; of too few clusters 61.2 [-]; a dash where it is not trained."""
    if trial.score is None:
        return "-"
    ends = "-" if trial.low is None else f"{percent(trial.low)}, {percent(trial.high)}"
    return f"{percent(trial.score)} [{ends}]"


def tested_text(trial: Trial) -> str:
    """The accuracy on the test of the chosen one."""
    if trial.run.metrics:
        return f"{percent(trial.run.overall[Metric.ACCURACY])} %"
    return "chosen, not tested yet" if trial.chosen else "no"


def pictures(trials: Sequence[Trial], logarithmic: Collection[str] = ()) -> list[Picture]:
    """Scores over the values of each searched key; none where fewer than two trials are trained.
    The axis of `logarithmic` keys is so however close the values are."""
    trained = [trial for trial in trials if trial.score is not None]
    if len(trained) < 2:
        return []
    keys = list(trained[0].values)
    varying = [key for key in keys if len({t.values[key] for t in trained}) > 1]
    return [_picture(key, trained, log=key in logarithmic) for key in varying]


def _picture(key: str, trials: Sequence[Trial], *, log: bool = False) -> Picture:
    values = [trial.values[key] for trial in trials]
    numbers = _numbers(values)
    log = _is_wide(numbers) or (log and min(numbers, default=0) > 0)
    places, labels = _places(values, log=log)
    ends = [(100 * (t.low or t.score or 0), 100 * (t.high or t.score or 0)) for t in trials]
    ticks = ticks_around(min(low for low, _ in ends), max(high for _, high in ends))

    def x(share: float) -> float:
        width = Frame.right - Frame.left - 2 * _INSET
        return round(Frame.left + _INSET + share * width, 1)

    def y(value: float) -> float:
        return height_at(ticks, value)

    return Picture(
        f"Validation accuracy % by {key}",
        [(f"{y(tick)}", f"{tick:g}") for tick in ticks],
        [(f"{x(share)}", label) for share, label in labels],
        key + (", log scale" if log else ""),
        [
            Point(x(place), y(100 * (t.score or 0)), y(low), y(high), t.chosen,
                  f"{key}={short(t.values[key])}: {score_text(t)}")
            for t, place, (low, high) in zip(trials, places, ends, strict=True)
        ],
    )  # fmt: skip


def _places(values: Sequence[str], *, log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Of each value its share of the axis; and (share, label) of the axis."""
    numbers = _numbers(values)
    if len(numbers) < len(values):
        names = sorted(set(values))
        share = {name: i / max(len(names) - 1, 1) for i, name in enumerate(names)}
        return [share[value] for value in values], [(share[name], name) for name in names]
    low, high = min(numbers), max(numbers)
    scale = math.log if log else float
    span = scale(high) - scale(low)
    places = [(scale(number) - scale(low)) / span for number in numbers]
    labels = sorted(
        {(p, number_text(number, 3)) for p, number in zip(places, numbers, strict=True)}
    )
    if any(b - a < _APART for (a, _), (b, _) in itertools.pairwise(labels)):
        inside = [tick for tick in _ticks(low, high, log=log) if low <= tick <= high]
        ticks = inside if len(inside) > 1 else [low, high]
        labels = [((scale(tick) - scale(low)) / span, number_text(tick, 3)) for tick in ticks]
    return places, _apart(labels)


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    """Round values between the two, of a logarithmic axis powers of ten and what divides them."""
    if not log or not _is_wide([low, high]):
        return ticks_around(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 1000 else (1, 3)
    return [float(f"{factor}e{power}") for power in powers for factor in factors]


def _apart(labels: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those that do not run into the one before."""
    shown: list[tuple[float, str]] = []
    for place, label in labels:
        if not shown or place - shown[-1][0] >= _APART:
            shown.append((place, label))
    return shown


def _is_wide(numbers: Sequence[float]) -> bool:
    """Whether an axis of these is logarithmic."""
    return bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) >= _WIDE


def _numbers(values: Sequence[str]) -> list[float]:
    return [number for value in values if (number := _number(value)) is not None]


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
