"""How fast finished runs were: seconds an update and an answer, for estimates of what is ahead."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import yaml

from medreason.config import CONTROLS, Config
from medreason.metrics import Metric
from medreason.runs.files import read_json
from medreason.runs.run_folder import RunFolder, run_folders

_RUNS = 5  # of each kind are read; more say nothing new
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Kind = tuple[str, str, str]
"""(method, model, hardware)"""
Answering = tuple[str, str, tuple[str, ...]]
"""(model, hardware, evaluation.answers): a letter takes a part of the time a reply takes."""


class Throughput:
    """Medians over the newest finished runs of a kind."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._training: dict[Kind, float] | None = None
        self._evaluation: dict[Answering, float] = {}

    def training(self, config: Config) -> float | None:
        """Seconds an update; None where no run of the kind is finished."""
        self._read()
        assert self._training is not None
        return self._training.get((config.method.name, config.model.name, config.hardware.name))

    def evaluation(self, config: Config) -> float | None:
        """Seconds an answer of the form asked for, of whatever method."""
        self._read()
        asked = config.model.name, config.hardware.name, tuple(sorted(config.evaluation.answers))
        return self._evaluation.get(asked)

    def _read(self) -> None:
        if self._training is not None:
            return
        training: dict[Kind, list[float]] = {}
        evaluation: dict[Answering, list[float]] = {}
        read: dict[tuple[str, str], int] = {}
        for folder in reversed(run_folders(self._runs)):
            kind = (folder.path.name.split("-")[0], folder.path.name.split("-")[1])
            if read.get(kind, 0) >= _RUNS or not (found := _measured(folder)):
                continue
            read[kind] = read.get(kind, 0) + 1
            names, update, forms, answer = found
            if update:
                training.setdefault(names, []).append(update)
            if answer and len(forms) == 1:  # the seconds are those of all evaluations together
                (form,) = forms
                evaluation.setdefault((names[1], names[2], form), []).append(answer)
        self._training = {kind: statistics.median(v) for kind, v in training.items()}
        self._evaluation = {kind: statistics.median(v) for kind, v in evaluation.items()}


def _measured(
    folder: RunFolder,
) -> tuple[Kind, float | None, set[tuple[str, ...]], float | None] | None:
    """Kind, seconds an update, forms of answers, seconds an answer; None of a damaged folder."""
    try:
        state = folder.state()
        if state.state != "done":
            return None
        config: dict[str, Any] = yaml.load(folder.config.read_text(), Loader=_LOADER)
        found = [read_json(folder.evaluation(key) / "metrics.json") for key in state.evaluations]
        figures = [metrics["overall"] for metrics in found]
        forms = {tuple(sorted(metrics.get("answers", ["generated"]))) for metrics in found}
        kind = (config["method"]["name"], config["model"]["name"], config["hardware"]["name"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    # A resumed run's seconds are those of its last attempt, its steps are all.
    logged = folder.logged() if state.train_seconds and state.attempts == 1 else []
    answers = sum(
        f[Metric.N] * (1 + sum(f.get(control) is not None for control in CONTROLS)) for f in figures
    )
    return (
        kind,
        state.train_seconds / logged[-1]["step"] if logged else None,
        forms,
        state.evaluate_seconds / answers if answers else None,
    )
