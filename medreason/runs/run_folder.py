"""The run folder: what a run is, its state, its results. MLflow only shows what is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from medreason.runs import lock
from medreason.runs.files import write_json


@dataclass(frozen=True)
class State:
    """`state.json`: what is done of a run."""

    state: str = "planned"
    """planned, running, done or failed."""
    train_key: str = ""
    train_parts: dict[str, Any] = field(default_factory=dict)
    """What the train key is the digest of."""
    trained: bool = False
    """`model/` holds the final weights; true of an evaluated base model, which has none there."""
    evaluations: list[str] = field(default_factory=list)
    """Keys of the finished evaluations."""
    sweeps: dict[str, str] = field(default_factory=dict)
    """Sweep -> key of the evaluation it shows; a run may belong to several."""
    attempts: int = 0
    error: str | None = None
    mlflow_runs: dict[str, str] = field(default_factory=dict)
    """`sweep/evaluation key` -> the MLflow run that shows this folder in that sweep."""
    synced: list[str] = field(default_factory=list)
    """Keys of `mlflow_runs` whose MLflow run shows all that is in the folder."""
    trainable_parameters: int = 0
    parameters: int = 0
    """All of the model, an adapter's too."""
    train_seconds: float = 0.0
    """Of the last attempt alone, where a run was resumed."""
    evaluate_seconds: float = 0.0


@dataclass(frozen=True)
class RunFolder:
    """A run folder: its files by name, its state."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    @property
    def audit(self) -> Path:
        return self.path / "audit.json"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    def evaluation(self, key: str) -> Path:
        return self.path / "evaluations" / key

    def state(self) -> State:
        """The state on disk.

        Raises:
            ValueError: state.json is damaged, or another version wrote it.
        """
        path = self.path / "state.json"
        if not path.exists():
            return State()
        try:
            values = json.loads(path.read_text())
            if others := {*values} ^ {known.name for known in fields(State)}:
                raise TypeError(f"unknown or missing: {', '.join(sorted(others))}")
            return State(**values)
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f"{path}: not a state that medreason wrote ({error}); "
                "delete the folder to run again"
            ) from error

    def logged(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, without a last line that a kill cut off."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def update(self, **changes: Any) -> State:
        """Change fields of the state on disk, atomically and one process at a time.

        `sweeps` is added to those on disk: jobs of two sweeps may join a finished run at once.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with lock.briefly(self.path / ".state.lock"):
            state = self.state()
            if "sweeps" in changes:
                changes["sweeps"] = state.sweeps | changes["sweeps"]
            state = replace(state, **changes)
            write_json(self.path / "state.json", asdict(state))
        return state

    @contextmanager
    def locked(self) -> Iterator[int | None]:
        """Hold the run for this process; None where another holds it. See `lock.held`."""
        with lock.held(self.path) as descriptor:
            yield descriptor


def find_run_folder(runs: Path, name: str, key: str) -> RunFolder:
    """The folder of a train key, whether it exists yet or not, and whatever name it has."""
    usual = runs / f"{name}-{key}"
    if usual.exists():  # looking through a thousand folders for each of a thousand runs is slow
        return RunFolder(usual)
    existing = sorted(runs.glob(f"*-{key}"))
    return RunFolder(existing[0] if existing else usual)


def run_folders(runs: Path) -> list[RunFolder]:
    """All run folders, in the order of their names."""
    return [RunFolder(path.parent) for path in sorted(runs.glob("*/state.json"))]


def sweeps_of(folder: RunFolder) -> dict[str, str]:
    """Sweep -> evaluation key; empty where the state is damaged, which the report names."""
    try:
        return folder.state().sweeps
    except ValueError:
        return {}


def unsynced(folder: RunFolder, sweep: str) -> bool:
    """Whether MLflow does not show all of the folder in this sweep yet."""
    state = folder.state()
    return f"{sweep}/{state.sweeps[sweep]}" not in state.synced
