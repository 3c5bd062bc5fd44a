"""The report as one HTML file that needs no network: figures, heat maps, questions, curves."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from medreason.report import views
from medreason.report.curves import curves
from medreason.report.questions import embedded
from medreason.report.runs import Cell, Run, base_of, difference
from medreason.report.table import Row, interval, percent, rows_of
from medreason.report.tables import Tables
from medreason.statistics import wilson

_HERE = Path(__file__).parent


def page(
    runs: Sequence[Run], *, sweep: str, tables: Tables | None = None, questions_per_cell: int = 8
) -> str:
    """The page of a sweep's runs, as `runs.load` gives them, and of their train x test tables."""
    found = rows_of(runs)
    best = _best(runs)
    evaluated = [run for run in runs if run.figures]
    data = embedded(runs, questions_per_cell) | {
        "shown": evaluated.index(best) if best else 0,
        "arms": views.embedded(tables, evaluated),
    }
    return Template((_HERE / "page.html").read_text()).substitute(
        sweep=escape(sweep),
        lead=escape(lead(runs).replace(" %", "\u00a0%")),  # no line begins with the sign
        facts="".join(f"<li>{escape(fact)}</li>" for fact in _facts(runs)),
        runs=_run_table(found),
        notes=_notes(found),
        curves=curves(runs),
        style=(_HERE / "page.css").read_text(),
        script=(_HERE / "page.js").read_text(),
        # No text of a question or a model may close the script element it stands in.
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    )


def lead(runs: Sequence[Run]) -> str:
    """The result in one sentence: the best run on what it was trained on, beside what it beats."""
    best = _best(runs)
    if best is None:
        return "No run of this sweep has been evaluated yet."
    return _sentence(best, _counting(best), base_of(best, runs))


def _best(runs: Sequence[Run]) -> Run | None:
    """Highest accuracy on the cells that count; a start model only where nothing else is."""
    evaluated = [run for run in runs if run.figures]
    trained = [run for run in evaluated if run.trained_on]
    return max(
        trained or evaluated,
        key=lambda run: _over(run, _counting(run))["accuracy"],
        default=None,
    )


def _counting(run: Run) -> set[Cell]:
    """The cells a run was trained on, as far as it was tested there, else all."""
    return run.trained_on & run.tested_on or run.tested_on


def _sentence(run: Run, cells: set[Cell], base: Run | None) -> str:
    found = _over(run, cells)
    trained = run.trained_on and not run.tested_on <= cells
    which = "in-domain questions" if trained else "questions"
    start = f"{_title(run)} answers {percent(found['accuracy'])} % of {found['n']} {which} right"
    if change := difference(run, base, cells):
        more = "more" if change.mean >= 0 else "less"
        ends = f"{change.low:.1f} to {change.high:.1f}".replace("-", "\u2212")
        doubt = ", so no clear difference" if change.low <= 0 <= change.high else ""
        start += f", {abs(change.mean):.1f} points {more} than the start model "
        start += f"(95 % interval {ends}{doubt})"
    else:
        low, high = wilson(found["correct"], found["n"])
        start += f" (95 % interval {percent(low)} to {percent(high)})"
    controls = []
    if found["prior"] is not None:
        controls.append(f"question options alone would give {percent(found['prior'])} %")
    if found["blank_image"] is not None:
        controls.append(f"a blank image {percent(found['blank_image'])} %")
    return start + ("; " + ", ".join(controls) if controls else "") + "."


def _over(run: Run, cells: set[Cell]) -> dict[str, Any]:
    """Figures of the questions in some cells, from the figures of each."""
    members = [figures for key, figures in run.cells.items() if tuple(key.split("/")) in cells]
    n = sum(figures["n"] for figures in members)

    def mean(name: str) -> float | None:
        values = [figures.get(name) for figures in members]
        weights = [figures["n"] for figures in members]
        return None if None in values else statistics.fmean(values, weights)  # pyright: ignore[reportArgumentType]

    correct = sum(figures["correct"] for figures in members)
    controls = {name: mean(name) for name in ("prior", "blank_image")}
    return {"n": n, "correct": correct, "accuracy": correct / n, **controls}


def _title(run: Run) -> str:
    method, _, rest = run.label.partition(" ")
    name = "The start model" if method == "base" else method.upper()
    return f"{name} ({rest})" if rest else name


def _facts(runs: Sequence[Run]) -> list[str]:
    configs = [run.config for run in runs if run.config]
    models = sorted({config.model.name for config in configs})
    sources = sorted({config.choices.get("data") or config.data["_target_"] for config in configs})
    commits = {
        json.loads(run.folder.environment.read_text())["commit"] or "unknown commit"
        for run in runs
        if run.folder.environment.exists()
    }
    return [
        f"{len(runs)} runs" if len(runs) != 1 else "1 run",
        f"model {', '.join(models)}",
        f"data {', '.join(sources)}",
        *(f"commit {commit[:10]}{'+dirty' * commit.endswith('+dirty')}" for commit in commits),
    ]


def _run_table(found: Sequence[Row]) -> str:
    narrow = any(row.restricted for row in found)
    heads = [
        "Run",
        "n",
        "Accuracy %",
        "",
        *(["In-domain %", "vs base, in-domain"] if narrow else []),
    ]
    heads += ["Prior", "Above prior", "Blank image", "Parsed"]
    heads += ["vs base, all" if narrow else "vs base", "Training", "Evaluation"]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(_run_row(row, i, narrow, len(heads)) for i, row in enumerate(found))
    return f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _run_row(row: Row, index: int, narrow: bool, width: int) -> str:
    name = f'<span class="swatch s{index % 8}"></span>{escape(row.label)}'
    title = f'<th scope="row" title="{escape(row.name)}">{name}</th>'
    state = f'<span class="state">{escape(row.state)}</span> {escape(row.error or "")}'
    if row.n is None:
        return f'<tr class="unfinished">{title}<td colspan="{width - 1}">{state}</td></tr>'
    accuracy = _with_interval(row.accuracy, row.ci_low, row.ci_high)
    cells = [str(row.n), accuracy, _plot(row, index)]
    if narrow:
        inner = _with_interval(row.in_domain, row.in_domain_low, row.in_domain_high)
        count = f" <small>n {row.in_domain_n}</small>" if row.in_domain_n else ""
        cells += [inner + count, f"<b>{_minus(interval(row.in_domain_difference))}</b>"]
    shares = (percent(row.prior), percent(row.above_prior, signed=True))
    cells += map(_minus, (*shares, percent(row.blank_image), percent(row.parsed)))
    cells.append(_minus(interval(row.difference)))
    cells += [_duration(row.train_seconds), _duration(row.evaluate_seconds)]
    told = (
        ""
        if row.state == "done"
        else f'<tr class="unfinished"><td></td><td colspan="{width - 1}">{state}</td></tr>'
    )
    tds = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr>{title}{tds}</tr>{told}"


def _minus(text: str) -> str:
    """With a true minus sign, and a dash where there is no number."""
    return "\u2013" if text == "-" else text.replace("-", "\u2212")


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "\u2013"
    return f"<b>{percent(value)}</b> <small>[{percent(low)}, {percent(high)}]</small>"


def _plot(row: Row, index: int) -> str:
    """Accuracy and its interval on 0 to 100 %; the prior is a tick, the blank image a ring."""
    assert row.accuracy is not None
    assert row.ci_low is not None
    assert row.ci_high is not None
    place = [5 + 150 * value for value in (row.accuracy, row.ci_low, row.ci_high)]
    marks = ['<line class="axis" x1="5" x2="155" y1="11" y2="11"/>']
    if row.prior is not None:
        x = 5 + 150 * row.prior
        marks.append(f'<line class="prior" x1="{x:.1f}" x2="{x:.1f}" y1="3" y2="19"/>')
    if row.blank_image is not None:
        marks.append(
            f'<circle class="blank" cx="{5 + 150 * row.blank_image:.1f}" cy="11" r="3.5"/>'
        )
    marks.append(
        f'<line class="line s{index % 8}" x1="{place[1]:.1f}" x2="{place[2]:.1f}" y1="11" y2="11"/>'
        f'<circle class="dot s{index % 8}" cx="{place[0]:.1f}" cy="11" r="4.5"/>'
    )
    return f'<svg class="plot" viewBox="0 0 160 22" aria-hidden="true">{"".join(marks)}</svg>'


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "\u2013"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def _notes(found: Sequence[Row]) -> str:
    notes = ["Dot: accuracy with its 95 % interval; tick: prior; ring: blank image."]
    if any(row.restricted for row in found):
        notes.append("In-domain: only the cells a run was trained on.")
    if any(row.difference for row in found):
        notes.append("vs base: percent points, paired by question, bootstrap 95 % interval.")
    return escape(" ".join(notes))
