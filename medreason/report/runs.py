"""Run folders read for a report: metrics, which answers were right, and what they compare with."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from medreason import config as configuration
from medreason.config import METHODS, Config
from medreason.evaluation import predictions
from medreason.report.names import run_names
from medreason.runs.run_folder import RunFolder, State
from medreason.stats import Difference, paired_difference

Cell = tuple[str, str]
"""(modality, task)"""


class Outcome(NamedTuple):
    """What became of one question under the real image."""

    cell: Cell
    correct: bool
    parsed: bool


@dataclass(frozen=True)
class Run:
    """A run folder as read from disk, with its last evaluation."""

    folder: RunFolder
    config: Config | None
    """None where the run ended before its configuration was frozen."""
    state: State
    metrics: dict[str, Any] | None
    """metrics.json; None where nothing is evaluated yet."""
    label: str
    evaluation_key: str = ""
    """Of the evaluation shown; empty where there is none yet."""
    outcomes: dict[str, Outcome] = field(repr=False, default_factory=dict)
    """By sample id, in the order of the file."""

    @property
    def method(self) -> str:
        return self.config.method.name if self.config else self.folder.path.name.split("-")[0]

    @property
    def evaluation(self) -> Path:
        """Folder of the evaluation shown."""
        return self.folder.evaluation(self.evaluation_key)

    @property
    def overall(self) -> dict[str, Any]:
        """Metrics over all tested cells; empty where nothing is evaluated yet."""
        return self.metrics["overall"] if self.metrics else {}

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """Metrics of each tested cell, keyed `modality/task`."""
        return self.metrics["cells"] if self.metrics else {}

    @functools.cached_property
    def answers(self) -> dict[Cell, dict[str, bool]]:
        """Cell -> sample id -> whether it was answered right."""
        found: dict[Cell, dict[str, bool]] = {}
        for sample, outcome in self.outcomes.items():
            found.setdefault(outcome.cell, {})[sample] = outcome.correct
        return found

    @property
    def file_name(self) -> str:
        """The label in letters that any file system takes."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")

    @property
    def trained_on(self) -> set[Cell]:
        if self.config is None or self.config.method.algorithm == "none":
            return set()
        return {(m, t) for m in self.config.modality.members for t in self.config.task.members}

    @property
    def tested_on(self) -> set[Cell]:
        return {outcome.cell for outcome in self.outcomes.values()}


def load(folders: Iterable[RunFolder], sweep: str | None = None) -> list[Run]:
    """The runs in the order of readers: base, sft, grpo, rarl, then others by name.

    Shows the evaluation the sweep asked for, or the last one where no sweep is given.
    """
    found = list(folders)
    configs = [configuration.read(f.config) if f.config.exists() else None for f in found]
    labels = run_names(found, configs)
    runs = [
        _load(folder, config, label, sweep)
        for folder, config, label in zip(found, configs, labels, strict=True)
    ]
    order = {name: place for place, name in enumerate(METHODS)}
    return sorted(runs, key=lambda r: (order.get(r.method, len(order)), r.method, r.label))


def base_of(run: Run, runs: Iterable[Run]) -> Run | None:
    """The evaluated start model a run is compared with: same model and data."""
    for other in runs:
        a, b = run.config, other.config
        if not (a and b and other.metrics) or other.method != "base" or run.method == "base":
            continue
        if (a.model, a.data) == (b.model, b.data):
            return other
    return None


def in_domain_cells(run: Run, runs: Iterable[Run]) -> set[Cell]:
    """Cells trained on and tested on; for a start model those that all trained runs share."""
    if run.trained_on:
        return run.trained_on & run.tested_on
    trained = [r.trained_on for r in runs if r.trained_on and base_of(r, [run]) is run]
    same = len({frozenset(cells) for cells in trained}) == 1
    return trained[0] & run.tested_on if same else set()


def difference(run: Run, base: Run | None, cells: set[Cell] | None = None) -> Difference | None:
    """Accuracy minus that of the base, in percent points, over the samples that both answered."""
    a, b = paired(run, base, cells)
    if not a:
        return None
    found = paired_difference(a, b, seed=0)
    return Difference(100 * found.mean, 100 * found.low, 100 * found.high)


def paired(
    run: Run, base: Run | None, cells: set[Cell] | None = None
) -> tuple[list[float], list[float]]:
    """1 for right and 0 for wrong of run and base on the samples both answered, in these cells."""
    theirs = base.outcomes if base else {}
    shared = [
        (float(outcome.correct), float(theirs[sample].correct))
        for sample, outcome in run.outcomes.items()
        if sample in theirs and (cells is None or outcome.cell in cells)
    ]
    return [a for a, _ in shared], [b for _, b in shared]


def _load(folder: RunFolder, config: Config | None, label: str, sweep: str | None) -> Run:
    state = folder.state()
    run = Run(folder, config, state, None, label)
    key = state.sweeps.get(sweep) if sweep else next(reversed(state.evaluations), None)
    if key not in state.evaluations:
        return run
    run = replace(run, evaluation_key=key)
    return replace(
        run,
        metrics=predictions.load_metrics(run.evaluation),
        outcomes=_outcomes(run.evaluation / "predictions.parquet"),
    )


def _outcomes(path: Path) -> dict[str, Outcome]:
    """Five columns of the file, since completions are nearly all of its size."""
    columns = ["sample", "modality", "task", "correct", "parse_status"]
    try:
        table = pq.read_table(path, columns=columns, filters=[("control", "==", "original")])
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise ValueError(
            f"{path}: not a predictions file ({error}); delete its folder and evaluate again"
        ) from error
    return {
        row["sample"]: Outcome(
            (row["modality"], row["task"]), row["correct"], row["parse_status"] == "parsed"
        )
        for row in table.to_pylist()
    }
