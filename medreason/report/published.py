"""Numbers of a sweep beside those that papers published, and whether they differ."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table as TerminalTable
from rich.text import Text

from medreason import stats
from medreason.config import Statistics
from medreason.console import counted
from medreason.data.names import split_family
from medreason.report import matrices, published_file
from medreason.report.matrices import TABLES, Arm
from medreason.report.names import file_name
from medreason.report.published_file import ACCURACY, FAMILIES, OTHER, Published
from medreason.report.runs import Run
from medreason.report.table import filled
from medreason.samples import MODALITIES, TASKS
from medreason.stats import FEWEST, FEWEST_FOR_INTERVAL, Estimate

MOST_ROWS = 15
"""On the terminal."""
_STANDS_IN = "tiny"
"""The model that a rehearsal runs in place of any."""
_PLACE = ["place", "question", "cluster", "cell"]


@dataclass(frozen=True)
class Compared:
    """A published number and ours, in percent; of a difference in percent points."""

    published: Published
    low: float | None
    """95 % interval of the published number; None where its n is not published."""
    high: float | None
    arm: str = ""
    """Ours; empty where the sweep has no such number."""
    ours: Estimate | None = None
    why: str = ""
    """Why there is no number of ours."""
    stands_in: bool = False
    """Ours is of another model, that of a rehearsal."""

    @property
    def difference(self) -> float | None:
        """Ours minus the published number."""
        if self.ours is None or self.published.value is None:
            return None
        return self.ours.mean - self.published.value

    @property
    def few(self) -> bool:
        """Ours is of too few clusters for an interval."""
        fewest = FEWEST if self.published.minus else FEWEST_FOR_INTERVAL
        return self.ours is not None and self.ours.clusters < fewest

    @property
    def beyond(self) -> bool | None:
        """The difference is larger than both intervals allow: they do not overlap. None where one
        of them is not known, or ours is of too few clusters."""
        if self.difference is None or self.ours is None or self.low is None or self.high is None:
            return None
        if self.few:
            return None
        return self.ours.low > self.high or self.ours.high < self.low

    @property
    def verdict(self) -> str:
        if self.published.value is None:
            return "not published"
        if self.difference is None:
            return self.why
        if self.few:
            return "too few clusters of ours"
        if self.beyond is None:
            return "n not published"
        return "beyond both intervals" if self.beyond else "within the intervals"


def compare(runs: Sequence[Run], arms: Sequence[Arm], path: str | None = None) -> list[Compared]:
    """Each row of the files that the runs name in `report.published`, or of `path` in their place:
    with each arm of that method, model and prompt, or with none.

    Raises ValueError where a file cannot be used.
    """
    named = [run.config.report.published for run in runs if run.config]
    files = [path] if path else list(dict.fromkeys(filter(None, named)))
    return [
        compared
        for file in files
        for row in published_file.read(file)
        for compared in _compare(row, arms)
    ]


def _compare(row: Published, arms: Sequence[Arm]) -> Iterator[Compared]:
    statistics = arms[0].statistics if arms else Statistics()
    interval = _interval(row, statistics)
    members = [arm for arm in arms if _is_of(arm, row, row.method, row.prompt)]
    reason = _why_none(row)
    if reason or not members:
        yield Compared(row, *interval, why=reason or f"no {row.name} of {row.model} in this sweep")
        return
    answers = [(arm, *(_minus if row.minus else _accuracy)(arm, arms, row)) for arm in members]
    for arm, ours, reason in [a for a in answers if a[1]] or answers[:1]:
        config = arm.runs[0].config
        stands_in = config is not None and config.model.name == _STANDS_IN
        yield Compared(row, *interval, arm.name if ours else "", ours, reason, stands_in)


def _why_none(row: Published) -> str:
    """Why no sweep has such a number."""
    if row.metric != ACCURACY:
        return f"{row.metric}: not measured here"
    others = [n for n in (row.method, row.model, row.train, row.test) if n.startswith(OTHER)]
    return f"{others[0].removeprefix(OTHER)}: not run here" if others else ""


def _interval(row: Published, statistics: Statistics) -> tuple[float | None, float | None]:
    """Of independent questions, since clusters are not published; of a difference with the
    discordance of `statistics`."""
    if row.value is None or row.n is None:
        return None, None
    if row.minus:
        half = 100 * stats.half_width(row.value / 100, row.n, statistics.discordance)
        return row.value - half, row.value + half
    low, high = stats.wilson(row.value / 100, row.n)
    return 100 * low, 100 * high


def _is_of(arm: Arm, row: Published, method: str, prompt: str) -> bool:
    config = arm.runs[0].config
    assert config
    names = [run.config.model.name for run in arm.runs if run.config]
    if row.checkpoint and any(name.startswith(row.checkpoint) for name in names):
        return not row.minus
    return (
        config.method.name == method
        and not config.weights_of
        and config.model.name in (row.model, _STANDS_IN)
        and prompt in ("", config.prompt.name.removesuffix("_parity"))
    )


def _accuracy(arm: Arm, _: Sequence[Arm], row: Published) -> tuple[Estimate | None, str]:
    shares, reason = _shares(arm, row)
    if shares is None:
        return None, reason
    by = _weighed_by(shares, arm.statistics)
    estimate = stats.accuracy(shares["share"], shares["cluster"], by)
    return _counted(estimate, shares), ""


def _minus(arm: Arm, arms: Sequence[Arm], row: Published) -> tuple[Estimate | None, str]:
    """The arm minus the one that differs from it in the prompt or method `row.minus`."""
    is_method = row.minus in ("base", "sft", "grpo", "rarl")
    method, prompt = (row.minus, row.prompt) if is_method else (row.method, row.minus)
    a, reason = _shares(arm, row)
    if a is None:
        return None, reason
    reason = f"no {row.minus} to subtract in this sweep"
    for other in arms:
        if other is arm or not _is_of(other, row, method, prompt):
            continue
        b, reason = _shares(other, row)
        both = a if b is None else a.merge(b, on=["place", "question"], suffixes=("", "_b"))
        if b is None or both.empty:
            continue
        change = stats.difference(
            both["share"] - both["share_b"], both["cluster"], _weighed_by(both, arm.statistics)
        )
        return _counted(change, both), ""
    return None, reason or "no question in common"


def _weighed_by(shares: pd.DataFrame, statistics: Statistics) -> pd.Series | None:
    """A mean of several places gives each the same weight."""
    if shares["place"].nunique() > 1:
        return shares["place"]
    return shares["cell"] if statistics.average == "cells" else None


def _counted(estimate: Estimate, shares: pd.DataFrame) -> Estimate:
    """In percent, each question counted once, however many models answered it."""
    low, mean, high = (100 * value for value in (estimate.low, estimate.mean, estimate.high))
    n = shares["question"].nunique()
    return Estimate(mean, low, high, n, estimate.clusters, estimate.design_effect)


def _shares(arm: Arm, row: Published) -> tuple[pd.DataFrame | None, str]:
    """The share of the arm's models that answer each question right, in every place of the row;
    None and the reason where a place has no answers or the weights are of another step."""
    steps = {run.state.chosen_step for run in arm.runs}
    if row.step and steps != {row.step}:
        return None, f"weights of step {', '.join(map(str, sorted(steps)))} were tested"
    places = list(itertools.product(_members(row.train), _members(row.test)))
    parts = [_place(arm, train, test) for train, test in places]
    if lacking := sum(part.empty for part in parts):
        several = f" in {lacking} of the {len(parts)} places" if len(parts) > 1 else ""
        return None, f"not trained or not tested{several}"
    return pd.concat(parts), ""


def _members(name: str) -> Sequence[str]:
    return FAMILIES.get(name) or name.split("+")


def _place(arm: Arm, train: str, test: str) -> pd.DataFrame:
    runs = {run.name for run in arm.runs if arm.untrained or _is_trained_on(run, train)}
    answers = arm.answers[arm.answers["run"].isin(runs)].assign(place=f"{train}|{test}")
    answers = answers[_is_tested_on(answers, arm, test)]
    shares = answers.groupby(_PLACE, sort=False)["correct"].mean()
    return shares.rename("share").reset_index()


def _is_trained_on(run: Run, train: str) -> bool:
    assert run.config
    if train in MODALITIES:
        return {cell.partition("/")[0] for cell in run.chosen_cells} == {train}
    if train in TASKS:
        return {cell.partition("/")[2] for cell in run.chosen_cells} == {train}
    if "/" in train:
        return run.chosen_cells == {train}
    if train == "all":
        return {*matrices.CELLS} <= run.chosen_cells
    joined = run.config.data.get("train", ())
    return train == run.config.choices.get("data") or train in joined


def _is_tested_on(answers: pd.DataFrame, arm: Arm, test: str) -> pd.Series:
    for column, names in (("modality", MODALITIES), ("task", TASKS), ("cell", matrices.CELLS)):
        if test in names:
            return (answers[column] == test) & ~_are_of_other_splits(answers["sample"], test)
    of_set = {run.name for run in arm.runs if _data_of(run) == test}
    return (
        (test == "all")
        | answers["run"].isin(of_set)
        | answers["sample"].str.startswith(f"{test}/")  # of data sets that are joined
    )


def _are_of_other_splits(samples: pd.Series, test: str) -> pd.Series:
    """Whether samples are of Med-R1's other family of split files: its questions about a modality
    are not those of the modality's test, and most of them are in that family's training files."""
    other = {**dict.fromkeys(MODALITIES, "question_type"), **dict.fromkeys(TASKS, "modality")}
    family = {sample: split_family(sample) for sample in samples.unique()}
    return samples.map(family) == other.get(test, "none")


def _data_of(run: Run) -> str:
    return run.config.choices.get("data", "") if run.config else ""


def write(rows: Sequence[Compared], folder: Path) -> list[Path]:
    """`published.csv` and `.parquet`, and maps of the published tables and of ours minus theirs."""
    files = matrices.write([_record(row) for row in rows], folder / "published")
    for (name, table), places in maps(rows).items():
        files += _draw(name, table, places, folder)
    return files


def _record(row: Compared) -> dict[str, Any]:
    published = {k: v for k, v in asdict(row.published).items() if k != "line"}
    ours = row.ours
    return published | {
        **{"published_low": row.low, "published_high": row.high},
        **{"arm": row.arm, "ours": ours.mean if ours else None},
        **{"ours_low": ours.low if ours else None, "ours_high": ours.high if ours else None},
        **{"ours_n": ours.n if ours else None, "clusters": ours.clusters if ours else None},
        **{"difference": row.difference, "verdict": row.verdict},
    }


def maps(rows: Iterable[Compared]) -> dict[tuple[str, str], dict[tuple[str, str], Compared]]:
    """Of each table of which half of the places or more are published, and some have a number of
    ours: (name, table) -> its rows by (train, test)."""
    tables: dict[tuple[str, str], dict[tuple[str, str], Compared]] = {}
    for row in rows:
        place = row.published.train, row.published.test
        for table in FAMILIES:
            if {*place} <= {*TABLES[table][0]} and row.published.value is not None:
                name = f"{row.published.name}, {row.published.harness}"
                tables.setdefault((name, table), {})[place] = row
    return {
        (name, table): places
        for (name, table), places in tables.items()
        if 2 * len(places) >= len(TABLES[table][0]) ** 2 and any(r.ours for r in places.values())
    }


def _draw(
    name: str, table: str, places: dict[tuple[str, str], Compared], folder: Path
) -> Iterator[Path]:
    from medreason.report.tables import Marked, save  # matplotlib, half a second

    values = {place: row.published.value or 0.0 for place, row in places.items()}
    changes = {p: row.difference for p, row in places.items() if row.difference is not None}
    signed = any(row.published.minus for row in places.values())
    limit = max(10.0, *map(abs, values.values()))
    stem = f"{table}-published-{file_name(name.replace(',', ''))}"
    marked = Marked({*values}, "", limit) if signed else None
    yield save(table, values, f"Published: {name}", folder / f"{stem}.png", None, marked)
    beyond = {place for place, row in places.items() if row.beyond}
    rule = "within both intervals, or one is not known"
    marked = Marked(beyond, rule, max(10.0, *map(abs, changes.values())))
    title, path = f"Ours minus published: {name}", folder / f"{stem}-difference.png"
    yield save(table, changes, title, path, None, marked)


def shown(rows: Sequence[Compared]) -> list[Compared]:
    """Those with a number of ours, the clearest differences first."""
    numbers = [row for row in rows if row.difference is not None]
    return sorted(numbers, key=lambda row: (not row.beyond, -abs(row.difference or 0.0)))


def notes(rows: Sequence[Compared]) -> list[str]:
    """What is compared, what is assumed, and why the others are not."""
    values = [row for row in rows if row.published.value is not None]
    compared = [row for row in values if row.difference is not None]
    counts = Counter(row.verdict for row in compared)
    verdicts = "".join(f"; {verdict}: {n}" for verdict, n in counts.items())
    have = "has" if len(compared) == 1 else "have"
    known = counted(len(values), "published number")
    lines = [f"{len(compared)} of {known} {have} one of ours{verdicts}"]
    if any(row.low is not None for row in values):
        lines.append(
            "published intervals: 95 %, as if the published n were independent questions, of a "
            "difference with statistics.discordance; beyond both: they do not overlap"
        )
    if any(row.stands_in for row in compared):
        lines.append(
            f"ours: the model {_STANDS_IN} stands in for the papers', a rehearsal: its differences "
            "say nothing about them"
        )
    if empty := len(rows) - len(values):
        numbers = "number is" if empty == 1 else "numbers are"
        lines.append(f"{empty} {numbers} not published, or not available: empty in the file")
    reasons = Counter(row.why for row in values if row.difference is None)
    lines += [f"without ours, {reason}: {count}" for reason, count in reasons.most_common(6)]
    return [*lines, *_spreads(values)]


def _spreads(rows: Iterable[Compared]) -> Iterator[str]:
    """How far harnesses are apart that published the same number."""
    by_number: dict[str, list[Published]] = {}
    for p in (row.published for row in rows):
        by_number.setdefault(f"{p.name} of {p.model}, {p.place}", []).append(p)
    spread = {
        name: [min(values), max(values)]
        for name, same in by_number.items()
        if len({p.harness for p in same}) > 1 and (values := [p.value or 0.0 for p in same])
    }
    if spread:
        name, (low, high) = max(spread.items(), key=lambda item: item[1][1] - item[1][0])
        yield (
            f"{counted(len(spread), 'number')} of several harnesses, up to {high - low:.1f} points "
            f"apart ({name}: {low:g} to {high:g}): a smaller difference says nothing of the model"
        )


def table(rows: Sequence[Compared], *, compact: bool) -> TerminalTable:
    """The clearest differences; the others are in tables/published.csv. `compact` leaves out the
    harnesses."""
    best = shown(rows)
    first = best[:MOST_ROWS]
    cells = {
        "published": [row.published.name for row in first],
        "trained to\ntested": [row.published.place for row in first],
        "theirs %": [
            _with_interval(row, row.published.value or 0.0, row.low, row.high) for row in first
        ],
        "ours %": [
            _with_interval(row, row.ours.mean, row.ours.low, row.ours.high, few=row.few)
            if row.ours
            else "-"
            for row in first
        ],
        "points": [f"{row.difference:+.1f}" for row in first],
        "difference is": [row.verdict for row in first],
        "harness": [] if compact else [row.published.harness for row in first],
    }
    more = f"{len(first)} of {len(best)} shown; all: tables/published.csv"
    lines = [*([more] if len(best) > len(first) else []), *notes(rows)]
    return filled({k: column for k, column in cells.items() if column}, Text("\n".join(lines)))


def value_text(value: float, row: Compared) -> str:
    """61.2, or +1.2 of a difference."""
    return f"{value:+.1f}" if row.published.minus else f"{value:.1f}"


def _with_interval(
    row: Compared, mean: float, low: float | None, high: float | None, *, few: bool = False
) -> str:
    """A dash in place of the interval of too `few` clusters."""
    if low is None or high is None:
        return value_text(mean, row)
    if few:
        return f"{value_text(mean, row)} [-]"
    ends = f"{value_text(low, row)}, {value_text(high, row)}"
    return f"{value_text(mean, row)} [{ends}]"
