"""`action=report`: the runs of one sweep or of several as a table, heat maps, a CSV file and a page
of HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from medreason.config import Config
from medreason.console import command, show
from medreason.metrics import Metric
from medreason.report import (
    analyses,
    arms,
    comparisons,
    data_sets,
    loading,
    published,
    reasoning,
    search,
    summary,
    table,
    tables,
)
from medreason.report import runs as reading
from medreason.report.data_sets import OnSet
from medreason.report.matrices import TABLES
from medreason.report.names import data_name
from medreason.report.published import Compared
from medreason.report.runs import Run
from medreason.report.search import Trial
from medreason.report.tables import Tables
from medreason.runs import openings, search_folder
from medreason.runs.openings import Opening
from medreason.runs.run_folder import EvaluationFolder, evaluations_by_sweep
from medreason.stats import LEVEL, Difference


class _Parts(NamedTuple):
    """What a report is made of."""

    runs: list[Run]
    tables: Tables
    trials: list[Trial]
    beside: list[Compared]
    """Published numbers beside ours."""
    on_sets: list[OnSet]
    opened: list[Opening]


def run(config: Config) -> None:
    """Write the report of the sweep, print its table, and send it to the sweep's run in MLflow; of
    several sweeps, which have no run there, it is on disk alone.

    Nothing is printed before the files are written, since what reads a pipe may end at any line.
    """
    sweeps = _sweeps(config)
    of_sweeps = {name: loading.evaluations_of(config.folder / "runs", name) for name in sweeps}
    if config.tracking.resync and config.tracking.uri:
        for name, members in of_sweeps.items():
            _resync(config, name, members)
    evaluations = [*{e.path: e for members in of_sweeps.values() for e in members}.values()]
    parts = _gather(config, sweeps, reading.load(evaluations, config.statistics))
    target = config.folder / "reports" / config.sweep
    target.mkdir(parents=True, exist_ok=True)
    _remove_former(target)
    files = list(_write(config, parts, target))
    _show(parts)
    for line in listed(files):
        show(line)
    show(f"open {files[0]} in a browser: every cell leads to its questions")
    if config.tracking.uri and len(sweeps) == 1:
        _track(config, evaluations, files)
        pages = command([config.outputs], "medreason.tracking.pages")
        place = f"`{pages}`" if config.tracking.name == "local" else "the tracking server"
        show(f"{place} shows parameters, curves, predictions with images in MLflow")


def _gather(config: Config, sweeps: Sequence[str], loaded: list[Run]) -> _Parts:
    # Trials of two searches are no search.
    trials, runs = search.split(loaded) if len(sweeps) == 1 else ([], search.without_trials(loaded))
    gathered = tables.gather(runs)
    return _Parts(
        runs,
        gathered,
        trials,
        published.compare(runs, gathered.arms, config.report.published),
        data_sets.by_source(gathered.arms),
        _named([o for name in sweeps for o in openings.read(config.folder, name)], loaded),
    )


def _show(parts: _Parts) -> None:
    """Print the tables, and what to know before believing them."""
    runs, trials, beside = parts.runs, parts.trials, parts.beside
    if trials:
        table.show_table(lambda compact: search.table(trials))
    if arms.grouped(runs, parts.tables):
        arms.show(table.rows_of(runs), parts.tables)
    else:
        table.show_rows(table.rows_of(runs))
    arms.show_differences(parts.tables.domains)
    if sets := data_sets.shown(parts.on_sets):
        table.show_table(lambda compact: data_sets.table(sets, parts.tables.arms))
    if published.shown(beside):
        table.show_table(lambda compact: published.table(beside, compact=compact))
    elif beside:
        show("\n".join(published.notes(beside)))
    if line := summary.caution(runs, parts.tables):
        show(line)
    for line in filter(None, [*summary.tested(parts.opened), summary.chosen_by_test(parts.opened)]):
        show(line)


def _sweeps(config: Config) -> list[str]:
    """The sweeps of `sweep=a,b`, each once; one whose name has a comma is one."""
    named = config.sweep
    if "," not in named or named in evaluations_by_sweep(config.folder / "runs"):
        return [named]
    return list(dict.fromkeys(filter(None, map(str.strip, named.split(",")))))


def _named(opened: Sequence[Opening], runs: Sequence[Run]) -> list[Opening]:
    """With the names of own tables, where a line of an earlier version says `hub`; each once."""
    names = {run.folder.path.name: data_name(run.config) for run in runs if run.config}
    named = [replace(o, data=names.get(o.run, o.data)) if o.data == "hub" else o for o in opened]
    return list(dict.fromkeys(named))


def _resync(config: Config, sweep: str, evaluations: Sequence[EvaluationFolder]) -> None:
    from medreason import tracking  # MLflow, seconds

    if not tracking.catch_up(config.tracking, config.folder, sweep, evaluations, all_=True):
        raise ValueError(f"tracking.uri={config.tracking.uri} is not up to date; see above")


_OF_A_REPORT = (
    *("accuracy-*.png", "difference-*.png", "reasoning.*", "reasoning-differences.*"),
    *("tables/accuracy-by-length.*", "tables/by-data-set.*", "tables/places.*"),
    *("tables/published.*", "tables/training.*"),
    *(f"tables/{name}-*" for name in TABLES),
)
"""Names of files that one report of a sweep has and the next may lack, since arms are called by
what tells them apart."""


def _remove_former(target: Path) -> None:
    """Remove what the former report wrote under names that this one may not write. Heat maps carry
    a mark: a reader's own pictures may be called alike."""
    for path in (path for pattern in _OF_A_REPORT for path in target.glob(pattern)):
        own = path.parent == target and path.suffix == ".png" and not _is_marked(path)
        if not own and path.suffix in (".png", ".csv", ".parquet", ".md") and path.is_file():
            path.unlink()


_MARK = {"Software": "medreason"}
"""Metadata of heat maps."""


def _is_marked(path: Path) -> bool:
    """Whether the text chunk that stands before a PNG's pixels is ours."""
    with path.open("rb") as file:
        return b"Software\0medreason" in file.read(4096)


def listed(files: Sequence[Path]) -> Iterator[str]:
    """The first file, then a line for each folder with what else was written there."""
    yield str(files[0])
    folders: dict[Path, list[Path]] = {}
    for path in files[1:]:
        for file in path.iterdir() if path.is_dir() else [path]:
            folders.setdefault(file.parent, []).append(file)
    for folder in sorted(folders):
        yield f"{folder}/: {', '.join(_grouped(folders[folder]))}"


def _grouped(files: Sequence[Path]) -> Iterator[str]:
    """`table.csv`, `domains.{csv,parquet}`, `accuracy-*.png (5 files)`: files together whose names
    differ in the last part, or that are many with the same first word."""
    words = Counter({file.stem: file.stem.partition("-")[0] for file in files}.values())
    groups: dict[str, set[Path]] = {}
    for file in files:
        word = file.stem.partition("-")[0]
        groups.setdefault(f"{word}-*" if words[word] >= _MANY else file.stem, set()).add(file)
    for name in sorted(groups):
        ends = sorted({file.suffix[1:] for file in groups[name]})
        end = ends[0] if len(ends) == 1 else f"{{{','.join(ends)}}}"
        yield f"{name}.{end}" + (f" ({len(groups[name])} files)" if name.endswith("*") else "")


_MANY = 3  # names with the same first word, which are listed as one


def _write(config: Config, parts: _Parts, target: Path) -> Iterator[Path]:
    """Yield each file after it is written; the page first."""
    runs = parts.runs
    yield _write_page(config, parts, target)
    yield _write_csv(runs, target)
    if len(runs) <= arms.MOST_RUNS:
        yield from _write_heat_maps(runs, target)
    yield tables.write(parts.tables, target)
    yield from published.write(parts.beside, target / "tables")
    yield from data_sets.write(parts.on_sets, target / "tables")
    yield from analyses.write(parts.tables.arms, target / "tables")
    yield from reasoning.write(runs, target)


def _write_page(config: Config, parts: _Parts, target: Path) -> Path:
    from medreason.report.page import page  # Pillow

    path = target / "index.html"
    text = page(
        parts.runs,
        sweep=config.sweep,
        tables=parts.tables,
        openings=parts.opened,
        trials=parts.trials,
        logarithmic=search_folder.logarithmic(config.folder, config.sweep),
        beside=parts.beside,
        on_sets=parts.on_sets,
    )
    path.write_text(text, encoding="utf-8")
    return path


def _write_csv(runs: list[Run], target: Path) -> Path:
    path = target / "table.csv"
    table.write_csv(runs, path)
    return path


def _write_heat_maps(runs: list[Run], target: Path) -> Iterator[Path]:
    """Accuracy of each run, and its difference from the base model; one scale for all runs."""
    from medreason.report.heatmap import Marks, heat_map  # matplotlib, half a second

    changes = {run.file_name: change for run in runs if (change := _changes(run, runs))}
    points = [change.mean for cells in changes.values() for change, _ in cells.values()]
    limit = max([10.0, *map(abs, points)])
    for run in (run for run in runs if run.metrics):
        accuracy = {cell: 100 * metrics[Metric.ACCURACY] for cell, metrics in run.cells.items()}
        weights = _weights(run, {cell: metrics[Metric.N] for cell, metrics in run.cells.items()})
        path = target / f"accuracy-{run.file_name}.png"
        figure = heat_map(accuracy, title=f"{run.label}: accuracy", weights=weights)
        figure.savefig(path, metadata=_MARK)
        yield path
        if run.file_name in changes:
            cells = {c: each for c, each in changes[run.file_name].items() if c in run.cells}
            clear = {c for c, (_, p) in changes[run.file_name].items() if p < LEVEL}
            figure = heat_map(
                {cell: change.mean for cell, (change, _) in cells.items()},
                title=f"{run.label}: accuracy minus base",
                unit="percent points",
                vmin=-limit,
                vmax=limit,
                center=0,
                weights=_weights(run, {cell: change.n for cell, (change, _) in cells.items()}),
                marks=Marks(clear, comparisons.MAY_BE_CHANCE),
            )
            path = target / f"difference-{run.file_name}.png"
            figure.savefig(path, metadata=_MARK)
            yield path


def _changes(run: Run, runs: list[Run]) -> dict[str, tuple[Difference, float]]:
    """By cell and mean, on questions of both run and base."""
    return comparisons.of_cells(run, reading.base_of(run, runs))


def _weights(run: Run, questions: dict[str, int]) -> dict[str, int] | None:
    """Of the cells in a mean over questions; none where it is over cells."""
    return questions if run.statistics.average == "questions" else None


def _track(config: Config, evaluations: Sequence[EvaluationFolder], files: list[Path]) -> None:
    from medreason import tracking  # MLflow, seconds

    try:
        tracking.show_sweep(config.tracking, config.folder, config.sweep, files)
        tracking.name_runs(config.tracking, config.folder, config.sweep, evaluations)
    except tracking.UNREACHED as error:
        tracking.warn_unreached(config.tracking, error, "the files are on disk")
