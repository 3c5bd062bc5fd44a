"""Throughput of finished runs, seconds an update and an answer, to estimate what is ahead."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from medreason import config as configuration
from medreason.config import Config
from medreason.runs.files import read_json, read_parquet
from medreason.runs.run_folder import RunFolder, run_folders

_RUNS = 5  # of each method and model are read; more change nothing

TrainingKind = tuple[str, str, str]
"""(method, model, hardware)"""
EvaluationKind = tuple[str, str, tuple[str, ...]]
"""(model, hardware, evaluation.answers): option likelihood takes a part of a completion's time."""


class Throughput:
    """Medians over the newest finished runs of a kind."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._training: dict[TrainingKind, float] | None = None
        self._evaluation: dict[EvaluationKind, float] = {}

    def training(self, config: Config) -> float | None:
        """Seconds an update; None where no run of the kind is finished."""
        self._read()
        assert self._training is not None
        return self._training.get(_training_kind(config))

    def evaluation(self, config: Config) -> float | None:
        """Seconds an answer in the form of `evaluation.answers`, whatever the method."""
        self._read()
        return self._evaluation.get(_evaluation_kind(config, config.evaluation.answers))

    def validation(self, config: Config) -> float | None:
        """Seconds an answer of a validation, which is generated."""
        self._read()
        return self._evaluation.get(_evaluation_kind(config, ["generated"]))

    def _read(self) -> None:
        if self._training is not None:
            return
        training: dict[TrainingKind, list[float]] = defaultdict(list)
        evaluation: dict[EvaluationKind, list[float]] = defaultdict(list)
        runs_read: Counter[tuple[str, ...]] = Counter()
        for folder in reversed(run_folders(self._runs)):
            kind = tuple(folder.path.name.split("-")[:2])  # method and model, without opening it
            if runs_read[kind] >= _RUNS or not (measured := _measure(folder)):
                continue
            runs_read[kind] += 1
            if measured.update_seconds:
                training[_training_kind(measured.config)].append(measured.update_seconds)
            # The seconds are those of all evaluations together, so of one form or of none.
            if measured.answer_seconds and len(measured.forms) == 1:
                evaluation_kind = _evaluation_kind(measured.config, measured.forms[0])
                evaluation[evaluation_kind].append(measured.answer_seconds)
        self._training = {kind: statistics.median(s) for kind, s in training.items()}
        self._evaluation = {kind: statistics.median(s) for kind, s in evaluation.items()}


@dataclass(frozen=True)
class _Measured:
    """The throughput of one run; None for what it did not measure."""

    config: Config
    update_seconds: float | None
    answer_seconds: float | None
    forms: list[list[str]]
    """`evaluation.answers` of its evaluations, each once."""


def _measure(folder: RunFolder) -> _Measured | None:
    """None of a run that is not finished, or whose folder is damaged."""
    try:
        state = folder.state()
        if state.state != "done":
            return None
        config = configuration.read(folder.config)
        evaluations = [folder.evaluation(key) for key in state.evaluations]
        metrics = [read_json(evaluation / "metrics.json") for evaluation in evaluations]
        answers = sum(_count_answers(evaluation) for evaluation in evaluations)
        forms = [list(form) for form in {tuple(sorted(m["answers"])) for m in metrics}]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A resumed run's seconds are those of several starts.
    logged = folder.logged() if state.train_seconds and state.attempts == 1 else []
    updating = state.train_seconds - sum(row.get("validation/seconds") or 0.0 for row in logged)
    return _Measured(
        config,
        updating / logged[-1]["step"] if logged else None,
        state.evaluate_seconds / answers if answers else None,
        forms,
    )


def _count_answers(evaluation: Path) -> int:
    """To the questions and to those of the controls, of which turned options are several each."""
    return read_parquet(evaluation / "predictions.parquet", ["control"]).num_rows


def _training_kind(config: Config) -> TrainingKind:
    return config.method.name, config.model.name, config.hardware.name


def _evaluation_kind(config: Config, answers: list[str]) -> EvaluationKind:
    return config.model.label, config.hardware.name, tuple(sorted(answers))
