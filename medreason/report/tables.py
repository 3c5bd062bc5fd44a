"""Arms compared and their train x test tables as files: CSV and Parquet, and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from medreason.metrics import Metric
from medreason.report import comparisons, domains, matrices
from medreason.report.comparisons import MAY_BE_CHANCE, MEANS, Comparison
from medreason.report.domains import Domains, NotCompared, Total
from medreason.report.matrices import CELLS, TABLES, Arm, Place
from medreason.report.names import difference_name, file_name
from medreason.report.runs import Run, estimate
from medreason.samples import MODALITIES, TASKS

_LEAST = 2  # places that make a table worth a file of its own


@dataclass(frozen=True)
class Tables:
    """The arms of a sweep, the results of each, and each against those before it."""

    arms: Sequence[Arm]
    places: dict[str, list[Place]]
    """By the name of the arm."""
    compared: Sequence[Comparison]
    domains: Domains

    @property
    def crossed(self) -> bool:
        """Some run was trained on less than everything; else there is one row and no table."""
        return any(self.places[arm.name] for arm in self.arms if not arm.untrained)


def gather(runs: Sequence[Run]) -> Tables:
    arms = matrices.arms(runs)
    places = {arm.name: matrices.places(arm) for arm in arms}
    compared = [c for a, b in comparisons.pairs(arms) for c in comparisons.compare(a, b)]
    return Tables(arms, places, compared, domains.gather(arms))


def in_table(arm: Arm, places: Sequence[Place], table: str) -> list[Place]:
    """An arm's places in one table, where they are enough to make one."""
    members = [place for place in places if place.table == table]
    return members if len(members) >= _LEAST and not arm.untrained else []


def write(tables: Tables, target: Path) -> Path:
    """`tables/` below the report's folder; train x test tables where there are any."""
    folder = target / "tables"
    folder.mkdir(exist_ok=True)
    compared = [asdict(row) for row in (*tables.compared, *tables.domains.compared)]
    matrices.write(compared, folder / "comparisons", _names(Comparison))
    not_compared = [asdict(pair) for pair in tables.domains.not_compared]
    matrices.write(not_compared, folder / "not-compared", _names(NotCompared))
    matrices.write(domains.written(tables.domains), folder / "domains", _names(Total))
    if tables.crossed:
        _write_places(tables, folder)
    return folder


def _names(kind: type[Comparison | NotCompared | Total]) -> list[str]:
    return [field.name for field in fields(kind) if field.name != "metrics"]


def _write_places(tables: Tables, folder: Path) -> None:
    every_place = [asdict(place) for places in tables.places.values() for place in places]
    matrices.write(every_place, folder / "places")
    for arm in tables.arms:
        for table in TABLES:
            if places := in_table(arm, tables.places[arm.name], table):
                name = f"{table}-{file_name(arm.name)}"
                matrices.write(matrices.wide(places, table), folder / name)
    _draw(tables, folder)


def _draw(tables: Tables, folder: Path) -> None:
    """Accuracy of each arm, how far it is above the baseline, and each arm minus each other."""
    for arm in tables.arms:
        for table in TABLES:
            if places := in_table(arm, tables.places[arm.name], table):
                _draw_places(arm, table, places, folder)
    for table in TABLES:
        names = (table, MEANS) if table == "8x5" else (table,)
        compared = [c for c in tables.compared if c.table in names]
        # One scale for all differences of a table, so that pictures compare.
        limit = _limit(c.difference for c in compared)
        for a, b in comparisons.pairs(tables.arms):
            chosen = [c for c in compared if (c.a, c.b) == (a.name, b.name)]
            values = {(c.train, c.test): c.difference for c in chosen if c.table == table}
            counts = {c.test: c.n for c in chosen if c.table == table}
            if len(values) >= _LEAST:
                clear = {(c.train, c.test) for c in chosen if c.clear}
                path = folder / f"{table}-{file_name(a.name)}-minus-{file_name(b.name)}.png"
                title = difference_name(a.name, b.name)
                marks = Marked(clear, MAY_BE_CHANCE, limit)
                save(table, values, title, path, _weights(a, counts), marks)


def _draw_places(arm: Arm, table: str, places: Sequence[Place], folder: Path) -> None:
    name = f"{table}-{file_name(arm.name)}"
    weights = _weights(arm, {p.test: p.n for p in places})
    shares = {(p.train, p.test): 100 * p.accuracy for p in places}
    save(table, shares, f"{arm.name}: accuracy", folder / f"{name}.png", weights)
    above = {(p.train, p.test): 100 * v for p in places if (v := p.above_prior) is not None}
    if len(above) == len(places):
        clear = {(p.train, p.test) for p in places if p.off_prior}
        clear |= {(m, m) for m in _means_off_prior(arm, places)} if table == "8x5" else set()
        title, path = f"{arm.name}: above the options-only baseline", f"{name}-above-prior.png"
        guessed = any((p.guessing or 0.0) > (p.prior or 0.0) + _NOISE for p in places)
        marks = Marked(clear, _OR_GUESSING if guessed else _INTERVAL, _limit(above.values()))
        save(table, above, title, folder / path, weights, marks)


def _weights(arm: Arm, questions: dict[str, int]) -> dict[str, int] | None:
    """Of the cells in a mean over questions; none where it is over cells."""
    return questions if arm.statistics.average == "questions" else None


def _means_off_prior(arm: Arm, places: Sequence[Place]) -> set[str]:
    """Means of 8x5 (`ct/all`, `all/all`) as `Place.off_prior` has it."""
    rows = matrices.by_place(arm.shares["8x5"])
    own = {
        p.test: rows[p.train, p.test].assign(baseline=p.prior, guessing=p.guessing or 0.0)
        for p in places
    }
    off = set()
    for line, questions in comparisons.margins(own).items():
        accuracy = estimate(questions, arm.statistics, "share")
        prior = estimate(questions, arm.statistics, "baseline").mean
        guessed = estimate(questions, arm.statistics, Metric.GUESSING).mean
        if accuracy.low > max(prior, guessed) or accuracy.high < prior:
            off.add(line)
    return off


_INTERVAL = "may be chance (95 % interval includes 0)"
_OR_GUESSING = "may be chance (95 % interval includes 0 or guessing between the options)"
_NOISE = 1e-9  # of sums of shares


def _limit(values: Iterable[float]) -> float:
    return max([10.0, *map(abs, values)])


@dataclass(frozen=True)
class Marked:
    """A picture of differences."""

    clear: set[tuple[str, str]]
    """Places beyond chance."""
    rule: str
    """By which they are."""
    limit: float
    """End of the scale, which diverges from 0."""


def save(
    table: str,
    values: dict[tuple[str, str], float],
    title: str,
    path: Path,
    weights: dict[str, int] | None,
    marked: Marked | None = None,
) -> Path:
    """Draw a train x test table."""
    from medreason.report.heatmap import Marks, heat_map, square  # matplotlib, half a second

    scale: dict[str, Any] = {}
    if marked:
        scale = {"unit": "percent points", "vmin": -marked.limit, "vmax": marked.limit, "center": 0}
    if table == "8x5":
        own = {test: value for (_, test), value in values.items()}
        marks = Marks({test for _, test in marked.clear}, marked.rule) if marked else None
        figure = heat_map(own, title=f"{title}, 8x5", weights=weights, marks=marks, **scale)
    else:
        names = {**MODALITIES, **TASKS, **{cell: _cell_name(cell) for cell in CELLS}}
        rows, columns = TABLES[table]
        figure = square(
            [names[row] for row in rows],
            [names[column] for column in columns],
            {(names[a], names[b]): value for (a, b), value in values.items()},
            title=f"{title}, {table}",
            marks=Marks({(names[a], names[b]) for a, b in marked.clear}, marked.rule)
            if marked
            else None,
            **scale,
        )
    figure.savefig(path)
    return path


def _cell_name(cell: str) -> str:
    modality, task = cell.split("/")
    return f"{MODALITIES[modality]}, {TASKS[task]}"
