"""The matrices on disk: tidy and wide tables as CSV and Parquet, and a picture of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medreason.report import comparisons, matrices
from medreason.report.comparisons import Comparison
from medreason.report.matrices import TABLES, Arm, Place
from medreason.report.runs import Run
from medreason.samples import MODALITIES, TASKS

_LEAST = 2  # places that make a table worth a file of its own


@dataclass(frozen=True)
class Tables:
    """The arms of a sweep, what each came to, and each against those before it."""

    arms: Sequence[Arm]
    places: dict[str, list[Place]]
    """By the name of the arm."""
    compared: Sequence[Comparison]


def gather(runs: Sequence[Run]) -> Tables | None:
    """None where no run was trained on less than everything: then there is one row."""
    arms = matrices.arms(runs)
    found = {arm.name: matrices.places(arm) for arm in arms}
    if not any(found[arm.name] for arm in arms if not arm.untrained):
        return None
    compared = [c for a, b in comparisons.pairs(arms) for c in comparisons.compare(a, b)]
    return Tables(arms, found, compared)


def shown(arm: Arm, places: Sequence[Place], table: str) -> list[Place]:
    """An arm's places in one table, where they are enough to make one."""
    here = [place for place in places if place.table == table]
    return here if len(here) >= _LEAST and not arm.untrained else []


def write(tables: Tables, target: Path) -> Path:
    """`tables/` below the report's folder."""
    folder = target / "tables"
    folder.mkdir(exist_ok=True)
    places = [asdict(place) for some in tables.places.values() for place in some]
    matrices.write(places, folder / "places")
    matrices.write([asdict(row) for row in tables.compared], folder / "comparisons")
    matrices.write(_domains(tables.arms), folder / "domains")
    for arm in tables.arms:
        for table in TABLES:
            if here := shown(arm, tables.places[arm.name], table):
                name = f"{table}-{_file_name(arm.name)}"
                matrices.write(matrices.wide(here, table), folder / name)
    _draw(tables, folder)
    return folder


def _domains(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    return [
        {"arm": arm.name, "distance": name, "accuracy": 100 * accuracy}
        for arm in arms
        for name, accuracy in matrices.domains(arm).items()
    ]


def _draw(tables: Tables, folder: Path) -> None:
    """In the manner of the paper: accuracy, above prior, and each method minus each other."""
    from medreason.report.heatmap import square  # matplotlib, half a second

    for arm in tables.arms:
        for table in ("8x8", "5x5", "40x40"):
            here = shown(arm, tables.places[arm.name], table)
            if not here:
                continue
            name = f"{table}-{_file_name(arm.name)}"
            shares = {(p.train, p.test): 100 * p.accuracy for p in here}
            _save(square, table, shares, f"{arm.name}: accuracy", folder / f"{name}.png")
            above = {(p.train, p.test): 100 * (p.above_prior or 0) for p in here}
            if all(p.above_prior is not None for p in here):
                title = f"{arm.name}: accuracy above the question-only prior"
                _save(square, table, above, title, folder / f"{name}-above-prior.png", signed=True)
    for a, b in comparisons.pairs(tables.arms):
        for table in ("8x8", "5x5", "40x40"):
            chosen = [c for c in tables.compared if (c.table, c.a, c.b) == (table, a.name, b.name)]
            if len(chosen) >= _LEAST:
                values = {(c.train, c.test): c.difference for c in chosen}
                path = folder / f"{table}-{_file_name(a.name)}-minus-{_file_name(b.name)}.png"
                _save(square, table, values, f"{a.name} minus {b.name}", path, signed=True)


def _save(
    square: Any,  # noqa: ANN401  drawn by a module that imports matplotlib
    table: str,
    values: dict[tuple[str, str], float],
    title: str,
    path: Path,
    *,
    signed: bool = False,
) -> None:
    rows, columns = TABLES[table]
    names = {**MODALITIES, **TASKS}
    limit = max([10.0, *map(abs, values.values())])
    scale: dict[str, Any] = (
        {"unit": "percent points", "vmin": -limit, "vmax": limit, "center": 0} if signed else {}
    )
    named = {(names.get(a, a), names.get(b, b)): value for (a, b), value in values.items()}
    figure = square(
        [names.get(row, row) for row in rows],
        [names.get(column, column) for column in columns],
        named,
        title=f"{title}, {table}",
        **scale,
    )
    figure.savefig(path)


def _file_name(arm: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in arm.lower())
