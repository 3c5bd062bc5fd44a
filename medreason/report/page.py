"""The report as one HTML file that needs no network: figures, heat maps, questions, curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from medreason.metrics import HEADLINE, Metric, Shown
from medreason.report import arms, summary, views
from medreason.report import tables as gathering
from medreason.report.comparisons import Comparison
from medreason.report.curves import Line, curves
from medreason.report.domains import DISTANCES, ELSEWHERE, IN_DOMAIN
from medreason.report.questions import embedded
from medreason.report.runs import Run
from medreason.report.table import RUN_METRICS, Row, columns, percent, rows_of, value_text
from medreason.report.tables import Tables
from medreason.stats import Difference

_HERE = Path(__file__).parent


def page(
    runs: Sequence[Run], *, sweep: str, tables: Tables | None = None, questions_per_cell: int = 8
) -> str:
    """The page of a sweep's runs, as `runs.load` gives them, and of what their arms came to."""
    tables = tables or gathering.gather(runs)
    found = rows_of(runs)
    many = arms.grouped(runs, tables)
    lines = [Line(run.label, (run,)) for run in runs]
    if many:
        lines = [Line(arm.name, arm.runs) for arm in tables.arms]
    return Template((_HERE / "page.html").read_text()).substitute(
        sweep=escape(sweep),
        lead=escape(summary.lead(runs, tables).replace(" %", "\u00a0%")),  # none begins a line
        facts="".join(f"<li>{escape(fact)}</li>" for fact in _facts(runs, tables)),
        heading="Methods" if many else "Runs",
        runs=_arms(found, tables) if many else _scroll(_run_table(found)),
        notes=_notes(found, many),
        curves=curves(lines),
        curves_note=(
            "Line: mean over the models of a method; band: 10th to 90th percentile of them."
            if many
            else "Faint: as logged. Bold: mean over a tenth of the curve."
        ),
        style=(_HERE / "page.css").read_text(),
        script=(_HERE / "page.js").read_text(),
        data=_data(runs, tables, lines, questions_per_cell),
    )


def _data(
    runs: Sequence[Run], tables: Tables, lines: Sequence[Line], questions_per_cell: int
) -> str:
    """What the script reads, as JSON in which no text can close the script element it is in."""
    evaluated = [run for run in runs if run.metrics]
    colours = {run.folder.path: i % 8 for i, line in enumerate(lines) for run in line.runs}
    data = embedded(runs, questions_per_cell)
    for run, shown in zip(evaluated, data["runs"], strict=True):
        shown["colour"] = colours[run.folder.path]
    best = summary.best(runs)
    data |= {
        "shown": evaluated.index(best) if best else 0,
        "arms": views.embedded(tables, evaluated),
        "grouped": arms.grouped(runs, tables),
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _facts(runs: Sequence[Run], tables: Tables) -> list[str]:
    configs = [run.config for run in runs if run.config]
    models = sorted({config.model.name for config in configs})
    sources = sorted({config.choices.get("data") or config.data["_target_"] for config in configs})
    commits = {
        json.loads(run.folder.environment.read_text())["commit"] or "unknown commit"
        for run in runs
        if run.folder.environment.exists()
    }
    counts = [f"{len(arm.runs)} {arm.name}" for arm in tables.arms]
    of = f": {', '.join(counts)}" if len(tables.arms) < len(runs) else ""
    return [
        f"{len(runs)} runs{of}" if len(runs) != 1 else "1 run",
        f"model {', '.join(models)}",
        f"data {', '.join(sources)}",
        *_counts(tables),
        *(f"commit {commit[:10]}{'+dirty' * commit.endswith('+dirty')}" for commit in commits),
    ]


def _counts(tables: Tables) -> list[str]:
    """What in-domain figures are means of, where arms have several models."""
    totals = [tables.domains.total(arm.name, IN_DOMAIN) for arm in tables.arms if not arm.untrained]
    return [
        f"{t.arm} in-domain: {t.cells} cells, {t.n:,} questions"
        for t in totals
        if t and t.models > 1
    ]


def _scroll(table: str) -> str:
    """Wider than the window it scrolls by itself, by keyboard too."""
    region = 'class="scroll" tabindex="0" role="region" aria-labelledby="runs-heading"'
    return f"<div {region}>{table}</div>"


def _arms(found: Sequence[Row], tables: Tables) -> str:
    """What the arms came to and how they differ, then their runs, folded."""
    parts = [_scroll(_arm_table(tables)), _scroll(_difference_table(tables))]
    told = {run.name for arm in tables.arms for run in arm.runs}
    if rest := [row for row in found if row.name not in told]:
        parts.append(f"<h3>Not evaluated</h3>{_scroll(_run_table(rest))}")
    for index, arm in enumerate(tables.arms):
        names = {run.name for run in arm.runs}
        members = [row for row in found if row.name in names]
        count = f"{len(members)} runs" if len(members) > 1 else "1 run"
        table = _scroll(_run_table(members, colour=index))
        summed = f"<summary><b>{escape(arm.name)}</b>, {count} one by one</summary>"
        parts.append(f'<details class="fold">{summed}{table}</details>')
    return "".join(parts)


def _arm_table(tables: Tables) -> str:
    inside = [tables.domains.total(arm.name, IN_DOMAIN) for arm in tables.arms]
    metrics = columns(Shown.PAGE, [t.metrics for t in inside if t], *RUN_METRICS)
    heads = ["Method", "Models", "n", "In-domain %", "", "vs base, in-domain"]
    heads += [*(m.column_title for m in metrics), "Elsewhere %", "vs base, elsewhere"]
    rows = []
    for index, (arm, total) in enumerate(zip(tables.arms, inside, strict=True)):
        name = f'<span class="swatch s{index % 8}"></span>{escape(arm.name)}'
        cells = [f'<th scope="row">{name}</th>', f"<td>{len(arm.runs)}</td>"]
        if total is None:
            rows.append(f"<tr>{''.join(cells)}<td colspan={len(heads) - 2}></td></tr>")
            continue
        far = tables.domains.total(arm.name, ELSEWHERE)
        prior, blank = (total.metrics.get(m) for m in (Metric.PRIOR, Metric.BLANK_IMAGE))
        above = None if prior is None else total.accuracy - prior
        values = {**total.metrics, Metric.ABOVE_PRIOR: above}
        ends = (total.accuracy, total.ci_low, total.ci_high)
        shown = [
            str(total.n),
            _with_interval(*ends),
            _plot(*ends, prior, blank, index),
            _change(arms.gain(tables, arm.name, IN_DOMAIN)),
            *(_minus(value_text(metric, values)) for metric in metrics),
            _minus(percent(far.accuracy if far else None)),
            _change(arms.gain(tables, arm.name, ELSEWHERE)),
        ]
        rows.append(f"<tr>{''.join(cells)}{''.join(f'<td>{cell}</td>' for cell in shown)}</tr>")
    return _html_table(heads, rows)


def _difference_table(tables: Tables) -> str:
    """Each arm minus each other, by how far the test lies from what was trained on."""
    compared = tables.domains.compared
    distances = [d for d in DISTANCES if any(c.test == d for c in compared)]
    if not distances:
        return ""
    heads = ["Percent points", *(name.capitalize() for name in distances)]
    rows = []
    for a, b in dict.fromkeys((c.a, c.b) for c in compared):
        cells = (f"<td>{_change(tables.domains.change(a, b, d))}</td>" for d in distances)
        name = f'<th scope="row">{escape(a)} minus {escape(b)}</th>'
        rows.append(f"<tr>{name}{''.join(cells)}</tr>")
    return _html_table(heads, rows)


def _change(found: Comparison | None) -> str:
    if found is None:
        return "\u2013"
    middle = _minus(f"{found.difference:+.1f}")
    shown = f"<b>{middle}*</b>" if found.clear else middle
    return shown + _spread(found.low, found.high)


def _spread(low: float, high: float) -> str:
    """Nothing where no question differs, since then there is no spread to draw from."""
    ends = _minus(f"[{low:+.1f}, {high:+.1f}]")
    return f" <small>{ends}</small>" if low < high else ""


def _html_table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(rows)
    return f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _run_table(found: Sequence[Row], *, colour: int | None = None) -> str:
    """A row a run, each in its own colour or all in one."""
    narrow = any(row.restricted for row in found)
    metrics = columns(Shown.PAGE, [row.metrics for row in found], *RUN_METRICS)
    heads = [
        "Run",
        "n",
        "Accuracy %",
        "",
        *(["In-domain %", "vs base, in-domain"] if narrow else []),
    ]
    heads += [
        *(m.column_title for m in metrics),
        "vs base, all" if narrow else "vs base",
        "Training, evaluation",
    ]
    body = [
        _run_row(row, i if colour is None else colour, narrow, metrics, len(heads))
        for i, row in enumerate(found)
    ]
    return _html_table(heads, body)


def _run_row(row: Row, index: int, narrow: bool, metrics: Sequence[Metric], width: int) -> str:
    name = f'<span class="swatch s{index % 8}"></span>{escape(row.label)}'
    title = f'<th scope="row" title="{escape(row.name)}">{name}</th>'
    state = f'<span class="state">{escape(row.state)}</span> {escape(row.error or "")}'
    n, *ends = (row.metrics.get(metric) for metric in HEADLINE)
    if n is None:
        return f'<tr class="unfinished">{title}<td colspan="{width - 1}">{state}</td></tr>'
    prior, blank = (row.metrics.get(m) for m in (Metric.PRIOR, Metric.BLANK_IMAGE))
    cells = [str(n), _with_interval(*ends), _plot(*ends, prior, blank, index)]
    if narrow:
        inner = _with_interval(row.in_domain, row.in_domain_low, row.in_domain_high)
        count = f" <small>n {row.in_domain_n}</small>" if row.in_domain_n else ""
        cells += [inner + count, _difference(row.in_domain_difference)]
    cells += [_minus(value_text(metric, row.metrics)) for metric in metrics]
    cells.append(_difference(row.difference))
    cells.append(f"{_duration(row.train_seconds)} <small>{_duration(row.evaluate_seconds)}</small>")
    told = (
        ""
        if row.state == "done"
        else f'<tr class="unfinished"><td></td><td colspan="{width - 1}">{state}</td></tr>'
    )
    tds = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr>{title}{tds}</tr>{told}"


def _difference(found: Difference | None) -> str:
    if found is None:
        return "\u2013"
    return f"<b>{_minus(f'{found.mean:+.1f}')}</b>" + _spread(found.low, found.high)


def _minus(text: str) -> str:
    """With a true minus sign, and a dash where there is no number."""
    return "\u2013" if text == "-" else text.replace("-", "\u2212")


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "\u2013"
    return f"<b>{percent(value)}</b> <small>[{percent(low)}, {percent(high)}]</small>"


def _plot(
    accuracy: float,
    low: float,
    high: float,
    prior: float | None,
    blank_image: float | None,
    index: int,
) -> str:
    """Accuracy and its interval on 0 to 100 %; the prior is a tick, the blank image a ring."""
    place = [5 + 90 * value for value in (accuracy, low, high)]
    marks = ['<line class="axis" x1="5" x2="95" y1="11" y2="11"/>']
    if prior is not None:
        x = 5 + 90 * prior
        marks.append(f'<line class="prior" x1="{x:.1f}" x2="{x:.1f}" y1="3" y2="19"/>')
    if blank_image is not None:
        marks.append(f'<circle class="blank" cx="{5 + 90 * blank_image:.1f}" cy="11" r="3.5"/>')
    marks.append(
        f'<line class="line s{index % 8}" x1="{place[1]:.1f}" x2="{place[2]:.1f}" y1="11" y2="11"/>'
        f'<circle class="dot s{index % 8}" cx="{place[0]:.1f}" cy="11" r="4.5"/>'
    )
    return f'<svg class="plot" viewBox="0 0 100 22" aria-hidden="true">{"".join(marks)}</svg>'


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


def _notes(found: Sequence[Row], many: bool) -> str:
    notes = [
        "Dot: accuracy with its 95 % interval; tick: options-only baseline; ring: blank image."
    ]
    if any(row.restricted for row in found):
        notes.append("In-domain: only the cells a run was trained on.")
    if many:
        notes.append(
            "Figures of a method: mean over cells, in each over its models, so that no cell counts "
            "for more; n: questions. Intervals: questions drawn again. * more than chance "
            "(sign-flip test paired by question, Holm over the column, 5 % level)."
        )
    elif any(row.difference for row in found):
        notes.append("vs base: percent points, paired by question, bootstrap 95 % interval.")
    if any(row.metrics.get(Metric.OPTION_LIKELIHOOD) is not None for row in found):
        notes.append("Option likelihood: accuracy of the likeliest letter right after the prompt.")
    if by_option_likelihood := ", ".join(row.label for row in found if row.by_option_likelihood):
        notes.append(
            f"Nothing was generated for {by_option_likelihood}: the answers are those letters."
        )
    return escape(" ".join(notes))
