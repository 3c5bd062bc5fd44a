"""The table of runs: accuracy beside baseline and controls, and the difference to the base run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from medreason.config.schema import CONTROLS
from medreason.metrics import HEADLINE, Metric, Shown
from medreason.report.runs import (
    Run,
    base_of,
    by_cell,
    changes,
    difference,
    in_domain_cells,
    load,
    why_no_base,
)
from medreason.rewards.variance import collapse_warning, collapsed_rewards
from medreason.runs.run_folder import EvaluationFolder
from medreason.stats import Difference, wilson

_PIPE_WIDTH = 100  # characters in pipes and logs; wider tables are printed wider, never wrapped
_MANY = 0.5
NO_BASE = "not compared with a start model"
CUT_OFF = "cut off at evaluation.max_new_tokens"
_DIFFERENCE = ("difference", "difference_low", "difference_high")  # percent points, to the base run


@dataclass(frozen=True)
class Row:
    """A run and its results. Accuracies are shares of 1; a Difference is in percent points."""

    name: str
    """Name of the run folder."""
    label: str
    """The shortest name that tells it from the other runs: the method, where that is enough."""
    method: str
    state: str
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Over all questions, by `Metric`; empty where nothing is evaluated yet."""
    max_new_tokens: int = 0
    """At which a reply is cut off."""
    by_option_likelihood: bool = False
    """Nothing was generated: the answers are the likeliest letters."""
    difference: Difference | None = None
    """To the base run of the same sweep, over all questions both answered."""
    in_domain_n: int | None = None
    """Questions of the cells trained on; for a base run of those the others have in common."""
    in_domain: float | None = None
    in_domain_low: float | None = None
    in_domain_high: float | None = None
    in_domain_difference: Difference | None = None
    tested_on_trained_images: int = 0
    """Test questions about images the run was trained on."""
    restricted: bool = False
    """Tested on cells it was not trained on."""
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    error: str | None = None
    """First line."""
    no_base: str = ""
    """Why there is no difference to a start model, where the sweep has one."""
    collapsed: Mapping[str, float] = field(default_factory=dict)
    """Rewards without variance within a group when training ended, with their mean."""

    @property
    def cut_off(self) -> float:
        """Share of the replies."""
        return self.metrics.get(Metric.CUT_OFF) or 0.0

    @property
    def is_cut_off(self) -> bool:
        """So many replies were cut off that the accuracy says little of the model."""
        return self.cut_off >= _MANY


def rows(evaluations: Iterable[EvaluationFolder]) -> list[Row]:
    """One row an evaluation, those that failed or are not finished included."""
    return rows_of(load(evaluations))


def rows_of(runs: Sequence[Run]) -> list[Row]:
    return [_row(run, runs) for run in runs]


def show(evaluations: Iterable[EvaluationFolder]) -> None:
    """Print the table to stdout."""
    show_rows(rows(evaluations))


def show_rows(rows: Sequence[Row]) -> None:
    show_table(lambda compact: _table(rows, compact=compact))


def show_table(table_of: Callable[[bool], Table]) -> None:
    """Print `table_of(compact)`, compact only where the whole does not fit."""
    console = Console()
    width = console.width if console.is_terminal else max(console.width, _PIPE_WIDTH)
    table = table_of(False)
    if _width(table, console) > width:
        table = table_of(True)
    console.width = width if console.is_terminal else max(width, _width(table, console))
    console.print(table)


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Tidy: a row for each run over all its cells (`all`, `all`) and one for each of its cells."""
    names = Metric.shown_in(Shown.CSV)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["run", "modality", "task", *names, *_DIFFERENCE])
        writer.writeheader()
        for run in runs:
            change = changes(run, base_of(run, runs))
            places = {"all/all": change, **by_cell(run, change)}
            for place, metrics in {"all/all": run.overall, **run.cells}.items():
                modality, task = place.split("/")
                mean = difference(places[place]) if place in places else None
                writer.writerow(
                    {"run": run.label, "modality": modality, "task": task}
                    | {name: metrics.get(name) for name in names}
                    | (dict(zip(_DIFFERENCE, astuple(mean), strict=True)) if mean else {})
                )


def columns(
    place: Shown, metrics: Iterable[Mapping[str, float | None]], *also: Metric
) -> list[Metric]:
    """Metrics with a column of their own: those of `place` that some row has, and `also`."""
    rows = list(metrics)
    return [
        metric
        for metric in Metric.shown_in(place)
        if metric not in HEADLINE
        and (metric in also or any(row.get(metric) is not None for row in rows))
    ]


def _row(run: Run, runs: Sequence[Run]) -> Row:
    state = run.state
    error = (state.error or "").strip()
    row: dict[str, Any] = {
        "name": run.name,
        "label": run.label,
        "method": run.method,
        "no_base": why_no_base(run, runs),
        "state": run.progress,
        "train_seconds": state.train_seconds,
        "evaluate_seconds": state.evaluate_seconds,
        "error": error.splitlines()[0] if error else None,
        "collapsed": collapsed_rewards(run.folder.logged()),
    }
    if run.evaluation.data.exists():
        facts = json.loads(run.evaluation.data.read_text())
        row["tested_on_trained_images"] = facts["test_rows_on_trained_images"]
    if run.metrics is None:
        return Row(**row)
    change, cells = changes(run, base_of(run, runs)), in_domain_cells(run, runs)
    in_domain = run.answers["cell"].isin(cells)
    return Row(
        **row,
        metrics=run.overall,
        max_new_tokens=run.config.evaluation.max_new_tokens if run.config else 0,
        by_option_likelihood=run.metrics.get("answers") == [Metric.OPTION_LIKELIHOOD],
        difference=difference(change),
        in_domain_difference=difference(change[in_domain]),
        restricted=bool(run.trained_on) and not run.tested_on <= run.trained_on,
        **_in_domain(run.answers["correct"][in_domain]),
    )


def _in_domain(correct: pd.Series) -> Mapping[str, Any]:
    if correct.empty:
        return {}
    low, high = wilson(int(correct.sum()), len(correct))
    return {
        "in_domain_n": len(correct),
        "in_domain": float(correct.mean()),
        "in_domain_low": low,
        "in_domain_high": high,
    }


RUN_METRICS = (Metric.PRIOR, Metric.ABOVE_PRIOR, Metric.BLANK_IMAGE, Metric.PARSED)
"""Columns of every table of runs, with a dash where there is no value."""


def _table(rows: Sequence[Row], *, compact: bool) -> Table:
    """`compact` leaves out the interval of the accuracy over all cells, and the seconds."""
    restricted = any(row.restricted for row in rows)
    metrics = [
        metric
        for metric in columns(Shown.TERMINAL, [row.metrics for row in rows], *RUN_METRICS)
        if not compact or Shown.NARROW in metric.shown or metric in CONTROLS
    ]
    cells = {
        "run": [row.label for row in rows],
        "n": [_count(row, restricted) for row in rows],
        "accuracy %": [_accuracy(row, interval=not (compact and restricted)) for row in rows],
        "in-domain": [_in_domain_text(row) for row in rows] if restricted else [],
        **{metric.heading: [value_text(metric, row.metrics) for row in rows] for metric in metrics},
        "vs base\nin-domain" if restricted else "vs base": [
            interval(row.in_domain_difference if restricted else row.difference) for row in rows
        ],
        "train s": []
        if compact
        else [f"{row.train_seconds:.0f}" if row.train_seconds else "-" for row in rows],
    }
    return filled({name: column for name, column in cells.items() if column}, _notes(rows))


def filled(columns: Mapping[str, Sequence[str]], notes: Text) -> Table:
    """The first column holds names, the others numbers; the notes stand below."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    table.caption, table.caption_justify = notes, "left"
    return table


def unfinished(rows: Sequence[Row]) -> list[str]:
    """A line for each run that is not done: its state and error."""
    return [
        f"{row.label}: {row.state}" + (f", {row.error}" if row.error else "")
        for row in rows
        if row.state != "done"
    ]


def _notes(rows: Sequence[Row]) -> Text:
    notes = unfinished(rows)
    notes += [
        f"{row.label}: {row.tested_on_trained_images:,} of its test questions are about images it "
        "was trained on; data.split=by_image has no such leak"
        for row in rows
        if row.tested_on_trained_images
    ]
    notes += [
        f"{row.label}: {collapse_warning(name, mean)}"
        for row in rows
        for name, mean in row.collapsed.items()
    ]
    notes += [
        f"{row.label}: {percent(row.cut_off)} % of its replies were {CUT_OFF}="
        f"{row.max_new_tokens}; set it higher"
        for row in rows
        if row.is_cut_off
    ]
    if labels := ", ".join(row.label for row in rows if row.by_option_likelihood):
        notes.append(f"{labels}: answered by the likeliest letter, nothing generated or parsed")
    if any(row.restricted for row in rows):
        notes.append("in-domain: the cells a run was trained on; n as in-domain/all tested")
    notes += [f"{row.label}: {NO_BASE}, {row.no_base}" for row in rows if row.no_base]
    if any(row.difference for row in rows):
        notes.append("vs base: percent points, paired by question; [95 % intervals]")
    return Text("\n".join(notes))


def value_text(metric: Metric, metrics: Mapping[str, float | None]) -> str:
    """61.2, or +36.2 of a difference; a dash where there is none."""
    return percent(metrics.get(metric), signed=metric is Metric.ABOVE_PRIOR)


def percent(share: float | None, *, signed: bool = False) -> str:
    if share is None:
        return "-"
    return f"{100 * share:+.1f}" if signed else f"{100 * share:.1f}"


def interval(change: Difference | None) -> str:
    """+12.1 [+8.0, +16.2]; a dash where there is none."""
    return f"{change.mean:+.1f} [{change.low:+.1f}, {change.high:+.1f}]" if change else "-"


def _count(row: Row, restricted: bool) -> str:
    n = row.metrics.get(Metric.N)
    if n is None:
        return "-"
    return f"{row.in_domain_n or 0}/{n}" if restricted and row.in_domain_n != n else str(n)


def _accuracy(row: Row, *, interval: bool) -> str:
    accuracy, low, high = (row.metrics.get(metric) for metric in HEADLINE[1:])
    return _with_interval(accuracy, low, high) if interval else percent(accuracy)


def _in_domain_text(row: Row) -> str:
    return _with_interval(row.in_domain, row.in_domain_low, row.in_domain_high)


def _with_interval(share: float | None, low: float | None, high: float | None) -> str:
    return "-" if share is None else f"{percent(share)} [{percent(low)}, {percent(high)}]"


def _width(table: Table, console: Console) -> int:
    wide = console.options.update(max_width=1000)
    return Measurement.get(console, wide, table).maximum
