"""One evaluation of a run as one run of MLflow, in one sweep.

An evaluation that belongs to two sweeps, as that of a base model does, is a run in each: a child of
that sweep's run. Two evaluations of one training are two runs with the same curves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from medreason import config as configuration
from medreason.config import Config, Tracking
from medreason.console import notice, report_command
from medreason.report.names import run_names
from medreason.runs.run_folder import EvaluationFolder, RunFolder, unsynced
from medreason.tracking import evaluation, store
from medreason.tracking.store import PREFIX
from medreason.training import selection

_PUSH_SECONDS = 5.0
_CURVES = "curves/"
"""Before what changes with the training step. MLflow shows sections of charts by the alphabet, and
this comes before those of `test/`."""
_BATCH = 1000  # metrics in one request, MLflow's limit
_FACETS = ("method", "model", "data", "modality", "task", "prompt", "reward", "adapter", "hardware")
_IDENTIFYING = ("sweep", "train_key", "evaluation_key")
_STATUS = {"done": "FINISHED", "failed": "FAILED"}


class Mirror:
    """The MLflow run of an evaluation in the sweep that its configuration names."""

    def __init__(self, config: Config, evaluation: EvaluationFolder) -> None:
        self._config = config
        self._evaluation = evaluation
        self._folder = evaluation.run
        self._client = store.connect(config.tracking, config.folder)
        self._experiment = store.experiment(self._client, config.tracking, config.folder)
        self._slot = f"{config.sweep}/{evaluation.key}"
        with self._writing():
            self.run_id = self._open()
        self._sent_step = self._last_step()

    def _open(self) -> str:
        """The run recorded in the folder or found by its tags on this server; else a new one."""
        state = self._folder.state()
        recorded = state.mlflow_runs.get(self._slot)
        sweep = self._config.folder, self._config.sweep
        parent = store.parent(self._client, self._experiment, *sweep)
        where = f"Run folder: {self._folder.path.resolve()}"
        if recorded and store.active_run(self._client, recorded):
            self._client.update_run(recorded, status="RUNNING")
            self._client.set_tag(recorded, "mlflow.note.content", where)  # may have been moved
            self._client.set_tag(recorded, "mlflow.parentRunId", parent)  # may have been deleted
            return recorded
        tags = {
            "mlflow.parentRunId": parent,
            "mlflow.note.content": where,
            f"{PREFIX}kind": "run",
            f"{PREFIX}sweep": self._config.sweep,
            f"{PREFIX}train_key": state.train_key,
            f"{PREFIX}evaluation_key": self._evaluation.key,
            **{f"{PREFIX}{facet}": _facet(self._config, facet) for facet in _FACETS},
            f"{PREFIX}seed": str(self._config.seed),
        }
        run_id = self._find_orphan(tags) or self._create(tags)
        params = [
            Param(store.safe_name(f"{PREFIX}{key}"), str(value))
            for key, value in _flat(asdict(self._config))
        ]
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100])
        # Recorded last: a run that a kill left without its params is completed next time.
        runs = self._folder.state().mlflow_runs
        self._folder.update(mlflow_runs=runs | {self._slot: run_id})
        return run_id

    def _create(self, tags: dict[str, str]) -> str:
        name = self._evaluation.name
        return self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id

    def _find_orphan(self, tags: dict[str, str]) -> str | None:
        """A run whose process was killed after creating it and before recording it."""
        identifying = {f"{PREFIX}{n}": tags[f"{PREFIX}{n}"] for n in _IDENTIFYING}
        running = "attributes.status = 'RUNNING'"
        runs = store.find_runs(self._client, self._experiment, identifying, running)
        return runs[0].info.run_id if runs else None

    def _last_step(self) -> int:
        """The last training step that this run shows already; a resumed run continues after it."""
        latest = self._client.get_run(self.run_id).data.metrics
        return int(latest.get(f"{_CURVES}step", 0))

    def _writing(self) -> AbstractContextManager[None]:
        return store.writing(self._config.tracking, self._config.folder)

    def push(self) -> None:
        """Send the training metrics of steps that were not sent yet."""
        with self._writing():
            self._push()

    def _push(self) -> None:
        rows = [row for row in self._folder.logged() if row["step"] > self._sent_step]
        if not rows:
            return
        now = int(1000 * self._folder.metrics.stat().st_mtime)
        metrics = [
            Metric(store.safe_name(f"{_CURVES}{name}"), value, now, row["step"])
            for row in rows
            for name, value in row.items()
            if value is not None
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH])
        self._sent_step = rows[-1]["step"]

    def close(self, status: str) -> None:
        """Send the rest of the folder and end the run."""
        with self._writing():
            self._push()
            self._close(status)

    def _close(self, status: str) -> None:
        state = self._folder.state()
        if self._folder.environment.exists():
            self._client.set_tag(self.run_id, f"{PREFIX}commit", self._folder.commit())
            self._client.log_artifact(self.run_id, str(self._folder.environment))
        if state.trainable_parameters:
            count = str(state.trainable_parameters)
            self._client.log_param(self.run_id, f"{PREFIX}trainable_parameters", count)
        if state.chosen_because:
            self._client.set_tag(self.run_id, f"{PREFIX}chosen_step", str(state.chosen_step))
            self._client.set_tag(self.run_id, f"{PREFIX}chosen_because", state.chosen_because)
        if (score := selection.kept_score(self._folder)) is not None:
            self._client.log_metric(self.run_id, selection.SCORE, score)
        for name, count in state.first_update.items():
            self._client.log_metric(self.run_id, f"first_update/{name}", count)
        for path in (self._folder.config, self._folder.log):
            if path.exists():
                self._client.log_artifact(self.run_id, str(path))
        if self._evaluation.key in state.evaluations:
            evaluation.send(self._client, self.run_id, self._config, self._evaluation)
        self._client.set_terminated(self.run_id, status)
        synced = [slot for slot in self._folder.state().synced if slot != self._slot]
        self._folder.update(synced=[*synced, self._slot])


def _facet(config: Config, name: str) -> str:
    """The option of a config group, "none" where it decides nothing; of a served model its name.

    A base model stands for every cell, not for that of the job it ran in; only GRPO has a reward.
    """
    algorithm = config.method.algorithm
    if name in ("modality", "task"):
        return "none" if algorithm == "none" else getattr(config, name).name
    if name == "reward" and algorithm != "grpo":
        return "none"
    if name == "model" and config.model.is_served:
        return config.model.label
    return config.choices.get(name, "")


@contextmanager
def mirrored(config: Config, folder: RunFolder, key: str, *, active: bool) -> Iterator[None]:
    """Show the run in MLflow while the body runs; an error of MLflow never stops it."""
    tracked = active and config.tracking.uri
    mirror = _open_mirror(config, EvaluationFolder(folder, key)) if tracked else None
    if mirror is None:
        yield
        return
    done = threading.Event()
    pusher = threading.Thread(target=_keep_pushing, args=(mirror, done), daemon=True)
    pusher.start()
    monitor = SystemMetricsMonitor(mirror.run_id, resume_logging=True)
    monitor.start()
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except SystemExit:  # SIGTERM: Ctrl-C in the launcher, or Slurm
        status = "KILLED"
        raise
    finally:
        done.set()
        pusher.join(timeout=30)
        monitor.finish()
        try:
            mirror.close(status)
        except (MlflowException, OSError) as error:
            _warn_unreached(config.tracking, config.folder, error)


def catch_up(
    tracking: Tracking,
    outputs: Path,
    sweep: str,
    evaluations: Sequence[EvaluationFolder],
    *,
    all_: bool = False,
) -> bool:
    """Send to MLflow what it does not show yet of a sweep's evaluations, or `all_` of them.

    Runs that another process works on are left to it. False where MLflow cannot be reached.
    """
    for each in evaluations:
        if not each.config.exists() or not (all_ or unsynced(each, sweep)):
            continue
        with each.run.locked("sends it to MLflow") as descriptor:
            if descriptor is None:
                continue
            try:
                config = configuration.read(each.config)
                config = replace(config, tracking=tracking, outputs=str(outputs), sweep=sweep)
                state = "done" if each.finished else each.run.state().state
                Mirror(config, each).close(_STATUS.get(state, "KILLED"))
            except store.UNREACHED as error:
                _warn_unreached(tracking, outputs, error)
                return False
            except ValueError as error:  # a damaged folder: the others are sent
                notice(error)
    return True


def name_runs(
    tracking: Tracking, outputs: Path, sweep: str, evaluations: Sequence[EvaluationFolder]
) -> None:
    """Name a sweep's runs as the rows of its tables, which takes all of them: until then each has
    the name of its folder."""
    known = [(each, config) for each in evaluations if (config := _config(each))]
    names = run_names([each for each, _ in known], [config for _, config in known])
    try:
        client = store.connect(tracking, outputs)
        with store.writing(tracking, outputs):
            for (each, _), name in zip(known, names, strict=True):
                run_id = each.run.state().mlflow_runs.get(f"{sweep}/{each.key}")
                run = store.active_run(client, run_id) if run_id else None
                if run and run.info.run_name != name:
                    client.update_run(run.info.run_id, name=name)
    except store.UNREACHED as error:
        _warn_unreached(tracking, outputs, error)


def _config(evaluation: EvaluationFolder) -> Config | None:
    try:
        return configuration.read(evaluation.config)
    except (OSError, ValueError):  # not begun, or damaged, which the tables say
        return None


def _open_mirror(config: Config, evaluation: EvaluationFolder) -> Mirror | None:
    slot = f"{config.sweep}/{evaluation.key}"
    synced = evaluation.run.state().synced
    evaluation.run.update(synced=[other for other in synced if other != slot])
    try:
        return Mirror(config, evaluation)
    except store.UNREACHED as error:
        _warn_unreached(config.tracking, config.folder, error)
        return None


def _keep_pushing(mirror: Mirror, done: threading.Event) -> None:
    while not done.wait(_PUSH_SECONDS):
        try:
            mirror.push()
        except (MlflowException, OSError) as error:
            notice(f"MLflow not reached, trying again: {error}")


def _warn_unreached(tracking: Tracking, outputs: Path, error: Exception) -> None:
    resync = report_command("NAME", outputs, "tracking.resync=true")
    kept = f"the run folders have everything; `{resync}` sends those of a sweep"
    store.warn_unreached(tracking, error, kept)


def _flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every leaf of nested mappings."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value
