"""The matrices on disk: tidy and wide tables as CSV and Parquet, and a picture of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medreason.report import comparisons, matrices
from medreason.report.comparisons import Comparison
from medreason.report.matrices import TABLES, Arm, Place
from medreason.report.runs import Run
from medreason.samples import MODALITIES, TASKS

_LEAST = 2  # places that make a table worth a file of its own


def write(runs: Sequence[Run], target: Path) -> list[Path]:
    """`tables/` below the report's folder; nothing where all runs trained on everything."""
    arms = matrices.arms(runs)
    found = {arm.name: matrices.places(arm) for arm in arms}
    if not any(found[arm.name] for arm in arms if not arm.untrained):
        return []
    folder = target / "tables"
    folder.mkdir(exist_ok=True)
    compared = [c for a, b in comparisons.pairs(arms) for c in comparisons.compare(a, b)]
    matrices.write([asdict(place) for some in found.values() for place in some], folder / "places")
    matrices.write([asdict(row) for row in compared], folder / "comparisons")
    matrices.write(_domains(arms), folder / "domains")
    for arm in arms:
        for table in TABLES:
            _write_wide(arm, found[arm.name], table, folder)
    _draw(arms, found, compared, folder)
    return [folder]


def _domains(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    return [
        {"arm": arm.name, "distance": name, "accuracy": 100 * accuracy}
        for arm in arms
        for name, accuracy in matrices.domains(arm).items()
    ]


def _write_wide(arm: Arm, places: Sequence[Place], table: str, folder: Path) -> None:
    if sum(place.table == table for place in places) >= _LEAST and not arm.untrained:
        matrices.write(matrices.wide(places, table), folder / f"{table}-{_file_name(arm.name)}")


def _draw(
    arms: Sequence[Arm],
    found: dict[str, list[Place]],
    compared: Sequence[Comparison],
    folder: Path,
) -> None:
    """In the manner of the paper: accuracy, above prior, and each method minus each other."""
    from medreason.report.heatmap import square  # matplotlib, half a second

    for arm in arms:
        for table in ("8x8", "5x5", "40x40"):
            here = [p for p in found[arm.name] if p.table == table]
            if arm.untrained or len(here) < _LEAST:
                continue
            name = f"{table}-{_file_name(arm.name)}"
            shares = {(p.train, p.test): 100 * p.accuracy for p in here}
            _save(square, table, shares, f"{arm.name}: accuracy", folder / f"{name}.png")
            above = {(p.train, p.test): 100 * (p.above_prior or 0) for p in here}
            if all(p.above_prior is not None for p in here):
                title = f"{arm.name}: accuracy above the question-only prior"
                _save(square, table, above, title, folder / f"{name}-above-prior.png", signed=True)
    for a, b in comparisons.pairs(arms):
        for table in ("8x8", "5x5", "40x40"):
            chosen = [c for c in compared if (c.table, c.a, c.b) == (table, a.name, b.name)]
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
