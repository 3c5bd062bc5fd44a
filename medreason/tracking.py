"""MLflow as the view of run folders: everything here is read from a folder and can be sent again.

A run is mirrored by a thread of its own while the worker works. A server that cannot be reached
costs nothing but the view: the folder says `synced: false`, and `action=report runs.sync=true`
sends it later.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from medreason.config import Config
from medreason.data.images import open_rgb
from medreason.evaluation import predictions
from medreason.runs.ledger import Folder

# Before MLflow is imported: a lost server must fail in seconds, and nothing may be sent home.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

PREFIX = "medreason."
"""Of our params and tags. Where one key clashes MLflow drops the whole batch without a word."""

_PUSH_SECONDS = 5.0
_BATCH = 1000  # metrics in one request, MLflow's limit
_FACETS = ("method", "model", "data", "modality", "task", "prompt", "reward", "adapter", "hardware")


class Mirror:
    """One run folder's run in MLflow."""

    def __init__(self, config: Config, folder: Folder) -> None:
        assert config.tracking.uri is not None
        self._config = config
        self._folder = folder
        self._client = _client(config)
        self._experiment = _experiment(self._client, config)
        self.run_id = self._open(_parent(self._client, self._experiment, config.sweep))
        self._sent_step = self._last_step()

    def _open(self, parent: str) -> str:
        """The run the folder remembers, where this server knows it; else a new one."""
        state = self._folder.state()
        if state.mlflow_run_id and self._knows(state.mlflow_run_id):
            self._client.update_run(state.mlflow_run_id, status="RUNNING")
            return state.mlflow_run_id
        tags = {
            "mlflow.parentRunId": parent,
            "mlflow.note.content": f"Run folder: {self._folder.path.resolve()}",
            f"{PREFIX}sweep": self._config.sweep,
            f"{PREFIX}train_key": state.train_key,
            **{f"{PREFIX}{facet}": self._config.choices.get(facet, "") for facet in _FACETS},
            f"{PREFIX}seed": str(self._config.seed),
        }
        run = self._client.create_run(self._experiment, run_name=self._folder.path.name, tags=tags)
        params = [Param(f"{PREFIX}{k}", str(v)) for k, v in _flat(asdict(self._config))]
        for start in range(0, len(params), 100):
            self._client.log_batch(run.info.run_id, params=params[start : start + 100])
        # Remembered last: a run without its params is not taken for whole.
        self._folder.update(mlflow_run_id=run.info.run_id)
        return run.info.run_id

    def _knows(self, run_id: str) -> bool:
        try:
            self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def _last_step(self) -> int:
        """The last training step this run already shows; a resumed run goes on behind it."""
        latest = self._client.get_run(self.run_id).data.metrics
        return int(latest.get("train/step", 0))

    def push(self) -> None:
        """Send the training metrics that are new."""
        rows = [row for row in self._folder.logged() if row["step"] > self._sent_step]
        if not rows:
            return
        now = int(1000 * self._folder.metrics.stat().st_mtime)
        metrics = [
            Metric(f"train/{name}", value, now, row["step"])
            for row in rows
            for name, value in row.items()
            if value is not None
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH])
        self._sent_step = rows[-1]["step"]

    def close(self, status: str) -> None:
        """Send all that is left of the folder and end the run."""
        self.push()
        state = self._folder.state()
        if self._folder.environment.exists():
            environment = json.loads(self._folder.environment.read_text())
            self._client.set_tag(self.run_id, f"{PREFIX}commit", str(environment["commit"]))
            self._client.log_artifact(self.run_id, str(self._folder.environment))
        for path in (self._folder.config, self._folder.data, self._folder.log):
            if path.exists():
                self._client.log_artifact(self.run_id, str(path))
        for key in state.evaluations:
            self._send_evaluation(key)
        self._client.set_terminated(self.run_id, status)
        self._folder.update(synced=True)

    def _send_evaluation(self, key: str) -> None:
        folder = self._folder.evaluation(key)
        figures = predictions.load_metrics(folder)
        metrics = dict(_test_metrics(figures))
        now = int(1000 * (folder / "metrics.json").stat().st_mtime)
        self._client.log_batch(
            self.run_id,
            metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
            tags=[RunTag(f"{PREFIX}evaluation_key", key)],
        )
        self._client.log_artifacts(self.run_id, str(folder), f"evaluations/{key}")
        rows = predictions.read(folder / "predictions.parquet")
        self._send_inputs(rows)
        self._send_table(rows, key)
        self._send_heat_map(figures)

    def _send_inputs(self, rows: list[predictions.Prediction]) -> None:
        name = self._config.choices.get("data", "data")
        parts = self._folder.state().train_parts
        inputs: list[tuple[str, int | None, str]] = [
            ("test", len({row.sample for row in rows}), "")
        ]
        if "data" in parts:
            inputs.append(("train", None, parts["data"]))
        self._client.log_inputs(
            self.run_id,
            [
                DatasetInput(
                    Dataset(
                        name=f"{name}-{context}",
                        digest=digest or f"{count}-rows",
                        source_type="local",
                        source=json.dumps(self._config.data),
                        profile=json.dumps({"rows": count}),
                    ),
                    [InputTag("mlflow.data.context", context)],
                )
                for context, count, digest in inputs
            ],
        )

    def _send_table(self, rows: list[predictions.Prediction], key: str) -> None:
        """The first predictions of each cell with their images, right and wrong as they come."""
        name = f"predictions-{key}.json"
        sent = {item.path for item in self._client.list_artifacts(self.run_id)}
        real = [row for row in rows if row.control == "none" and Path(row.image).exists()]
        shown = _spread(real, self._config.tracking.images)
        if not shown or name in sent:  # log_table would append to what is there
            return
        columns = ("modality", "task", "question", "completion", "answer", "gold", "correct")
        table: dict[str, Any] = {"image": [mlflow.Image(_thumbnail(row.image)) for row in shown]}
        for column in columns:
            table[column] = [getattr(row, column) for row in shown]
        table["options"] = [", ".join(row.options) for row in shown]
        self._client.log_table(self.run_id, table, name)

    def _send_heat_map(self, figures: dict[str, Any]) -> None:
        from medreason.report.heatmap import heat_map  # matplotlib, half a second

        accuracy = {cell: 100 * found["accuracy"] for cell, found in figures["cells"].items()}
        self._client.log_figure(
            self.run_id, heat_map(accuracy, title=self._folder.path.name), "accuracy.png"
        )


@contextmanager
def mirrored(config: Config, folder: Folder, *, active: bool) -> Iterator[None]:
    """Show the run in MLflow while the body runs; never let MLflow stop it."""
    mirror = _reach(config, folder) if active and config.tracking.uri else None
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
    finally:
        done.set()
        pusher.join(timeout=30)
        monitor.finish()
        try:
            mirror.close(status)
        except (MlflowException, OSError) as error:
            _say_unreached(config, error)


def _reach(config: Config, folder: Folder) -> Mirror | None:
    folder.update(synced=False)
    try:
        return Mirror(config, folder)
    except (MlflowException, OSError) as error:
        _say_unreached(config, error)
        return None


def _keep_pushing(mirror: Mirror, done: threading.Event) -> None:
    while not done.wait(_PUSH_SECONDS):
        try:
            mirror.push()
        except (MlflowException, OSError) as error:
            print(f"MLflow not reached, trying again: {error}", file=sys.stderr)  # noqa: T201


def _say_unreached(config: Config, error: Exception) -> None:
    print(  # noqa: T201
        f"MLflow at {config.tracking.uri} not reached ({error}); the run folder has everything, "
        "`python -m medreason action=report runs.sync=true` sends it",
        file=sys.stderr,
    )


def sync(config: Config, folder: Folder, run_config: Config) -> None:
    """Make MLflow show a finished folder, whatever it shows now.

    Raises:
        ValueError: the server cannot be reached.
    """
    run_config.tracking, run_config.outputs = config.tracking, config.outputs
    try:
        status = "FINISHED" if folder.state().state == "done" else "FAILED"
        Mirror(run_config, folder).close(status)
    except (MlflowException, OSError) as error:
        raise ValueError(f"tracking.uri={config.tracking.uri}: {error}") from error


def show_sweep(config: Config, files: list[Path]) -> None:
    """Put the report's files on the sweep's parent run."""
    client = _client(config)
    parent = _parent(client, _experiment(client, config), config.sweep)
    for path in files:
        client.log_artifact(parent, str(path))


def show_audit(config: Config, path: Path, digest: str) -> None:
    """Keep an audit as a run of its own with the file as its artifact, once for each digest."""
    client = _client(config)
    experiment = _experiment(client, config)
    name = config.choices.get("data", "data")
    tags = {f"{PREFIX}kind": "audit", f"{PREFIX}data": name, f"{PREFIX}digest": digest}
    found = client.search_runs(
        [experiment],
        " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items()),
        max_results=1,
    )
    run = found[0] if found else client.create_run(experiment, run_name=f"audit-{name}", tags=tags)
    client.log_artifact(run.info.run_id, str(path))
    client.set_terminated(run.info.run_id)


def _client(config: Config) -> MlflowClient:
    """A client; the database is made once, under a lock, before anything else opens it."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    assert config.tracking.uri is not None
    mlflow.set_tracking_uri(config.tracking.uri)
    config.folder.mkdir(parents=True, exist_ok=True)
    with (config.folder / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(config.tracking.uri)
        client.get_experiment("0")
    return client


def _experiment(client: MlflowClient, config: Config) -> str:
    name = config.tracking.experiment
    with (config.folder / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        local = str(config.tracking.uri).startswith("sqlite:")
        artifacts = (config.folder / "mlartifacts").resolve().as_uri() if local else None
        return client.create_experiment(name, artifact_location=artifacts)


def _parent(client: MlflowClient, experiment: str, sweep: str) -> str:
    """The run of the whole sweep; the oldest where two machines made one at once."""
    found = client.search_runs(
        [experiment],
        f"tags.`{PREFIX}kind` = 'sweep' and tags.`{PREFIX}sweep` = '{sweep}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    if found:
        return found[0].info.run_id
    tags = {f"{PREFIX}kind": "sweep", f"{PREFIX}sweep": sweep}
    run = client.create_run(experiment, run_name=sweep, tags=tags)
    client.set_terminated(run.info.run_id)  # a label for its children; it does no work of its own
    return run.info.run_id


def _test_metrics(figures: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """`test/accuracy`, `test/accuracy/<modality>/<task>`, and so on for every figure."""
    places = {"": figures["overall"], **{f"/{cell}": f for cell, f in figures["cells"].items()}}
    for place, found in places.items():
        for name, value in found.items():
            if value is not None:
                yield f"test/{name}{place}", float(value)
    yield "test/macro_accuracy", figures["macro_accuracy"]


def _spread(rows: list[predictions.Prediction], count: int) -> list[predictions.Prediction]:
    """Rows taken in turn from each cell, so that a small table shows all of them."""
    cells: dict[tuple[str, str], list[predictions.Prediction]] = {}
    for row in rows:
        cells.setdefault((row.modality, row.task), []).append(row)
    turns = [row for turn in _turns(list(cells.values())) for row in turn]
    return turns[:count]


def _turns(lists: list[list[Any]]) -> Iterator[list[Any]]:
    for i in range(max(map(len, lists), default=0)):
        yield [members[i] for members in lists if i < len(members)]


def _thumbnail(path: str) -> Image.Image:
    image = open_rgb(Path(path))
    image.thumbnail((160, 160))
    return image


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value
