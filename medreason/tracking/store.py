"""The database or server behind MLflow, its experiment, and the run of each sweep."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from medreason.config import Tracking
from medreason.runs import lock

PREFIX = "medreason."
"""Of our params and tags. Where one key clashes MLflow drops the whole batch silently."""


class OtherVersionError(ValueError):
    """The database was made by another version of MLflow."""


def prepare(tracking: Tracking, outputs: Path, sweep: str) -> None:
    """Create database, experiment and the sweep's run, before several jobs do so at once.

    Raises:
        OtherVersionError: before anything is trained.
        MlflowException: the server cannot be reached.
    """
    client = connect(tracking, outputs)
    parent(client, experiment(client, tracking, outputs), outputs, sweep)


def connect(tracking: Tracking, outputs: Path) -> MlflowClient:
    """A client; a database is created under a lock, before anything else opens it.

    Raises:
        OtherVersionError: with what to do.
    """
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    assert tracking.uri is not None
    mlflow.set_tracking_uri(tracking.uri)
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        with _one_at_a_time(outputs):
            client = MlflowClient(tracking.uri)
            client.get_experiment("0")
    except MlflowException as error:
        if "database schema" not in str(error) and "Can't locate revision" not in str(error):
            raise
        raise OtherVersionError(
            f"tracking.uri={tracking.uri}: a database of another version of MLflow than the "
            f"installed {mlflow.__version__}. Copy it, then `mlflow db upgrade {tracking.uri}`; or "
            "set tracking.uri to a new file and send all runs with "
            "`python -m medreason action=report tracking.resync=true`"
        ) from error
    return client


@contextmanager
def writing(tracking: Tracking, outputs: Path) -> Iterator[None]:
    """Let one job at a time write to a SQLite file; a server orders its writers itself.

    MLflow waits 20 s for another writer and then loses the batch; this waits without a limit.
    """
    if not str(tracking.uri).startswith("sqlite:"):
        yield
        return
    with lock.briefly(outputs / ".mlflow-writer.lock"):
        yield


def experiment(client: MlflowClient, tracking: Tracking, outputs: Path) -> str:
    """The id of the experiment, which is created where there is none."""
    with _one_at_a_time(outputs):
        if existing := client.get_experiment_by_name(tracking.experiment):
            return existing.experiment_id
        local = str(tracking.uri).startswith("sqlite:")
        artifacts = (outputs / "mlartifacts").resolve().as_uri() if local else None
        return client.create_experiment(tracking.experiment, artifact_location=artifacts)


def parent(client: MlflowClient, experiment: str, outputs: Path, sweep: str) -> str:
    """The id of the run of the whole sweep; the oldest where two machines created one at once."""
    with _one_at_a_time(outputs):
        runs = client.search_runs(
            [experiment],
            f"tags.`{PREFIX}kind` = 'sweep' and tags.`{PREFIX}sweep` = '{sweep}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        if runs:
            return runs[0].info.run_id
        tags = {f"{PREFIX}kind": "sweep", f"{PREFIX}sweep": sweep}
        run = client.create_run(experiment, run_name=sweep, tags=tags)
        # It only groups its children and has nothing of its own to do.
        client.set_terminated(run.info.run_id)
        return run.info.run_id


def show_sweep(tracking: Tracking, outputs: Path, sweep: str, files: list[Path]) -> None:
    """Log the report's files as artifacts of the sweep's run."""
    client = connect(tracking, outputs)
    run_id = parent(client, experiment(client, tracking, outputs), outputs, sweep)
    for path in files:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), path.name)
        else:
            client.log_artifact(run_id, str(path))


def show_audit(tracking: Tracking, outputs: Path, name: str, path: Path, digest: str) -> None:
    """Log an audit as a run of its own with the file as its artifact, once for each digest."""
    client = connect(tracking, outputs)
    experiment_id = experiment(client, tracking, outputs)
    tags = {f"{PREFIX}kind": "audit", f"{PREFIX}data": name, f"{PREFIX}digest": digest}
    runs = client.search_runs(
        [experiment_id],
        " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items()),
        max_results=1,
    )
    run_name = f"audit-{name}"
    run = runs[0] if runs else client.create_run(experiment_id, run_name=run_name, tags=tags)
    client.log_artifact(run.info.run_id, str(path))
    client.set_terminated(run.info.run_id)


def _one_at_a_time(outputs: Path) -> AbstractContextManager[None]:
    return lock.briefly(outputs / ".mlflow.lock")
