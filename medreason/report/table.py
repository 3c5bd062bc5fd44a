"""The table of runs: accuracy beside baseline and controls, and the difference to the base run."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from medreason.config import Statistics
from medreason.config.schema import CONTROLS
from medreason.console import counted
from medreason.data.audit import leaks_of_run
from medreason.metrics import ACCURACY, HEADLINE, Metric, Shown, rounded
from medreason.report import curves
from medreason.report.names import cell_name
from medreason.report.runs import (
    Run,
    add_base,
    base_of,
    by_cell,
    changes,
    difference,
    estimate,
    in_domain_cells,
    load,
    mean_metric,
    power,
    report_with_base,
    why_no_base,
)
from medreason.report.terminal import Terminal
from medreason.rewards.variance import collapse_warning, collapsed_rewards
from medreason.runs.files import read_json
from medreason.runs.run_folder import EvaluationFolder
from medreason.stats import FEWEST, FEWEST_FOR_INTERVAL, Difference, Estimate
from medreason.training import selection

_PIPE_WIDTH = 100  # characters in pipes and logs; wider tables are printed wider, never wrapped
_MANY = 0.5
NO_BASE = "not compared with a start model"
CUT_OFF = "cut off at evaluation.max_new_tokens"
_DIFFERENCE = (  # to the base run
    *("difference", "difference_low", "difference_high", "difference_p"),
    *("difference_n", "difference_clusters"),
)
_POWER = ("smallest_difference", "questions_needed")
ALL_CELLS = "all cells"


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
    """Of all tested cells, by `Metric`; empty where nothing is evaluated yet."""
    statistics: Statistics = field(default_factory=Statistics)
    baseline: str = ALL_CELLS
    """The cells whose training questions its options-only baseline counts."""
    max_new_tokens: int = 0
    """At which a reply is cut off."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Reason -> requests to a server that got no reply, those of controls included."""
    by_option_likelihood: bool = False
    """Nothing was generated: the answers are the likeliest letters."""
    difference: Difference | None = None
    """To the base run of the same sweep, over all questions both answered."""
    in_domain: Estimate | None = None
    """Of the cells trained on; for a base run of those the others have in common."""
    in_domain_difference: Difference | None = None
    in_domain_guessing: float | None = None
    """What guessing between the options gives on those cells."""
    leaks: Sequence[str] = ()
    """The warnings of its data about images and patients on two sides, as training began with."""
    restricted: bool = False
    """Tested on cells it was not trained on."""
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    """Of this evaluation; 0 where only those of all evaluations of the run are known."""
    error: str | None = None
    """First line."""
    folder: str = ""
    """Of the evaluation."""
    add_base: str = ""
    """What evaluates its start model in the same sweep."""
    base_elsewhere: str = ""
    """`runs.report_with_base` of all rows."""
    no_base: str = ""
    """Why there is no difference to a start model, where the sweep has one."""
    validation_ends: tuple[float | None, float | None] = (None, None)
    """Of its 95 % interval; None of too few clusters."""
    validation: float | None = None
    """Accuracy of the weights on the validation questions of the cells trained on; None where they
    were not asked."""
    chosen_step: int = 0
    """The optimizer step of the weights."""
    chosen_because: str = ""
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


def rows(
    evaluations: Iterable[EvaluationFolder], statistics: Statistics | None = None
) -> list[Row]:
    """One row an evaluation, those that failed or are not finished included."""
    return rows_of(load(evaluations, statistics))


def rows_of(runs: Sequence[Run]) -> list[Row]:
    elsewhere = report_with_base(runs)
    return [replace(_row(run, runs), base_elsewhere=elsewhere) for run in runs]


def show(evaluations: Iterable[EvaluationFolder], statistics: Statistics | None = None) -> None:
    """Print the table to stdout."""
    show_rows(rows(evaluations, statistics))


def show_with_base(
    evaluation: EvaluationFolder, bases: Sequence[EvaluationFolder], statistics: Statistics
) -> None:
    """Print the table of one evaluation and the one of `bases`, start models of its sweep, that it
    is compared with."""
    others = [base for base in bases if base.path != evaluation.path]
    runs = load([evaluation, *others], statistics)
    run = next(run for run in runs if run.evaluation.path == evaluation.path)
    base = base_of(run, runs)
    unfinished_bases = [other for other in runs if other.method == "base" and not other.metrics]
    shown = [run, *([base] if base else unfinished_bases)]
    show_rows([_row(run, runs) for run in runs if run in shown])


def show_rows(rows: Sequence[Row]) -> None:
    ends = any(row.validation_ends[0] is not None for row in rows)
    show_table(
        lambda compact: _table(rows, compact=compact),
        _table(rows, compact=False, validation_ends=True) if ends else None,
    )


def show_table(table_of: Callable[[bool], Table], widest: Table | None = None) -> None:
    """Print `widest` where it fits, else `table_of(compact)`, compact only where the whole does
    not; in a terminal that is narrower still its columns stand in several tables below each
    other."""
    console = Terminal()
    width = console.width if console.is_terminal else max(console.width, _PIPE_WIDTH)
    whole = [table for table in (widest, table_of(False)) if table]
    fitting = (table for table in whole if _width(table, console) <= width)
    table = next(fitting, None) or table_of(True)
    notes, table.caption = str(table.caption or ""), None
    console.width = width if console.is_terminal else max(width, _width(table, console))
    for part in parts(table, console):
        console.print(part)
    for note in notes.splitlines():  # not cut at the width of the table
        console.print(Text(_folded(note, console.width)), soft_wrap=True)


def parts(table: Table, console: Console) -> list[Table]:
    """The columns in as many tables as the width takes, each with the first column: a number that
    is cut is another number."""
    first, *others = table.columns
    parts: list[list[Column]] = [[first]]
    for column in others:
        if (
            len(parts[-1]) > 1
            and _width(_of_columns([*parts[-1], column]), console) > console.width
        ):
            parts.append([first])
        parts[-1].append(column)
    return [table] if len(parts) == 1 else [_of_columns(columns) for columns in parts]


def _folded(note: str, width: int) -> str:
    """A note in lines of a width, those after the first indented; one with a command is one line,
    to be copied."""
    if "`" in note:
        return note
    return textwrap.fill(
        *(note, width),
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Tidy: a row for each run over all its cells (`all`, `all`) and one for each of its cells.

    Accuracies, their differences and what a test can show are fractions of 1."""
    names = Metric.shown_in(Shown.CSV)
    rows = []
    for run in runs:
        change = changes(run, base_of(run, runs))
        places = {"all/all": change, **by_cell(run, change)}
        for place, metrics in {"all/all": run.overall, **run.cells}.items():
            modality, task = place.split("/")
            values: dict[str, Any] = {"run": run.label, **_setting(run)}
            values |= {"modality": modality, "task": task}
            values |= {"average": f"over {run.statistics.average}"} if metrics else {}
            values |= {name: metrics.get(name) for name in names}
            paired = difference(run, places[place]) if place in places else None
            rows.append({**values, **_comparison(run, metrics, paired)})
    keys = ["run", *_SETTING, "modality", "task", "average", *names, *_DIFFERENCE, *_POWER]
    cells = pd.DataFrame(rows, columns=pd.Index(keys), dtype=object)
    return cells.where(cells.notna(), math.nan)  # as objects: a count beside NaN stays whole


_SETTING = ("sweep", "method", "model", "seed")
"""What runs are grouped by in a table of several; a label says no more than what differs."""


def _setting(run: Run) -> dict[str, Any]:
    config = run.config
    if config is None:
        return {"method": run.method}
    seed = None if config.method.algorithm == "none" else config.seed
    return dict(zip(_SETTING, (config.sweep, run.method, config.model.name, seed), strict=True))


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """`frame` as a file."""
    frame(runs).to_csv(path, index=False)


def _comparison(
    run: Run, metrics: Mapping[str, Any], paired: Difference | None
) -> Mapping[str, Any]:
    """The difference to the base run and what its test can show, both as fractions of 1: at the
    discordance assumed where there is none."""
    if not metrics:
        return {}
    able = power(paired or metrics, run.statistics)
    smallest = able.smallest_difference
    names = [*_POWER]
    values = [None if smallest is None else smallest / 100, able.questions_needed]
    if paired:
        names += _DIFFERENCE
        values += [points / 100 for points in (paired.mean, paired.low, paired.high)]
        values += [paired.p, paired.n, paired.clusters]
    return dict(zip(names, values, strict=True))


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
    state, logged = run.state, run.folder.logged()
    error = (state.error or "").strip()
    row: dict[str, Any] = {
        "name": run.name,
        "folder": str(run.evaluation.path),
        "label": run.label,
        "method": run.method,
        "no_base": why_no_base(run, runs),
        "add_base": add_base(run),
        "state": run.progress,
        "train_seconds": state.train_seconds,
        "evaluate_seconds": state.seconds_of.get(run.evaluation.key, 0.0),
        "error": error.splitlines()[0] if error else None,
        "validation": selection.scores(logged).get(state.chosen_step),
        "validation_ends": curves.validation_ends(
            next((row for row in logged if row["step"] == state.chosen_step), {})
        ),
        "chosen_step": state.chosen_step,
        "chosen_because": state.chosen_because,
        "collapsed": collapsed_rewards(logged),
    }
    if run.evaluation.data.exists():
        row["leaks"] = leaks_of_run(read_json(run.evaluation.data))
    if run.metrics is None:
        return Row(**row)
    change, cells = changes(run, base_of(run, runs)), in_domain_cells(run, runs)
    in_domain = run.answers["cell"].isin(cells)
    return Row(
        **row,
        metrics=run.overall,
        statistics=run.statistics,
        baseline=(cell_name(run.config) if run.config else "") or ALL_CELLS,
        max_new_tokens=run.config.evaluation.max_new_tokens if run.config else 0,
        failures=run.metrics.get("requests", {}).get("failures", {}),
        by_option_likelihood=run.metrics.get("answers") == [Metric.OPTION_LIKELIHOOD],
        difference=difference(run, change),
        in_domain=estimate(run.answers[in_domain], run.statistics) if in_domain.any() else None,
        in_domain_difference=difference(run, change[in_domain]),
        in_domain_guessing=mean_metric(run, cells, Metric.GUESSING),
        restricted=bool(run.trained_on) and not run.tested_on <= run.trained_on,
    )


_RULE = "\u2500"
RUN_METRICS = (Metric.PRIOR, Metric.ABOVE_PRIOR, Metric.BLANK_IMAGE, Metric.PARSED)
"""Columns of every table of runs, with a dash where there is no value."""


def _table(rows: Sequence[Row], *, compact: bool, validation_ends: bool = False) -> Table:
    """`compact` leaves out the interval of the accuracy over all cells, and the seconds. Columns of
    the cells trained on stand together, before those of all."""
    restricted = any(row.restricted for row in rows)
    metrics = [
        metric
        for metric in columns(Shown.TERMINAL, [row.metrics for row in rows], *RUN_METRICS)
        if not compact or Shown.NARROW in metric.shown or metric in CONTROLS
    ]
    average = rows[0].statistics.average if rows else ""
    values = {m.heading: [value_text(m, row.metrics) for row in rows] for m in metrics}
    gains = {"vs base": [_paired_text(row, restricted) for row in rows]}
    over = f"accuracy %\nover {average}"
    if restricted:
        inside = {
            "n in\nclusters": [_in_domain_size(row) for row in rows],
            over: [estimate_text(row.in_domain) for row in rows],
        }
        accuracy = {
            "%" if compact else over: [_accuracy(row, interval=not compact) for row in rows]
        }
        measured = under("in-domain", inside | gains) | under("all", accuracy | values)
    else:
        sizes = {"n in\nclusters": [_size(row) for row in rows]}
        measured = sizes | {over: [_accuracy(row) for row in rows]} | values | gains
    cells = {
        "run": [row.label for row in rows],
        "validation\n% at step": [validation_text(row, interval=validation_ends) for row in rows]
        if any(row.validation is not None for row in rows)
        else [],
        **measured,
        "train s": []
        if compact
        else [f"{row.train_seconds:.0f}" if row.train_seconds else "-" for row in rows],
    }
    return filled({name: column for name, column in cells.items() if column}, _notes(rows))


def under(
    group: str, columns: Mapping[str, Sequence[str]], lines: int = 2
) -> dict[str, Sequence[str]]:
    """The columns with the name of their questions above the first heading, and a line from there
    over all of them."""
    headings: dict[str, Sequence[str]] = {}
    for place, (name, column) in enumerate(columns.items()):
        width = max(map(len, [*name.splitlines(), *column, "" if place else group]))
        above = _RULE * width if place else f"{group} ".ljust(width, _RULE)[:width]
        blank = [""] * (lines - len(name.splitlines()))
        headings["\n".join([above, *blank, name])] = column
    return headings


def filled(columns: Mapping[str, Sequence[str]], notes: Text) -> Table:
    """The first column holds names, the others numbers; the notes stand below."""
    table = _empty_table()
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    table.caption, table.caption_justify = notes, "left"
    return table


def _empty_table() -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _of_columns(columns: Sequence[Column]) -> Table:
    """A table as `filled` makes it, of some columns of another."""
    table = _empty_table()
    for column in columns:
        table.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def unfinished(rows: Sequence[Row]) -> list[str]:
    """The runs that are not done, with their state and error; a line for those of one state."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.state != "done":
            labels.setdefault(f"{row.state}{f', {row.error}' if row.error else ''}", []).append(
                row.label
            )
    return [f"{', '.join(names)}: {state}" for state, names in labels.items()]


def _notes(rows: Sequence[Row]) -> Text:
    notes = [*unfinished(rows), *_row_notes(rows), *unanswered_notes(rows)]
    if labels := ", ".join(row.label for row in rows if row.by_option_likelihood):
        notes.append(f"{labels}: answered by the likeliest letter, nothing generated or parsed")
    if any(row.restricted for row in rows):
        notes.append(_populations(rows))
    notes += [f"{row.label}: {NO_BASE}, {row.no_base}" for row in rows if row.no_base]
    if evaluated := [row for row in rows if row.metrics]:
        notes += [*baseline_note(evaluated), method_note(evaluated[0].statistics)]
        notes += [*guessing_note(evaluated), *few_clusters_note(evaluated)]
    notes += no_start_note(rows)
    if any(row.difference for row in rows):
        notes.append("vs base: percent points, paired by question; [95 % intervals]")
    return Text("\n".join(notes))


def _populations(rows: Sequence[Row]) -> str:
    """Of which questions the columns below `in-domain` and `all` are."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.metrics:
            clusters = counted(int(row.metrics[Metric.CLUSTERS] or 0), "cluster")
            size = f"{row.metrics[Metric.N]:,} in {clusters}"
            labels.setdefault(size, []).append(row.label)
    several = len(labels) > 1
    sizes = [f"{size} ({', '.join(names)})" if several else size for size, names in labels.items()]
    return (
        "in-domain: test questions of the cells a run was trained on; all: every test question, "
        + ", ".join(sizes)
    )


def _row_notes(rows: Sequence[Row]) -> list[str]:
    """What to know of single rows: leaks, replies that are all alike, replies that were cut off."""
    notes = leak_notes(rows)
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
    return notes


def leak_notes(rows: Sequence[Row]) -> list[str]:
    """The leaks of the data that runs were trained and tested on, each once, with the runs."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        for leak in row.leaks:
            labels.setdefault(leak, []).append(row.label)
    return [f"{', '.join(names)}: {leak}" for leak, names in labels.items()]


def no_start_note(rows: Sequence[Row]) -> list[str]:
    """Why no row has a difference to a start model, where there is none with results."""
    methods = {row.method for row in rows if row.metrics}
    if not methods or "base" in methods or any(row.no_base for row in rows):
        return []
    if any(row.method == "base" for row in rows):
        return ["vs base: the base run has no results yet"]
    first = next(row for row in rows if row.metrics)
    to_type = first.base_elsewhere or first.add_base
    return [f"vs base: no base run here; {to_type}"]


def unanswered_notes(rows: Sequence[Row]) -> list[str]:
    """A warning for each evaluation that a server left questions of unanswered."""
    return [
        f"{row.label}: {percent(row.metrics[Metric.UNANSWERED])} % of its questions got no reply "
        f"({_listed(row.failures)}) and are in no number; to ask them again, delete "
        f"{row.folder} and re-run its command"
        for row in rows
        if row.failures
    ]


def _listed(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in failures.items())


_CLUSTERS = {
    "patient": "patients (images where no patient is known)",
    "image": "images",
    "question": "questions",
}


def method_note(statistics: Statistics) -> str:
    """What is averaged and what is taken as independent."""
    return f"means over {statistics.average}; clusters: {_CLUSTERS[statistics.clusters]}"


def few_clusters_note(rows: Sequence[Row]) -> list[str]:
    """That intervals, and differences, of so few clusters say nothing."""
    counts = [row.metrics[Metric.CLUSTERS] or 0 for row in rows if row.metrics]
    counts += [row.in_domain.clusters for row in rows if row.in_domain]
    least = int(min(counts, default=FEWEST))
    if least >= FEWEST:
        return []
    what = "an interval or a difference" if least < FEWEST_FOR_INTERVAL else "a difference"
    return [f"{counted(least, 'cluster')}: too few for {what}; a difference takes {FEWEST}"]


def baseline_note(rows: Sequence[Row]) -> list[str]:
    """Which training questions the options-only baselines count where rows differ in that, and why
    one has no number."""
    return [
        *([OWN_BASELINES] if len({row.baseline for row in rows}) > 1 else []),
        *no_baseline_note(rows),
    ]


OWN_BASELINES = (
    "options only: learned from the option texts of the training questions of the cells a model "
    "was trained on, for a start model of all cells"
)


def no_baseline_note(rows: Sequence[Row]) -> list[str]:
    """Why the options-only baseline of all questions has no number, where a row has none."""
    lacking = any(row.metrics and row.metrics.get(Metric.PRIOR) is None for row in rows)
    return [NO_OPTIONS] if lacking else []


def guessing_is_higher(metrics: Mapping[str, float | None]) -> bool:
    """Whether guessing between the options gives more than the options-only baseline."""
    return (metrics.get(Metric.GUESSING) or 0.0) > (metrics.get(Metric.PRIOR) or 0.0) + _NOISE


_NOISE = 1e-9  # of sums of shares


def guessing_note(rows: Sequence[Row]) -> list[str]:
    """What guessing between the options gives, and whether it is the higher baseline."""
    of_all = [rate for row in rows if (rate := row.metrics.get(Metric.GUESSING))]
    inside = [rate for row in rows if row.restricted and (rate := row.in_domain_guessing)]
    if not of_all:
        return []
    every, own = percent_range(of_all), percent_range(inside or of_all)
    rates = f"{every} % of the questions{', in-domain and overall' * bool(inside)}"
    if own != every:
        rates = f"{own} % of the in-domain questions and {every} % of all"
    note = f"guessing between the options is right on {rates}"
    higher = [row.label for row in rows if guessing_is_higher(row.metrics)]
    if not higher:
        return [note]
    of = f" of {', '.join(higher)}" if len(higher) < min(len(rows), _MOST_NAMED) else ""
    return [f"{note}; the options-only baseline{of} is lower, so guessing is the number to beat"]


_MOST_NAMED = 5  # rows in a note


def percent_range(shares: Sequence[float]) -> str:
    """`41.7`, or `37.0 to 41.7`."""
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"


NO_OPTIONS = "options only: no number where a cell has no test question with options"


def value_text(metric: Metric, metrics: Mapping[str, float | None]) -> str:
    """61.2, or +36.2 of a difference; a dash where there is none."""
    return percent(metrics.get(metric), signed=metric is Metric.ABOVE_PRIOR)


def validation_text(row: Row, *, interval: bool = False) -> str:
    """61.2 at 75, or 61.2 [50.1, 71.3] at 75; a dash where nothing was validated."""
    if row.validation is None:
        return "-"
    low, high = row.validation_ends
    ends = f" [{percent(low)}, {percent(high)}]" if interval and low is not None else ""
    return f"{percent(row.validation)}{ends} at {row.chosen_step}"


def percent(share: float | None, *, signed: bool = False) -> str:
    if share is None:
        return "-"
    return rounded(100 * share, signed=signed)


def _interval(change: Difference | None) -> str:
    return change_text(change.mean, change.low, change.high, change.clusters) if change else "-"


def change_text(mean: float, low: float, high: float, clusters: int, star: str = "") -> str:
    """+16.7* [+10.1, +23.3]; of too few clusters +16.7 [-]."""
    ends = f"{low:+.1f}, {high:+.1f}" if clusters >= FEWEST else "-"
    return f"{rounded(mean, signed=True)}{star} [{ends}]"


def _paired_text(row: Row, restricted: bool) -> str:
    change = row.in_domain_difference if restricted else row.difference
    n = row.in_domain.n if restricted and row.in_domain else row.metrics.get(Metric.N)
    return _interval(change) + (f" of {change.n:,}" if change and change.n != n else "")


def size(n: float | None, clusters: float | None) -> str:
    """`1,920 in 192`: questions in clusters."""
    return f"{n or 0:,} in {clusters or 0:,}"


def _size(row: Row) -> str:
    return size(row.metrics[Metric.N], row.metrics[Metric.CLUSTERS]) if row.metrics else "-"


def _in_domain_size(row: Row) -> str:
    return size(row.in_domain.n, row.in_domain.clusters) if row.in_domain else "-"


def _accuracy(row: Row, *, interval: bool = True) -> str:
    accuracy, low, high = (row.metrics.get(metric) for metric in ACCURACY)
    clusters = row.metrics.get(Metric.CLUSTERS) or 0
    return accuracy_text(accuracy, low, high, clusters) if interval else percent(accuracy)


def estimate_text(estimate: Estimate | None) -> str:
    """50.0 [34.5, 65.5]; a dash where there is none."""
    if estimate is None:
        return "-"
    return accuracy_text(estimate.mean, estimate.low, estimate.high, estimate.clusters)


def accuracy_text(
    share: float | None, low: float | None, high: float | None, clusters: float
) -> str:
    """50.0 [34.5, 65.5]; of too few clusters 50.0 [-]; a dash where there is none."""
    ends = f"{percent(low)}, {percent(high)}" if clusters >= FEWEST_FOR_INTERVAL else "-"
    return "-" if share is None else f"{percent(share)} [{ends}]"


def _width(table: Table, console: Console) -> int:
    wide = console.options.update(max_width=1000)
    return Measurement.get(console, wide, table).maximum
