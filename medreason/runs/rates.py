"""How fast finished runs were: seconds an update and an answer, for estimates of what is ahead."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import yaml

from medreason.config import CONTROLS, Config
from medreason.runs import ledger
from medreason.runs.ledger import Folder

_RUNS = 5  # of each kind are read; more say nothing new
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Kind = tuple[str, str, str]
"""(method, model, hardware)"""


class Rates:
    """Medians over the newest finished runs of a kind."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._training: dict[Kind, float] | None = None
        self._evaluation: dict[tuple[str, str], float] = {}

    def training(self, config: Config) -> float | None:
        """Seconds an update; None where no run of the kind is finished."""
        self._read()
        assert self._training is not None
        return self._training.get((config.method.name, config.model.name, config.hardware.name))

    def evaluation(self, config: Config) -> float | None:
        """Seconds an answer, of whatever method."""
        self._read()
        return self._evaluation.get((config.model.name, config.hardware.name))

    def _read(self) -> None:
        if self._training is not None:
            return
        training: dict[Kind, list[float]] = {}
        evaluation: dict[tuple[str, str], list[float]] = {}
        read: dict[tuple[str, str], int] = {}
        for folder in reversed(ledger.folders(self._runs)):
            kind = (folder.path.name.split("-")[0], folder.path.name.split("-")[1])
            if read.get(kind, 0) >= _RUNS or not (found := _measured(folder)):
                continue
            read[kind] = read.get(kind, 0) + 1
            names, update, answer = found
            if update:
                training.setdefault(names, []).append(update)
            if answer:
                evaluation.setdefault(names[1:], []).append(answer)
        self._training = {kind: statistics.median(v) for kind, v in training.items()}
        self._evaluation = {kind: statistics.median(v) for kind, v in evaluation.items()}


def _measured(folder: Folder) -> tuple[Kind, float | None, float | None] | None:
    """The kind of a finished run, its seconds an update and an answer; None of a damaged one."""
    try:
        state = folder.state()
        if state.state != "done":
            return None
        config: dict[str, Any] = yaml.load(folder.config.read_text(), Loader=_LOADER)
        figures = [
            ledger.read_json(folder.evaluation(key) / "metrics.json")["overall"]
            for key in state.evaluations
        ]
        kind = (config["method"]["name"], config["model"]["name"], config["hardware"]["name"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    # A resumed run's seconds are those of its last attempt, its steps are all.
    logged = folder.logged() if state.train_seconds and state.attempts == 1 else []
    answers = sum(
        f["n"] * (1 + sum(f.get(control) is not None for control in CONTROLS)) for f in figures
    )
    return (
        kind,
        state.train_seconds / logged[-1]["step"] if logged else None,
        state.evaluate_seconds / answers if answers else None,
    )
