"""The report as one HTML file that needs no network: numbers, heat maps, questions, curves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from medreason.config import Statistics
from medreason.console import counted
from medreason.metrics import Metric, Shown, rounded
from medreason.report import analyses, arms, data_sets, published, search, summary, views
from medreason.report import tables as gathering
from medreason.report.comparisons import Comparison
from medreason.report.curves import Chart, Line, charts
from medreason.report.data_sets import OnSet
from medreason.report.domains import DISTANCES, ELSEWHERE, IN_DOMAIN, Total
from medreason.report.matrices import TABLES
from medreason.report.names import common, data_name, difference_name, short
from medreason.report.published import Compared
from medreason.report.questions import embedded
from medreason.report.runs import Run
from medreason.report.search import Trial
from medreason.report.table import (
    NO_BASE,
    RUN_METRICS,
    Row,
    baseline_note,
    columns,
    few_clusters_note,
    guessing_note,
    leak_notes,
    method_note,
    no_start_note,
    percent,
    rows_of,
    unanswered_notes,
    value_text,
)
from medreason.report.tables import Tables
from medreason.runs.openings import Opening
from medreason.samples import MODALITIES, TASKS
from medreason.stats import FEWEST, FEWEST_FOR_INTERVAL

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Table:
    """A table of runs or methods as tables.html writes it."""

    rows: Sequence[Any]
    metrics: Sequence[Metric]
    """Those with a column of their own."""
    over: str
    """`over questions` or `over cells`: its means."""
    restricted: bool = False
    """Some run was tested on cells it was not trained on."""
    validated: bool = False
    """Some run was validated while it trained."""

    @property
    def titles(self) -> list[str]:
        return [metric.column_title for metric in self.metrics]


@dataclass(frozen=True)
class MethodRow:
    """A method, in-domain and out of domain, None where it has no answers."""

    name: str
    models: int
    total: Total | None
    gain: Comparison | None
    elsewhere: float | None
    """Accuracy out of domain."""
    gain_elsewhere: Comparison | None

    @property
    def values(self) -> Mapping[str, float | None]:
        if self.total is None:
            return {}
        prior = self.total.metrics.get(Metric.PRIOR)
        above = None if prior is None else self.total.accuracy - prior
        return {**self.total.metrics, Metric.ABOVE_PRIOR: above}


def page(
    runs: Sequence[Run],
    *,
    sweep: str,
    tables: Tables | None = None,
    openings: Sequence[Opening] = (),
    trials: Sequence[Trial] = (),
    logarithmic: Collection[str] = (),
    beside: Sequence[Compared] = (),
    on_sets: Sequence[OnSet] = (),
    questions_per_cell: int = 8,
) -> str:
    """The page of a sweep's runs, as `runs.load` gives them, and of the tables of their arms;
    `openings` are those of its test splits, `trials` those of its search, which chose the
    values of `logarithmic` keys by their logarithm, `beside` published numbers, `on_sets`
    accuracies by data set."""
    tables = tables or gathering.gather(runs)
    rows, grouped = rows_of(runs), arms.grouped(runs, tables)
    colours = {
        run.name: i % 8 for i, (_, members) in enumerate(_groups(runs, tables)) for run in members
    }
    return (
        _environment()
        .get_template("page.html")
        .render(
            sweep=sweep,
            conclusion=summary.conclusion(runs, tables),
            lead=summary.numbers(runs, tables).replace(" %", "\u00a0%"),  # none begins a line
            seed_note=summary.of_one_seed(runs, tables),
            warning=summary.chosen_by_test(openings),
            facts=[*_facts(runs, tables), *summary.tested(openings)],
            **(_by_method(rows, tables) if grouped else {"runs": _run_table(rows)}),
            **_differences(tables, grouped=grouped),
            notes=_notes(rows, grouped, _leaks(rows, tables, grouped)),
            trials=trials,
            **_published(beside),
            arms=tables.arms,
            sets=data_sets.shown(on_sets),
            sizes=data_sets.sizes,
            search_pictures=search.pictures(trials, logarithmic),
            search_note=search.note(trials),
            charts=(curves := charts(_lines(runs, tables, colours))),
            curve_note=_curve_note(curves, grouped),
            length_charts=analyses.length_charts(tables.arms, colours),
            length_note=analyses.LENGTH_NOTE,
            style=(_HERE / "page.css").read_text(),
            script=(_HERE / "page.js").read_text(),
            data=_data(runs, tables, colours, questions_per_cell),
        )
    )


def _groups(runs: Sequence[Run], tables: Tables) -> list[tuple[str, tuple[Run, ...]]]:
    """What has a colour of its own, with its name: a run or, of too many, an arm."""
    if arms.grouped(runs, tables):
        return [(arm.name, arm.runs) for arm in tables.arms]
    return [(run.label, (run,)) for run in runs]


def _lines(runs: Sequence[Run], tables: Tables, colours: Mapping[str, int]) -> list[Line]:
    """One for each training, or for the trainings of an arm, however often they were evaluated: in
    the colour of the first evaluation, named by the words that all of them share."""
    evaluations: dict[frozenset[Path], list[tuple[str, tuple[Run, ...]]]] = {}
    for name, members in _groups(runs, tables):
        trainings = {run.folder.path: run for run in members}
        same = evaluations.setdefault(frozenset(trainings), [])
        same.append((name, tuple(trainings.values())))
    shared = [common(*(name for name, _ in same)) for same in evaluations.values()]
    lines = []
    for words, ((name, members), *_) in zip(shared, evaluations.values(), strict=True):
        label = words if words and shared.count(words) == 1 else name
        lines.append(Line(label, members, colours[members[0].name]))
    return lines


def _curve_note(curves: Sequence[Chart], grouped: bool) -> str:
    """What lines, bands and rings are."""
    notes = ["Losses compare within an algorithm only."]
    validated = any(chart.rings for chart in curves)
    if validated:
        notes.insert(0, "Ring: the step whose weights were kept and tested.")
    if grouped:
        notes.insert(
            0,
            "Line: mean over the models of a method; band: 10th to 90th percentile of them.",
        )
    elif validated:
        notes.insert(0, "Band: 95 % interval.")
    if any("raw" in mark.style for chart in curves for mark in chart.marks) and not grouped:
        notes.insert(0, "Faint: as logged. Bold: mean over a tenth of the curve.")
    return " ".join(notes)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"FEWEST": FEWEST, "FEWEST_FOR_INTERVAL": FEWEST_FOR_INTERVAL}
    environment.filters |= {
        "percent": lambda share: _typeset(percent(share)),
        "signed": lambda points: _typeset(rounded(points, signed=True)),
        "value": lambda value, metric: _typeset(value_text(metric, {metric: value})),
        "place": lambda share: f"{5 + 90 * share:.1f}",
        "duration": _duration,
        "p": lambda p, clusters: _typeset(arms.p_text(p, clusters)),
        "short": lambda value: _typeset(short(value)),
        "tested": search.tested_text,
        "published": lambda value, row: _typeset(published.value_text(value, row)),
        "minus": lambda pair: difference_name(pair.a, pair.b),
        "count": lambda number: f"{number:,}",
    }
    return environment


def _by_method(rows: Sequence[Row], tables: Tables) -> dict[str, Any]:
    """The methods, then the runs of each, folded."""
    evaluated = {run.name for arm in tables.arms for run in arm.runs}
    unevaluated = [row for row in rows if row.name not in evaluated]
    return {
        "methods": _method_table(tables),
        "unevaluated": _run_table(unevaluated) if unevaluated else None,
        "runs_of_methods": [
            (arm.name, _run_table([row for row in rows if row.name in arm.run_names], colour=i))
            for i, arm in enumerate(tables.arms)
        ],
    }


def _differences(tables: Tables, *, grouped: bool) -> dict[str, Any]:
    """The differences between arms; of methods with several models at every distance."""
    shown = arms.differences(tables.domains)
    parts: dict[str, Any] = {"differences": shown}
    notes = [f"Differences: paired by question, 95 % interval; {shown.note}."] * (shown.tests > 0)
    sentences = [shown.left_out, shown.left_out_pairs]
    if grouped and shown.several:
        parts["by_distance"], sentences[0] = _by_distance(tables)
    sentences += [f"N{reason[1:]}" for reason in arms.few_clusters_reason(shown.compared)]
    sentences += [shown.one_seed, shown.other_seeds[:1].upper() + shown.other_seeds[1:]]
    notes += [f"{sentence}." for sentence in sentences if sentence]
    return parts | {"difference_notes": " ".join(notes)}


def _by_distance(tables: Tables) -> tuple[dict[str, Any], str]:
    """The differences at every distance, and where the pairs of arms are that have no row."""
    compared = tables.domains.compared
    distances = [d for d in DISTANCES if any(c.test == d for c in compared)]
    pairs = list(dict.fromkeys((c.a, c.b) for c in compared))
    shown, sentence = pairs, ""
    if len(pairs) > arms.MOST_DIFFERENCES:
        by_p = sorted(compared, key=lambda c: c.p)
        shown = list(dict.fromkeys((c.a, c.b) for c in by_p))[: arms.MOST_DIFFERENCES]
        sentence = arms.left_out(len(shown), len(pairs), "pairs of methods")
    rows = [
        (difference_name(a, b), [tables.domains.change(a, b, d) for d in distances])
        for a, b in shown
    ]
    return {"distances": distances, "rows": rows}, sentence


def _published(beside: Sequence[Compared]) -> dict[str, Any]:
    """Tables of the papers as they print them, and a row for each number that is in none."""
    in_maps = published.maps(beside)
    placed = {id(row) for places in in_maps.values() for row in places.values()}
    listed = [row for row in beside if row.published.value is not None and id(row) not in placed]
    return {
        "published_grids": [(k[0], places, TABLES[k[1]][0]) for k, places in in_maps.items()],
        "published_rows": listed,
        "published_notes": [f"{n[0].upper()}{n[1:]}." for n in published.notes(beside)],
        "names": MODALITIES | TASKS,
    }


def _method_table(tables: Tables) -> Table:
    rows = [
        MethodRow(
            name=arm.name,
            models=arm.models,
            total=tables.domains.total(arm.name, IN_DOMAIN),
            gain=arms.gain(tables, arm.name, IN_DOMAIN),
            elsewhere=far.accuracy if (far := tables.domains.total(arm.name, ELSEWHERE)) else None,
            gain_elsewhere=arms.gain(tables, arm.name, ELSEWHERE),
        )
        for arm in tables.arms
    ]
    known = [row.total.metrics for row in rows if row.total]
    return Table(rows, columns(Shown.PAGE, known, *RUN_METRICS), _over(tables.arms[0].statistics))


def _over(statistics: Statistics) -> str:
    return f"over {statistics.average}"


def _run_table(rows: Sequence[Row], *, colour: int | None = None) -> Table:
    """A row a run, each in its own colour or all in one."""
    return Table(
        [(row, i if colour is None else colour) for i, row in enumerate(rows)],
        columns(Shown.PAGE, [row.metrics for row in rows], *RUN_METRICS),
        _over(rows[0].statistics) if rows else "",
        restricted=any(row.restricted for row in rows),
        validated=any(row.validation is not None for row in rows),
    )


def _data(
    runs: Sequence[Run], tables: Tables, colours: Mapping[str, int], questions_per_cell: int
) -> str:
    """The script's data as JSON, in which no text can close the script element it is in."""
    evaluated = [run for run in runs if run.metrics]
    data = embedded(runs, questions_per_cell)
    for run, entry in zip(evaluated, data["runs"], strict=True):
        entry["colour"] = colours[run.name]
    best = summary.best(runs)
    data |= {
        "shown": evaluated.index(best) if best else 0,
        "fewest": {"interval": FEWEST_FOR_INTERVAL, "difference": FEWEST},
        "average": evaluated[0].statistics.average if evaluated else "",
        "wanted": evaluated[0].statistics.difference if evaluated else 0,
        "arms": views.embedded(tables, evaluated),
        "grouped": arms.grouped(runs, tables),
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _facts(runs: Sequence[Run], tables: Tables) -> list[str]:
    configs = [run.config for run in runs if run.config]
    models = sorted({config.model.label for config in configs})
    sources = sorted({data_name(config) for config in configs})
    commits = {
        run.folder.commit() or "unknown commit" for run in runs if run.folder.environment.exists()
    }
    counts = [f"{arm.models} {arm.name}" for arm in tables.arms]
    evaluated = {run.folder.path for run in runs if run.metrics}
    if unfinished := len({run.folder.path for run in runs} - evaluated):
        counts.append(f"{unfinished} without results")
    by_arm = f": {', '.join(counts)}" if len(tables.arms) < len(runs) else ""
    folders = len({run.folder.path for run in runs})
    number = counted(len(runs), "run")
    if folders < len(runs):
        number = f"{counted(len(runs), 'evaluation')} of {counted(folders, 'model')}"
    return [
        f"{number}{by_arm}",
        f"model {', '.join(models)}",
        f"data {', '.join(name.removeprefix('the table ') for name in sources)}",
        *_counts(tables),
        *(f"commit {commit[:10]}{'+dirty' * commit.endswith('+dirty')}" for commit in commits),
    ]


def _counts(tables: Tables) -> list[str]:
    """The cells and questions of in-domain means, where arms have several models."""
    totals = [tables.domains.total(arm.name, IN_DOMAIN) for arm in tables.arms if not arm.untrained]
    return [
        f"{t.arm} in-domain: {counted(t.cells, 'cell')}, {counted(t.n, 'question')}"
        for t in totals
        if t and t.models > 1
    ]


def _typeset(text: str) -> str:
    """With a true minus sign, and a dash where there is no number."""
    return "\u2013" if text == "-" else text.replace("-", "\u2212")


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "< 1 s" if seconds else "\u2013"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _leaks(rows: Sequence[Row], tables: Tables, grouped: bool) -> list[str]:
    if not grouped:
        return leak_notes(rows)
    return [note for arm in tables.arms for note in arms.leak_note(arm, rows)]


def _notes(rows: Sequence[Row], grouped: bool, leaks: Sequence[str] = ()) -> str:
    notes = [f"{leak}." for leak in leaks]
    notes += [
        "Dot: accuracy with its 95 % interval; tick: options-only baseline, a frequency table of "
        "option texts; ring: blank image."
    ]
    if any(row.restricted for row in rows):
        notes.append("In-domain: only the cells a run was trained on.")
    if evaluated := [row for row in rows if row.metrics]:
        notes.append(f"All numbers: {method_note(evaluated[0].statistics)}.")
    if grouped:
        notes.append(
            "Numbers of a method: a question counts as the share of its models that answer it "
            "right."
        )
    elif any(row.difference for row in rows):
        notes.append("vs base: percent points, paired by question, 95 % interval.")
    unlike = Counter(row.no_base for row in rows if row.no_base)
    notes += [
        f"{NO_BASE.capitalize()}, {reason}: {counted(count, 'run')}."
        for reason, count in unlike.items()
    ]
    notes += [f"{note}." for note in (*few_clusters_note(rows), *no_start_note(rows))]
    baselines = arms.baseline_note(rows) if grouped else baseline_note(evaluated)
    baselines += guessing_note(evaluated)
    notes += [f"{note[0].upper()}{note[1:]}." for note in baselines]
    if any(row.metrics.get(Metric.OPTION_LIKELIHOOD) is not None for row in rows):
        notes.append("Option likelihood: accuracy of the likeliest letter right after the prompt.")
    notes += [f"{note}." for note in unanswered_notes(rows)]
    if labels := ", ".join(row.label for row in rows if row.by_option_likelihood):
        notes.append(f"Nothing was generated for {labels}: the answers are those letters.")
    return " ".join(notes)
