"""The table of runs: accuracies with what they are read beside, and differences to the base."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from medreason.report.runs import Cell, Run, base_of, difference, in_domain_cells, load
from medreason.rewards.variance import collapse_warning, collapsed_rewards
from medreason.runs.run_folder import RunFolder
from medreason.stats import Difference, wilson

_UNTERMINALED_WIDTH = 100  # pipes and logs; wider tables are printed wider, never wrapped
_FIGURES = ("n", "accuracy", "ci_low", "ci_high", "prior", "above_prior", "blank_image", "parsed")
BESIDE = {
    "shuffled_image": "shuffled\nimage",
    "no_image": "no\nimage",
    "permuted_options": "options\nturned",
    "option_invariance": "same\noption",
    "option_likelihood": "by option\nlikelihood",
    "exact_match": "exact\nmatch",
    "open_token_f1": "token\nF1",
    "judged_reasoning": "judge:\nreasoning",
    "judged_answer": "judge:\nanswer",
}
"""Figures shown where a run has them, with their headings."""
_IN_CSV_ALONE = (
    "option_likelihood_n",
    "option_likelihood_ci_low",
    "option_likelihood_ci_high",
    "option_likelihood_blank_image",
    "with_reasoning",
    "reasoning_words",
    "consistency",
    "reasoning_similarity",
    "reasoning_embedding",
    "open_bertscore",
)
_DIFFERENCE = ("difference", "difference_low", "difference_high")  # percent points, to the base


@dataclass(frozen=True)
class Row:
    """What a run came to. Accuracies are shares of 1; a Difference is in percent points."""

    name: str
    """Name of the run folder."""
    label: str
    """The shortest name that tells it from the other runs: the method, where that is enough."""
    method: str
    state: str
    n: int | None = None
    accuracy: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    prior: float | None = None
    above_prior: float | None = None
    blank_image: float | None = None
    beside: Mapping[str, float] = field(default_factory=dict)
    """Further controls and figures, by their names in metrics.json."""
    parsed: float | None = None
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
    collapsed: Mapping[str, float] = field(default_factory=dict)
    """Rewards that told completions apart no more when training ended, with their mean."""


def rows(folders: Iterable[RunFolder], sweep: str | None = None) -> list[Row]:
    """One row a run, those that failed or are not finished included."""
    return rows_of(load(folders, sweep))


def rows_of(runs: Sequence[Run]) -> list[Row]:
    return [_row(run, runs) for run in runs]


def show(folders: Iterable[RunFolder], sweep: str | None = None) -> None:
    """Print the table to stdout."""
    show_rows(rows(folders, sweep))


def show_rows(found: Sequence[Row]) -> None:
    show_table(lambda compact: _table(found, compact=compact))


def show_table(table_of: Callable[[bool], Table]) -> None:
    """Print what `table_of(compact)` gives, compact only where the whole does not fit."""
    console = Console()
    width = console.width if console.is_terminal else max(console.width, _UNTERMINALED_WIDTH)
    table = table_of(False)
    if _width(table, console) > width:
        table = table_of(True)
    console.width = width if console.is_terminal else max(width, _width(table, console))
    console.print(table)


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Tidy: a row for each run over all its cells (`all`, `all`) and one for each of its cells."""
    figures_written = (*_FIGURES, *BESIDE, *_IN_CSV_ALONE)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["run", "modality", "task", *figures_written, *_DIFFERENCE])
        writer.writeheader()
        for run in runs:
            base = base_of(run, runs)
            overall = {"all/all": run.figures["overall"] if run.figures else {}}
            for place, figures in {**overall, **run.cells}.items():
                modality, task = place.split("/")
                found = difference(run, base, None if place == "all/all" else {(modality, task)})
                writer.writerow(
                    {"run": run.label, "modality": modality, "task": task}
                    | {name: figures.get(name) for name in figures_written}
                    | (dict(zip(_DIFFERENCE, astuple(found), strict=True)) if found else {})
                )


def _row(run: Run, runs: Sequence[Run]) -> Row:
    state = run.state
    error = (state.error or "").strip()
    row: dict[str, Any] = {
        "name": run.folder.path.name,
        "label": run.label,
        "method": run.method,
        "state": state.state,
        "train_seconds": state.train_seconds,
        "evaluate_seconds": state.evaluate_seconds,
        "error": error.splitlines()[0] if error else None,
        "collapsed": collapsed_rewards(run.folder.logged()),
    }
    if run.folder.data.exists():
        facts = json.loads(run.folder.data.read_text())
        row["tested_on_trained_images"] = facts["test_rows_on_trained_images"]
    if run.figures is None:
        return Row(**row)
    base = base_of(run, runs)
    overall = run.figures["overall"]
    cells = in_domain_cells(run, runs)
    return Row(
        **row,
        **{name: overall[name] for name in ("n", "accuracy", "ci_low", "ci_high", "prior")},
        above_prior=overall["above_prior"],
        blank_image=overall.get("blank_image"),  # a control that can be left out
        beside={name: v for name in BESIDE if (v := overall.get(name)) is not None},
        parsed=overall["parsed"],
        by_option_likelihood=run.figures.get("answers") == ["option_likelihood"],
        difference=difference(run, base),
        in_domain_difference=difference(run, base, cells),
        restricted=bool(run.trained_on) and not run.tested_on <= run.trained_on,
        **_in_domain(run, cells),
    )


def _in_domain(run: Run, cells: set[Cell]) -> Mapping[str, Any]:
    answers = [o.correct for o in run.outcomes.values() if o.cell in cells]
    if not answers:
        return {}
    low, high = wilson(sum(answers), len(answers))
    return {
        "in_domain_n": len(answers),
        "in_domain": sum(answers) / len(answers),
        "in_domain_low": low,
        "in_domain_high": high,
    }


def _table(found: Sequence[Row], *, compact: bool) -> Table:
    """`compact` leaves the interval of the accuracy over all cells and the seconds out."""
    narrow = any(row.restricted for row in found)
    columns = {
        "run": [row.label for row in found],
        "n": [_count(row, narrow) for row in found],
        "accuracy %": [_accuracy(row, interval=not (compact and narrow)) for row in found],
        "in-domain": [_in_domain_text(row) for row in found] if narrow else [],
        "prior": [percent(row.prior) for row in found],
        "above\nprior": [percent(row.above_prior, signed=True) for row in found],
        "blank\nimage": [percent(row.blank_image) for row in found],
        **_beside(found, compact),
        "parsed": [percent(row.parsed) for row in found],
        "vs base\nin-domain" if narrow else "vs base": [
            interval(row.in_domain_difference if narrow else row.difference) for row in found
        ],
        "train s": []
        if compact
        else [f"{row.train_seconds:.0f}" if row.train_seconds else "-" for row in found],
    }
    shown = {name: cells for name, cells in columns.items() if cells}
    return filled(shown, _notes(found, narrow))


def filled(columns: Mapping[str, Sequence[str]], notes: Text) -> Table:
    """The first column holds names, the others figures; the notes stand below."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    table.caption, table.caption_justify = notes, "left"
    return table


def _beside(found: Sequence[Row], compact: bool) -> dict[str, list[str]]:
    """The controls; where there is room, open questions and the judge's grades, too."""
    named = [name for name in BESIDE if any(name in row.beside for row in found)]
    shown = named if not compact else [n for n in named if n.endswith(("image", "options"))]
    return {BESIDE[n]: [percent(row.beside.get(n)) for row in found] for n in shown}


def unfinished(found: Sequence[Row]) -> list[str]:
    """What became of the runs that are not done."""
    return [
        f"{row.label}: {row.state}" + (f", {row.error}" if row.error else "")
        for row in found
        if row.state != "done"
    ]


def _notes(found: Sequence[Row], narrow: bool) -> Text:
    notes = unfinished(found)
    notes += [
        f"{row.label}: {row.tested_on_trained_images:,} of its test questions are about images it "
        "was trained on; data.split=by_image has no such leak"
        for row in found
        if row.tested_on_trained_images
    ]
    notes += [
        f"{row.label}: {collapse_warning(name, mean)}"
        for row in found
        for name, mean in row.collapsed.items()
    ]
    if by_option_likelihood := ", ".join(row.label for row in found if row.by_option_likelihood):
        notes.append(
            f"{by_option_likelihood}: answered by the likeliest letter, nothing generated or parsed"
        )
    if narrow:
        notes.append("in-domain: the cells a run was trained on; n as in-domain/all tested")
    if any(row.difference for row in found):
        notes.append("vs base: percent points, paired by question; [95 % intervals]")
    return Text("\n".join(notes))


def percent(share: float | None, *, signed: bool = False) -> str:
    """61.2, or +36.2; a dash where there is none."""
    if share is None:
        return "-"
    return f"{100 * share:+.1f}" if signed else f"{100 * share:.1f}"


def interval(found: Difference | None) -> str:
    """+12.1 [+8.0, +16.2]; a dash where there is none."""
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]" if found else "-"


def _count(row: Row, narrow: bool) -> str:
    if row.n is None:
        return "-"
    return f"{row.in_domain_n or 0}/{row.n}" if narrow and row.in_domain_n != row.n else str(row.n)


def _accuracy(row: Row, *, interval: bool) -> str:
    if row.accuracy is None or row.ci_low is None or row.ci_high is None or not interval:
        return percent(row.accuracy)
    return f"{100 * row.accuracy:.1f} [{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}]"


def _in_domain_text(row: Row) -> str:
    if row.in_domain is None or row.in_domain_low is None or row.in_domain_high is None:
        return "-"
    low, high = 100 * row.in_domain_low, 100 * row.in_domain_high
    return f"{100 * row.in_domain:.1f} [{low:.1f}, {high:.1f}]"


def _width(table: Table, console: Console) -> int:
    wide = console.options.update(max_width=1000)
    return Measurement.get(console, wide, table).maximum
