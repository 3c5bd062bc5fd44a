"""Evaluations read for a report: metrics, which answers were right, what they compare with."""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medreason import config as configuration
from medreason import stats
from medreason.config import METHODS, Config, Statistics
from medreason.console import report_command
from medreason.evaluation import predictions
from medreason.evaluation.metrics import interval_metrics, likelihood_metrics
from medreason.metrics import Metric
from medreason.replies import STYLES
from medreason.report.names import file_name, run_names
from medreason.report.start_model import how_to_add_base
from medreason.runs import integrity, keys, status
from medreason.runs.run_folder import EvaluationFolder, RunFolder, State, evaluations_by_sweep
from medreason.stats import Difference, Estimate, Power

Cell = str
"""`modality/task`"""

NO_ANSWERS = pd.DataFrame(
    columns=[
        *("run", "sample", "question", "cluster", "modality", "task", "cell", "source", "correct"),
        *("parsed", "completion_tokens", "change"),
    ]
).astype({"parsed": bool})


@dataclass(frozen=True, eq=False)
class Run:
    """An evaluation of a run as read from disk: a row of the tables."""

    evaluation: EvaluationFolder
    config: Config | None
    """With which it was asked for; None where the run ended before that was written."""
    state: State
    """Of the run."""
    metrics: dict[str, Any] | None
    """metrics.json, with the mean and the intervals of `statistics`; None where it is not
    finished."""
    label: str
    statistics: Statistics = field(default_factory=Statistics)
    answers: pd.DataFrame = field(repr=False, default_factory=NO_ANSWERS.copy)
    """A row for each question under the original image, in the order of the file; `correct` is 1
    for right and 0 for wrong; `question` is the same for the same question, image and options in
    any evaluation, whatever id the sample has there; `cluster` is a number for each of what
    `statistics.clusters` counts, the same in any evaluation."""

    def __repr__(self) -> str:
        """`<Run grpo: 62.9 % of 240 right, outputs/runs/grpo-.../evaluation>`."""
        result = self.progress
        if self.metrics:
            result = (
                f"{100 * self.overall[Metric.ACCURACY]:.1f} % of {self.overall[Metric.N]:,} right"
            )
        return f"<Run {self.label}: {result}, {self.evaluation.path}>"

    @property
    def folder(self) -> RunFolder:
        return self.evaluation.run

    @property
    def name(self) -> str:
        """Of run folder and evaluation."""
        return self.evaluation.name

    @property
    def method(self) -> str:
        return self.config.method.name if self.config else self.folder.path.name.split("-")[0]

    @property
    def progress(self) -> str:
        """Done where this evaluation is, whatever another one came to; else `status.status`."""
        return "done" if self.metrics else status.status(self.evaluation, self.state)

    @property
    def overall(self) -> dict[str, Any]:
        """Metrics over all questions or, with `statistics.average=cells`, over all tested cells;
        empty where nothing is evaluated yet."""
        return self.metrics["overall"] if self.metrics else {}

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """Metrics of each tested cell, keyed `modality/task`."""
        return self.metrics["cells"] if self.metrics else {}

    @property
    def file_name(self) -> str:
        return file_name(self.label)

    @functools.cached_property
    def chosen_cells(self) -> set[Cell]:
        """Those that its modalities and tasks choose for training; none of a start model."""
        if self.config is None or self.config.method.name == "base":
            return set()
        return {f"{m}/{t}" for m in self.config.modality.members for t in self.config.task.members}

    @functools.cached_property
    def trained_on(self) -> set[Cell]:
        """The chosen cells that had training questions: a data set need not have them all."""
        if not self.config or self.config.method.algorithm == "none":  # released: not trained here
            return self.chosen_cells
        if not self.evaluation.data.exists():  # it has not begun
            return self.chosen_cells
        trained = self.evaluation.training_questions()
        return self.chosen_cells & {f"{m}/{t}" for m, tasks in trained.items() for t in tasks}

    @functools.cached_property
    def correct(self) -> pd.Series:
        """1 for right and 0 for wrong, by question."""
        return self.answers.set_index("question")["correct"]

    @functools.cached_property
    def tested_on(self) -> set[Cell]:
        return set(self.answers["cell"].unique())


def load(
    evaluations: Iterable[EvaluationFolder], statistics: Statistics | None = None
) -> list[Run]:
    """The rows in the order of the tables: base, sft, grpo, rarl, then others by name; of one
    method those with the prompt think first, from which others differ as in Med-R1's figures."""
    evaluations = list(evaluations)
    for evaluation in evaluations:
        if evaluation.finished:
            integrity.refuse_changed(evaluation.run, evaluation.key)
    configs = [_config(evaluation) for evaluation in evaluations]
    labels = run_names(evaluations, configs)
    runs = [
        _load(evaluation, config, label, statistics or Statistics())
        for evaluation, config, label in zip(evaluations, configs, labels, strict=True)
    ]
    return sorted(runs, key=_place)


def _place(run: Run) -> tuple[int, str, int, bool, str]:
    """A later arm minus an earlier one is what tables and maps show."""
    order = {name: place for place, name in enumerate(METHODS)}
    prompt = run.config.prompt if run.config else None
    style = STYLES.index(prompt.style) if prompt and prompt.style in STYLES else len(STYLES)
    is_other = prompt is None or prompt.name.removesuffix("_parity") != STYLES[0]
    return order.get(run.method, len(order)), run.method, style, is_other, run.label


def base_of(run: Run, runs: Iterable[Run]) -> Run | None:
    """The evaluation of the start model that a run is compared with: of the same weights, asked the
    same questions in the same way. The one that shares most of them and has fewest others; None
    where there is none."""
    bases = [base for base in _bases(run, runs) if not unlike(run, base)]
    return max(
        bases,
        key=lambda base: (len(shared_questions(run, base)), -len(base.answers)),
        default=None,
    )


def why_no_base(run: Run, runs: Sequence[Run]) -> str:
    """Why a run has no base to be compared with, where there are start models; else empty."""
    started = any(other.metrics and other.method == "base" for other in runs)
    if not (started and run.metrics) or run.method == "base" or base_of(run, runs):
        return ""
    reasons = [f"{unlike(run, base)}{_remedy(run, base)}" for base in _bases(run, runs)]
    return min(reasons, key=len, default="its start model is not in this sweep")


def _remedy(run: Run, base: Run) -> str:
    """The command that asks the start model as the run was asked, where one option does."""
    assert run.config
    difference = ground_difference(run.config, base.config)
    if difference is None or not re.fullmatch(r"\w+", str(difference[1])):
        return ""
    key, mine, _ = difference
    return f"; {add_base(run, f'{key}={mine}')}"


def report_with_base(runs: Sequence[Run]) -> str:
    """Where no start model is among the runs and another sweep in their folder evaluated it as the
    first of them, that sweep and the command of a report of both; else empty."""
    evaluated = [run for run in runs if run.metrics and run.config]
    if not evaluated or any(run.method == "base" for run in runs):
        return ""
    folder = evaluated[0].folder.path.parent
    sweeps = evaluations_by_sweep(folder)
    paths = {run.evaluation.path for run in evaluated}
    own = [name for name, members in sweeps.items() if paths <= {e.path for e in members}]
    asked = dict.fromkeys(run.config.sweep for run in evaluated if run.config)
    this = own[0] if own and not {*own} & {*asked} else ",".join(asked)
    for name, members in sweeps.items():
        bases = (e for e in members if e.finished and e.run.path.name.startswith("base-"))
        started = (_load(e, _config(e), "base", evaluated[0].statistics) for e in bases)
        if name not in (*own, *asked) and base_of(evaluated[0], started):
            return f"sweep={name} has it: `{report_command(f'{this},{name}', folder.parent)}`"
    return ""


def add_base(run: Run, *words: str) -> str:
    """See `how_to_add_base`; the start model of a trial is evaluated without another search."""
    if run.config is None:
        return ""
    recipe = any(word.lstrip("+").startswith("experiment=") for word in run.config.typed)
    single = ["hydra.mode=RUN"] if recipe and status.is_trial(run.folder) else []
    outputs = run.folder.path.parent.parent
    return how_to_add_base(run.config, *words, *single, outputs=outputs)


def _bases(run: Run, runs: Iterable[Run]) -> list[Run]:
    if run.config is None or run.method == "base":
        return []
    start = keys.start_parts(run.config)
    return [
        other
        for other in runs
        if other.metrics
        and other.config
        and other.method == "base"
        and keys.start_parts(other.config) == start
    ]


def unlike(a: Run, b: Run) -> str:
    """Why a difference of two evaluations would not be one of their weights alone: they share no
    question, or asked otherwise. Empty where it would."""
    different = unlike_ground(a.config, b.config)
    return different or ("" if len(shared_questions(a, b)) else "no question in common")


def unlike_ground(a: Config | None, b: Config | None) -> str:
    """`ground_difference` in words; empty where there is none."""
    difference = ground_difference(a, b)
    return "evaluated with another {}: {}, {}".format(*difference) if difference else ""


def ground_difference(a: Config | None, b: Config | None) -> tuple[str, object, object] | None:
    """The first setting of evaluation in which two differ, with both values; None where none.
    That a server answers is part of what a served model is."""
    assert a
    assert b
    served = a.model.is_served or b.model.is_served
    for key, mine, other in keys.differences(keys.evaluation_ground(a), keys.evaluation_ground(b)):
        if served and key == "evaluation.engine":
            continue
        if key.startswith("prompt."):
            key, mine, other = _prompt_difference(key, mine, other, (a, b))
        return key, mine, other
    return None


def _prompt_difference(
    key: str, mine: object, other: object, configs: Sequence[Config]
) -> tuple[str, str, str]:
    """The option or the switch by which two evaluation prompts differ, with both values; else the
    key and the texts."""
    a, b = (config.choices.get("prompt", "") for config in configs)
    if a and b and a != b:
        return "prompt", a, b
    a, b = (config.prompt.reasoning_prompting for config in configs)
    if a != b and key == "prompt.evaluate":
        return "prompt.reasoning_prompting", str(a).lower(), str(b).lower()
    return key, _shortened(mine), _shortened(other)


def _shortened(text: object) -> str:
    return repr(text if len(str(text)) <= 40 else f"{str(text)[:37]}...")


def name_questions(answers: pd.DataFrame, *by: str) -> pd.Series:
    """The same name for the same question in each group `by`: its digest, and which time it is
    asked, since a release may ask one twice."""
    repeat = answers.groupby(["question_digest", *by]).cumcount().astype(str)
    return answers["question_digest"] + "-" + repeat


def shared_questions(a: Run, b: Run) -> pd.Index:
    return a.correct.index.intersection(b.correct.index)


def mean_metric(run: Run, cells: Collection[Cell], metric: Metric) -> float | None:
    """Over questions or over cells; None where a cell has none."""
    members = [metrics for key, metrics in run.cells.items() if key in cells]
    values = [metrics.get(metric) for metrics in members]
    weights = [metrics[Metric.N] for metrics in members]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return statistics.fmean(known, None if run.statistics.average == "cells" else weights)


def in_domain_cells(run: Run, runs: Iterable[Run]) -> set[Cell]:
    """Cells trained on and tested on; for a start model those that all trained runs share."""
    if run.trained_on:
        return run.trained_on & run.tested_on
    trained = [r.trained_on for r in runs if r.trained_on and base_of(r, [run]) is run]
    same = len({frozenset(cells) for cells in trained}) == 1
    return trained[0] & run.tested_on if same else set()


def changes(run: Run, base: Run | None) -> pd.Series:
    """Of each of the run's answers 1 where it is right and the base's to the same question wrong,
    -1 the other way round, 0 where they are alike, NaN where the base has none."""
    # Six times faster than a merge, which indexes the base's questions anew every time.
    theirs = run.answers["question"].map(base.correct) if base else math.nan
    return run.answers["correct"] - theirs


def by_cell(run: Run, changes: pd.Series) -> dict[Cell, pd.Series]:
    """The changes in each cell that the base answered questions of."""
    groups = changes.dropna().groupby(run.answers["cell"])
    return {str(cell): values for cell, values in groups}


def difference(run: Run, changes: pd.Series) -> Difference | None:
    """Accuracy minus that of the base run, in percent points, on the questions both answered, of
    all or some of the run's answers."""
    known = changes.dropna()
    return None if known.empty else paired(run.answers.loc[known.index], known, run.statistics)


def paired(rows: pd.DataFrame, changes: pd.Series, statistics: Statistics) -> Difference:
    """The mean of changes, in percent points, by the clusters and cells of their rows."""
    cells = rows["cell"] if statistics.average == "cells" else None
    return stats.difference(changes, rows["cluster"], cells).in_points


def estimate(rows: pd.DataFrame, statistics: Statistics, column: str = "correct") -> Estimate:
    """The mean of a column of scores from 0 to 1, by the clusters and cells of the rows."""
    cells = rows["cell"] if statistics.average == "cells" else None
    return stats.accuracy(rows[column], rows["cluster"], cells)


def power(seen: Difference | Mapping[str, Any], statistics: Statistics) -> Power:
    """What the test of a difference can show; from metrics alone that of one with the discordance
    assumed, on the same questions."""
    if isinstance(seen, Difference):
        size, effect = (seen.n, seen.clusters), seen.design_effect
        discordance = seen.discordance
    else:
        size = seen[Metric.N], seen[Metric.CLUSTERS]
        discordance, effect = statistics.discordance, seen[Metric.DESIGN_EFFECT]
    wanted = statistics.difference
    return stats.power(*size, discordance=discordance, wanted=wanted, design_effect=effect)


def _config(evaluation: EvaluationFolder) -> Config | None:
    path = evaluation.config if evaluation.config.exists() else evaluation.run.config
    return configuration.read(path) if path.exists() else None


def _load(
    evaluation: EvaluationFolder, config: Config | None, label: str, statistics: Statistics
) -> Run:
    state = evaluation.run.state()
    if evaluation.key not in state.evaluations:
        return Run(evaluation, config, state, None, label, statistics)
    answers = _answers(evaluation.path, statistics)
    found = predictions.load_metrics(evaluation.path)
    metrics = _with_statistics(
        predictions.with_guessing(found, evaluation.path), answers, statistics
    )
    return Run(evaluation, config, state, metrics, label, statistics, answers)


def _with_statistics(
    metrics: dict[str, Any], answers: pd.DataFrame, statistics: Statistics
) -> dict[str, Any]:
    """metrics.json with the mean that `statistics` asks for as `overall`, and its intervals, which
    may have been computed with other clusters."""
    overall = metrics["over_cells" if statistics.average == "cells" else "overall"]
    cells = {
        cell: values | _intervals(answers[answers["cell"] == cell], statistics)
        for cell, values in metrics["cells"].items()
    }
    return metrics | {"overall": overall | _intervals(answers, statistics), "cells": cells}


def _intervals(answers: pd.DataFrame, statistics: Statistics) -> dict[str, Any]:
    metrics = interval_metrics(estimate(answers, statistics))
    scored = answers[answers["likely"].notna()]
    if not scored.empty:
        metrics |= likelihood_metrics(estimate(scored, statistics, "likely"))
    return metrics


def _answers(evaluation: Path, statistics: Statistics) -> pd.DataFrame:
    columns = [
        "sample",
        "modality",
        "task",
        "source",
        "correct",
        "parse_status",
        "likeliest_option",
        "gold",
    ]
    columns += ["completion_tokens", *predictions.CLUSTER_COLUMNS]
    answers = predictions.read_frame([evaluation], columns)
    clusters = predictions.clusters_of(answers, statistics.clusters)
    likely = (answers["likeliest_option"] == answers["gold"]).astype(float)
    return answers.assign(
        run=answers["run"] + "/" + answers["evaluation"],
        question=name_questions(answers),
        cluster=pd.util.hash_array(clusters.to_numpy(object)),  # numbers sort faster than texts
        cell=answers["modality"] + "/" + answers["task"],
        correct=answers["correct"].astype(float),
        likely=likely.where(answers["likeliest_option"].notna()),
        parsed=answers.pop("parse_status") == "parsed",
    ).drop(columns=["likeliest_option", "gold", "patient", "image_digest"])
