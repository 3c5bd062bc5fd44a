"""Arms on the terminal: their differences, and a table of them where there are too many runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from medreason.console import counted
from medreason.metrics import Metric, Shown
from medreason.report.comparisons import Comparison, one_seed_note, other_seeds_note
from medreason.report.domains import ALL, ELSEWHERE, IN_DOMAIN, Domains, NotCompared, Total
from medreason.report.matrices import Arm
from medreason.report.names import difference_name
from medreason.report.runs import Run, base_of
from medreason.report.table import (
    CUT_OFF,
    NO_BASE,
    OWN_BASELINES,
    Row,
    accuracy_text,
    change_text,
    columns,
    few_clusters_note,
    filled,
    guessing_note,
    method_note,
    no_baseline_note,
    no_start_note,
    percent,
    show_table,
    size,
    under,
    unfinished,
)
from medreason.report.tables import Tables
from medreason.stats import FEWEST, LEVEL

MOST_RUNS = 12
"""Runs with a row, a line or a picture each; beyond it those of the arms say more."""
MOST_DIFFERENCES = 15
"""Differences between arms with a row each; and as many pairs that are not compared."""
_ALWAYS = (Metric.PRIOR, Metric.BLANK_IMAGE, Metric.PARSED)
"""Columns with a dash where there is no value."""


def grouped(runs: Sequence[Run], tables: Tables) -> bool:
    """Whether there are so many runs that arms are shown in their place; never of start models
    alone, which were trained on nothing to group them by."""
    trained = any(not arm.untrained for arm in tables.arms)
    return trained and len(runs) > MOST_RUNS and len(tables.arms) < len(runs)


def show(rows: Sequence[Row], tables: Tables) -> None:
    """Print the table of arms to stdout, with the warnings about its runs."""
    show_table(lambda compact: _table(rows, tables, compact))


@dataclass(frozen=True)
class Differences:
    """The differences between arms that are shown, and those that cannot be made."""

    compared: Sequence[Comparison]
    not_compared: Sequence[NotCompared]
    left_out: str
    """Where the differences are that have no row; empty where all have one."""
    left_out_pairs: str
    """The same of pairs that are not compared."""
    several: bool
    """In-domain and out of domain."""
    tests: int
    """Over which Holm's adjustment is, those without a row included."""
    one_seed: str = ""
    """`comparisons.one_seed_note` of the clear ones that are shown."""
    other_seeds: str = ""
    """`comparisons.other_seeds_note` of those that are shown."""

    @property
    def note(self) -> str:
        if self.tests == 1:  # Holm's adjustment of one p is that p
            return f"*: p is below {LEVEL:g}"
        where = " in one place (in-domain or out of domain)" * self.several
        return f"*: p by Holm, over the {self.tests} differences{where}, is below {LEVEL:g}"


def left_out(shown: int, count: int, what: str = "differences") -> str:
    return f"{shown} of {count} {what}, those of the smallest p; all: tables/comparisons.csv"


def differences(domains: Domains) -> Differences:
    """Those in-domain and out of domain; of too many those of the smallest p."""
    near = [c for c in domains.compared if c.test in (ALL, IN_DOMAIN, ELSEWHERE)]
    counts = Counter(c.test for c in near)
    rows, without_row, pairs_without = near, "", ""
    if len(near) > MOST_DIFFERENCES:
        rows = sorted(near, key=lambda c: c.p)[:MOST_DIFFERENCES]
        without_row = left_out(len(rows), len(near))
    pairs = domains.not_compared[:MOST_DIFFERENCES]
    if len(pairs) < len(domains.not_compared):
        total = len(domains.not_compared)
        pairs_without = f"{len(pairs)} of {total} pairs not compared; all: tables/not-compared.csv"
    several, tests = len(counts) > 1, max(counts.values(), default=0)
    one_seed = one_seed_note(arm for row in rows for arm in domains.of_one_seed(row))
    unlike = other_seeds_note(rows, domains.seeds)
    return Differences(rows, pairs, without_row, pairs_without, several, tests, one_seed, unlike)


def show_differences(domains: Domains) -> None:
    """Print the differences between arms to stdout; nothing where there is one arm."""
    if domains.compared or domains.not_compared:
        table = _difference_table(differences(domains))
        show_table(lambda compact: table)


def _difference_table(shown: Differences) -> Table:
    rows, dashes = shown.compared, ["-"] * len(shown.not_compared)
    pairs = [*rows, *shown.not_compared]
    cells = {"difference": [difference_name(pair.a, pair.b) for pair in pairs]}
    if shown.several:
        cells["where"] = [row.test for row in rows] + dashes
    cells |= {
        "points [95 % interval]": [points(row) for row in rows] + dashes,
        "p": [p_text(row.p, row.clusters) for row in rows] + dashes,
        "p by\nHolm": [p_text(row.p_holm, row.clusters) for row in rows] + dashes,
        "n in\nclusters": [size(row.n, row.clusters) for row in rows] + dashes,
    }
    notes = [f"paired by question; {shown.note}", *few_clusters_reason(rows)] if rows else []
    notes += filter(None, [shown.one_seed, shown.other_seeds])
    by_reason: dict[str, list[str]] = {}
    for pair in shown.not_compared:
        reason = pair.reason.partition(": ")[0]  # the names have the values
        by_reason.setdefault(reason, []).append(difference_name(pair.a, pair.b))
    notes += [
        f"-: {why}" + (f" ({'; '.join(names)})" if len(by_reason) > 1 else "")
        for why, names in by_reason.items()
    ]
    notes += filter(None, (shown.left_out, shown.left_out_pairs))
    return filled(cells, Text("\n".join(notes)))


def few_clusters_reason(rows: Sequence[Comparison]) -> list[str]:
    """Why a difference has neither interval nor p, where one has none."""
    if all(row.clusters >= FEWEST for row in rows):
        return []
    return [f"no interval and no p of fewer than {FEWEST} clusters"]


def points(row: Comparison) -> str:
    """+16.7* [+10.1, +23.3]"""
    return change_text(row.difference, row.low, row.high, row.clusters, "*" * row.clear)


def p_text(p: float, clusters: int = FEWEST) -> str:
    """Three decimals, of one beside the level as many as show its side; a dash of too few clusters
    for a test."""
    if clusters < FEWEST:
        return "-"
    if p < 0.001:
        return "<0.001"
    text = f"{p:.3f}"
    return text if (float(text) < LEVEL) == (p < LEVEL) else f"{p:.4g}"


def start(tables: Tables, arm: str) -> str | None:
    """The arm of the start model this one is compared with: the same model and data."""
    first_run = next(other for other in tables.arms if other.name == arm).runs[0]
    untrained = [other for other in tables.arms if other.untrained]
    base = base_of(first_run, (run for other in untrained for run in other.runs))
    return next((other.name for other in untrained if base in other.runs), None)


def gain(tables: Tables, arm: str, distance: str) -> Comparison | None:
    """The arm minus its start model at that distance."""
    return tables.domains.change(arm, start(tables, arm), distance)


def _change(row: Comparison | None, total: Total | None) -> str:
    if row is None:
        return "-"
    fewer = f" of {row.n:,}" if total and row.n != total.n else ""
    return change_text(row.difference, row.low, row.high, row.clusters) + fewer


def _table(rows: Sequence[Row], tables: Tables, compact: bool) -> Table:
    totals = {arm.name: _totals(tables, arm.name) for arm in tables.arms}
    inside = [total for total, _ in totals.values()]
    average = tables.arms[0].statistics.average
    metrics = [
        metric
        for metric in columns(Shown.TERMINAL, [t.metrics for t in inside if t], *_ALWAYS)
        if not compact or Shown.NARROW in metric.shown
    ]
    inner = {
        "n in\nclusters": [size(t.n, t.clusters) if t else "-" for t in inside],
        f"accuracy %\nover {average}": [_accuracy(t, compact) for t in inside],
        "vs base": [_change(gain(tables, a, IN_DOMAIN), t[0]) for a, t in totals.items()],
        **{
            metric.heading: [percent(t.metrics.get(metric) if t else None) for t in inside]
            for metric in metrics
        },
    }
    outer = {
        "%": [percent(t.accuracy if t else None) for _, t in totals.values()],
        "vs base": [_change(gain(tables, a, ELSEWHERE), t[1]) for a, t in totals.items()],
    }
    cells = {"arm": list(totals), "models": [str(arm.models) for arm in tables.arms]}
    cells |= under("in-domain", inner)
    if any(other for _, other in totals.values()):  # else every run was trained on all there is
        cells |= under("elsewhere", outer)
    return filled(cells, _notes(rows, tables))


def _totals(tables: Tables, arm: str) -> tuple[Total | None, Total | None]:
    return tables.domains.total(arm, IN_DOMAIN), tables.domains.total(arm, ELSEWHERE)


def _accuracy(total: Total | None, compact: bool) -> str:
    if total is None:
        return "-"
    if compact:
        return percent(total.accuracy)
    return accuracy_text(total.accuracy, total.ci_low, total.ci_high, total.clusters)


def _notes(rows: Sequence[Row], tables: Tables) -> Text:
    notes = unfinished(rows)
    notes += [note for arm in tables.arms for note in _warnings(arm, rows)]
    cells = {t.cells for arm in tables.arms if (t := tables.domains.total(arm.name, IN_DOMAIN))}
    if len(cells) > 1:
        notes.append("arms were trained on different numbers of cells: read the differences alone")
    notes += [
        f"{method_note(tables.arms[0].statistics)}; a question counts as the share of an arm's "
        "models that answer it right; in-domain: on what a model was trained on",
        *few_clusters_note(rows),
        *guessing_note(rows),
        *baseline_note(rows),
        *no_start_note(rows),
        "vs base: percent points, paired by question; [95 % intervals]",
        f"all {len(rows)} runs, one by one: the page and table.csv below",
    ]
    return Text("\n".join(notes))


def baseline_note(rows: Sequence[Row]) -> list[str]:
    """Which training questions the options-only baselines count, where models differ in that."""
    if len({row.baseline for row in rows if row.metrics}) < 2:
        return no_baseline_note(rows)
    return [
        *no_baseline_note(rows),
        OWN_BASELINES,
    ]


def leak_note(arm: Arm, rows: Sequence[Row]) -> list[str]:
    """How many of its models have images or patients on two sides, with a warning of the first."""
    members = [row for row in rows if row.name in arm.run_names]
    leaking = [row.leaks[0] for row in members if row.leaks]
    if not leaking:
        return []
    has = "has" if len(leaking) == 1 else "have"
    return [
        f"{arm.name}: {len(leaking)} of {counted(len(members), 'model')} {has} images or patients "
        f"on two sides of the split, as {leaking[0]}"
    ]


def _warnings(arm: Arm, rows: Sequence[Row]) -> list[str]:
    """The warnings about single runs, each with the number of the arm's models it holds for."""
    members = [row for row in rows if row.name in arm.run_names]
    notes = []
    if without := [row.no_base for row in members if row.no_base]:
        notes.append(f"{arm.name}: {NO_BASE}, {min(without, key=len)}")
    notes += leak_note(arm, rows)
    if cut := [row.cut_off for row in members if row.is_cut_off]:
        limits = ", ".join(sorted({str(row.max_new_tokens) for row in members if row.is_cut_off}))
        notes.append(
            f"{arm.name}: {len(cut)} of {counted(len(members), 'model')} had up to "
            f"{percent(max(cut))} % of the replies {CUT_OFF}={limits}; set it higher"
        )
    if lost := [row.metrics.get(Metric.UNANSWERED) or 0.0 for row in members if row.failures]:
        notes.append(
            f"{arm.name}: {len(lost)} of {counted(len(members), 'evaluation')} had up to "
            f"{percent(max(lost))} % of the questions without a reply, which are in no number"
        )
    flat = Counter(name for row in members for name in row.collapsed)
    notes += [
        f"{arm.name}: reward {name} was the same for all completions of a question in {count} of "
        f"{counted(len(members), 'model')} when training ended"
        for name, count in flat.items()
    ]
    return notes
