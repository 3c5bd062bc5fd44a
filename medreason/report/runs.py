"""Run folders read for a report: metrics, answers, and the base run each is compared with."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from medreason import config as configuration
from medreason.config import METHODS, Config
from medreason.evaluation import predictions
from medreason.report.names import run_names
from medreason.runs.run_folder import RunFolder, State
from medreason.stats import Difference, mean_over_strata

Cell = str
"""`modality/task`"""

NO_ANSWERS = pd.DataFrame(
    columns=["run", "sample", "modality", "task", "cell", "correct", "parsed", "change"]
).astype({"parsed": bool})


@dataclass(frozen=True, eq=False)
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
    answers: pd.DataFrame = field(repr=False, default_factory=NO_ANSWERS.copy)
    """A row for each question under the original image, in the order of the file; `correct` is 1
    for right and 0 for wrong."""

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def method(self) -> str:
        return self.config.method.name if self.config else self.name.split("-")[0]

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

    @property
    def file_name(self) -> str:
        """The label in letters that any file system takes."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")

    @functools.cached_property
    def trained_on(self) -> set[Cell]:
        if self.config is None or self.config.method.algorithm == "none":
            return set()
        return {f"{m}/{t}" for m in self.config.modality.members for t in self.config.task.members}

    @functools.cached_property
    def correct(self) -> pd.Series:
        """1 for right and 0 for wrong, by the sample's id."""
        return self.answers.set_index("sample")["correct"]

    @functools.cached_property
    def tested_on(self) -> set[Cell]:
        return set(self.answers["cell"].unique())


def load(folders: Iterable[RunFolder], sweep: str | None = None) -> list[Run]:
    """The runs in the order of the tables: base, sft, grpo, rarl, then others by name.

    With the evaluation of the sweep, or the last one where no sweep is given.
    """
    folders = list(folders)
    configs = [configuration.read(f.config) if f.config.exists() else None for f in folders]
    labels = run_names(folders, configs)
    runs = [
        _load(folder, config, label, sweep)
        for folder, config, label in zip(folders, configs, labels, strict=True)
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


def changes(run: Run, base: Run | None) -> pd.Series:
    """For each of the run's answers: 1 where it is right and the base's to the same question wrong,
    -1 the other way round, 0 where both are right or wrong, NaN where the base has none."""
    # Six times faster than a merge, which indexes the base's samples anew every time.
    return run.answers["correct"] - (run.answers["sample"].map(base.correct) if base else math.nan)


def by_cell(run: Run, changes: pd.Series) -> dict[Cell, pd.Series]:
    """The changes in each cell that the base answered questions of."""
    groups = changes.dropna().groupby(run.answers["cell"])
    return {str(cell): values for cell, values in groups}


def difference(changes: pd.Series) -> Difference | None:
    """Accuracy minus that of the base run, in percent points, on the questions both answered."""
    known = changes.dropna()
    if known.empty:
        return None
    mean = mean_over_strata([known], seed=0)
    return Difference(100 * mean.mean, 100 * mean.low, 100 * mean.high)


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
        answers=_answers(run.evaluation),
    )


def _answers(evaluation: Path) -> pd.DataFrame:
    columns = ["sample", "modality", "task", "correct", "parse_status"]
    answers = predictions.read_frame([evaluation], columns)
    return answers.assign(
        cell=answers["modality"] + "/" + answers["task"],
        correct=answers["correct"].astype(float),
        parsed=answers.pop("parse_status") == "parsed",
    )
