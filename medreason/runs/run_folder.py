"""The run folder: what a run is, its state, its results. MLflow only shows what is in it."""

from __future__ import annotations

import builtins
import json
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from medreason.runs import lock
from medreason.runs.files import read_json, write_json


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
    sweeps: dict[str, list[str]] = field(default_factory=dict)
    """Sweep -> keys of the evaluations it asked for, in order; a run may belong to several sweeps,
    and a sweep may ask for several evaluations of a run."""
    evaluating: str = ""
    """Key of the evaluation that the process which holds the folder is to end with."""
    attempts: int = 0
    error: str | None = None
    mlflow_runs: dict[str, str] = field(default_factory=dict)
    """`sweep/evaluation key` -> the MLflow run that shows this folder in that sweep."""
    synced: list[str] = field(default_factory=list)
    """Keys of `mlflow_runs` whose MLflow run shows all that is in the folder."""
    trainable_parameters: int = 0
    parameters: int = 0
    """All of the model, an adapter's too."""
    first_update: dict[str, int] = field(default_factory=dict)
    """`step` of the first update that moved a tensor, and of the `trained` tensors how many
    `moved`, were `without_gradient`, or moved less than their precision (`below_precision`)."""
    chosen_step: int = 0
    """The optimizer step whose weights `model/` holds; 0 before there are any."""
    chosen_because: str = ""
    """Its validation beside that of the last step; empty without validations."""
    train_seconds: float = 0.0
    """Of all attempts, each up to its end or its last checkpoint."""
    evaluate_seconds: float = 0.0
    """Of all evaluations together."""
    seconds_of: dict[str, float] = field(default_factory=dict)
    """Key -> those of one evaluation."""
    evaluate_drafts: dict[str, float] = field(default_factory=dict)
    """`tokens_per_pass` and `draft_acceptance` of the newest evaluation's first process."""


_ADDED = {"chosen_step", "chosen_because", "evaluate_drafts", "seconds_of"}
"""Fields that folders of earlier commits lack, and do without."""


@dataclass(frozen=True)
class RunFolder:
    """A run folder: its files by name, its state."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

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
            known = {known.name for known in fields(State)}
            if others := ({*values} ^ known) - _ADDED:
                raise TypeError(f"unknown or missing: {', '.join(sorted(others))}")
            state = State(**values)
            _refuse_wrong_types(state)
            return state
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(
                f"{path}: cut off, or written by another version of medreason ({error}); move the "
                "folder away and re-run the command that made it, or evaluate its weights with "
                f"action=evaluate model.path={self.model}"
            ) from error

    def logged(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl before any that is none, as a last line that a kill cut off."""
        if not self.metrics.exists():
            return []
        rows: list[dict[str, Any]] = []
        for line in self.metrics.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                break
            rows.append(row)
        return rows

    def commit(self) -> str:
        """The one that environment.json names; empty where it names none."""
        try:
            return str(read_json(self.environment).get("commit") or "")
        except (FileNotFoundError, ValueError):
            return ""

    def update(self, **changes: Any) -> State:
        """Change fields of the state on disk, atomically and one process at a time.

        `sweeps` is added to those on disk: jobs of one or more sweeps may join a run at once.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with lock.briefly(self.path / ".state.lock"):
            state = self.state()
            if "sweeps" in changes:
                changes["sweeps"] = _merged(state.sweeps, changes["sweeps"])
            state = replace(state, **changes)
            write_json(self.path / "state.json", asdict(state))
        return state

    @contextmanager
    def locked(self, purpose: str = "") -> Iterator[int | None]:
        """Hold the run for this process; None where another holds it. See `lock.held`."""
        with lock.held(self.path, purpose) as descriptor:
            yield descriptor


@dataclass(frozen=True)
class EvaluationFolder:
    """One evaluation of a run: its files by name. It keeps the configuration it was asked for with,
    since the run's own may differ from it in prompt, questions and controls."""

    run: RunFolder
    key: str

    @property
    def path(self) -> Path:
        return self.run.evaluation(self.key)

    @property
    def name(self) -> str:
        """For people; both keys tell it from every other."""
        return f"{self.run.path.name}/{self.key}"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        """What the run trains and this evaluation tests on, with the audit's warnings."""
        return self.path / "data.json"

    @property
    def finished(self) -> bool:
        return self.key in self.run.state().evaluations

    def training_questions(self) -> dict[str, dict[str, int]]:
        """Modality -> task -> questions that the run trains on, of cells that have any."""
        cells: dict[str, dict[str, dict[str, int]]] = read_json(self.data)["cells"]
        trained = {
            modality: {task: counts["train"] for task, counts in tasks.items() if counts["train"]}
            for modality, tasks in cells.items()
        }
        return {modality: tasks for modality, tasks in trained.items() if tasks}


def _refuse_wrong_types(state: State) -> None:
    """Raise TypeError for a value that is none of its field."""
    for name, kind in get_type_hints(State).items():
        if not _is_of(value := getattr(state, name), kind):
            raise TypeError(f"{name}={repr(value)[:80]}")
    if state.state not in ("planned", "running", "done", "failed"):
        raise TypeError(f"state={state.state!r}")


def _is_of(value: object, kind: object) -> bool:
    """Whether a JSON value is of a type as `State` has them."""
    members = get_args(kind)
    match get_origin(kind):
        case types.UnionType:
            return any(_is_of(value, member) for member in members)
        case builtins.list:
            return isinstance(value, list) and all(_is_of(v, members[0]) for v in value)
        case builtins.dict:
            return isinstance(value, dict) and all(_is_of(v, members[1]) for v in value.values())
    if kind is float:
        return type(value) in (int, float)
    return kind is Any or type(value) is kind


def _merged(sweeps: dict[str, list[str]], joining: dict[str, list[str]]) -> dict[str, list[str]]:
    return sweeps | {
        sweep: list(dict.fromkeys([*sweeps.get(sweep, ()), *keys]))
        for sweep, keys in joining.items()
    }


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


def evaluations_by_sweep(runs: Path) -> dict[str, list[EvaluationFolder]]:
    """Sweep -> the evaluations it asked for, finished or not, in the order of the run folders.

    This is the only list of what belongs to a sweep. A folder whose state is damaged has none, nor
    has one beside the run it was copied from; `unreadable` and `copies` name them.
    """
    found: dict[str, list[EvaluationFolder]] = {}
    read = _readable(runs)
    copied = _copies(read)
    for folder, state in read:
        for sweep, keys in () if folder.path.name in copied else state.sweeps.items():
            found.setdefault(sweep, []).extend(EvaluationFolder(folder, key) for key in keys)
    return found


def copies(runs: Path) -> list[str]:
    """The folders under a name of their own beside the run they are copies of, or links to: a run
    is found by its train key, with which its name ends."""
    return _copies(_readable(runs))


def _copies(read: Sequence[tuple[RunFolder, State]]) -> list[str]:
    keys = {state.train_key for folder, state in read if _has_key(folder, state)}
    return [
        folder.path.name
        for folder, state in read
        if state.train_key in keys and not _has_key(folder, state)
    ]


def _has_key(folder: RunFolder, state: State) -> bool:
    return folder.path.name.endswith(f"-{state.train_key}")


def _readable(runs: Path) -> list[tuple[RunFolder, State]]:
    read = []
    for folder in run_folders(runs):
        with suppress(ValueError):
            read.append((folder, folder.state()))
    return read


def unreadable(runs: Path) -> list[str]:
    """Of each folder whose state is damaged or of another version, the error with the remedy."""
    errors = []
    for folder in run_folders(runs):
        try:
            folder.state()
        except ValueError as error:
            errors.append(str(error))
    return errors


def unsynced(evaluation: EvaluationFolder, sweep: str) -> bool:
    """Whether MLflow does not show all of the evaluation in this sweep yet."""
    return f"{sweep}/{evaluation.key}" not in evaluation.run.state().synced
