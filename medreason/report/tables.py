"""The matrices as files: tidy and wide tables as CSV and Parquet, and a picture of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medreason.report import comparisons, domains, matrices
from medreason.report.comparisons import MAY_BE_CHANCE, MEANS, Comparison
from medreason.report.domains import Domains
from medreason.report.matrices import CELLS, TABLES, Arm, Place
from medreason.report.names import file_name
from medreason.report.runs import Run
from medreason.samples import MODALITIES, TASKS
from medreason.stats import mean_over_strata

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
    """`tables/` below the report's folder."""
    folder = target / "tables"
    folder.mkdir(exist_ok=True)
    every_place = [asdict(place) for places in tables.places.values() for place in places]
    matrices.write(every_place, folder / "places")
    compared = [*tables.compared, *tables.domains.compared]
    matrices.write([asdict(row) for row in compared], folder / "comparisons")
    matrices.write(comparisons.not_compared(tables.arms), folder / "not-compared")
    matrices.write(domains.written(tables.domains), folder / "domains")
    for arm in tables.arms:
        for table in TABLES:
            if places := in_table(arm, tables.places[arm.name], table):
                name = f"{table}-{file_name(arm.name)}"
                matrices.write(matrices.wide(places, table), folder / name)
    _draw(tables, folder)
    return folder


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
            if len(values) >= _LEAST:
                clear = {(c.train, c.test) for c in chosen if c.clear}
                path = folder / f"{table}-{file_name(a.name)}-minus-{file_name(b.name)}.png"
                title = f"{a.name} minus {b.name}"
                _save(table, values, title, path, limit=limit, clear=clear, rule=MAY_BE_CHANCE)


def _draw_places(arm: Arm, table: str, places: Sequence[Place], folder: Path) -> None:
    name = f"{table}-{file_name(arm.name)}"
    shares = {(p.train, p.test): 100 * p.accuracy for p in places}
    _save(table, shares, f"{arm.name}: accuracy", folder / f"{name}.png")
    above = {(p.train, p.test): 100 * v for p in places if (v := p.above_prior) is not None}
    if len(above) == len(places):
        clear = {(p.train, p.test) for p in places if p.off_prior}
        clear |= {(m, m) for m in _means_off_prior(arm, places)} if table == "8x5" else set()
        title, path = f"{arm.name}: above the options-only baseline", f"{name}-above-prior.png"
        limit = _limit(above.values())
        _save(table, above, title, folder / path, limit=limit, clear=clear, rule=_INTERVAL)


def _means_off_prior(arm: Arm, places: Sequence[Place]) -> set[str]:
    """Means of 8x5 (`ct/all`, `all/all`) whose interval does not include the baseline."""
    shares = matrices.by_place(arm.shares["8x5"], "share")
    above = {p.test: shares[p.train, p.test] - (p.prior or 0) for p in places}
    margins = comparisons.margins(above)
    means = {line: mean_over_strata(strata, seed=0) for line, strata in margins.items()}
    return {line for line, mean in means.items() if mean.low > 0 or mean.high < 0}


_INTERVAL = "may be chance (95 % interval includes 0)"


def _limit(values: Iterable[float]) -> float:
    return max([10.0, *map(abs, values)])


def _save(
    table: str,
    values: dict[tuple[str, str], float],
    title: str,
    path: Path,
    *,
    limit: float | None = None,
    clear: set[tuple[str, str]] | None = None,
    rule: str = "",
) -> None:
    """`limit` is the end of a scale that diverges from 0; `clear` are places beyond chance."""
    from medreason.report.heatmap import Marks, heat_map, square  # matplotlib, half a second

    scale: dict[str, Any] = (
        {"unit": "percent points", "vmin": -limit, "vmax": limit, "center": 0} if limit else {}
    )
    names = {**MODALITIES, **TASKS, **{cell: _cell_name(cell) for cell in CELLS}}
    if table == "8x5":
        own = {test: value for (_, test), value in values.items()}
        marks = Marks({test for _, test in clear}, rule) if clear is not None else None
        heat_map(own, title=f"{title}, 8x5", marks=marks, **scale).savefig(path)
        return
    rows, columns = TABLES[table]
    named = {(names[a], names[b]): value for (a, b), value in values.items()}
    marks = Marks({(names[a], names[b]) for a, b in clear}, rule) if clear is not None else None
    figure = square(
        [names[row] for row in rows],
        [names[column] for column in columns],
        named,
        title=f"{title}, {table}",
        marks=marks,
        **scale,
    )
    figure.savefig(path)


def _cell_name(cell: str) -> str:
    modality, task = cell.split("/")
    return f"{MODALITIES[modality]}, {TASKS[task]}"
