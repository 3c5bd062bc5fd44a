"""The database or server behind MLflow, its experiment, and the run of each sweep."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import mlflow
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import make_url

from medreason.config import Tracking
from medreason.console import first_line, notice, report_command
from medreason.runs import lock
from medreason.runs.files import atomic

PREFIX = "medreason."
"""Of our params and tags. Where one key clashes MLflow drops the whole batch silently."""
_LONGEST_NAME = 250  # MLflow's limit for params and metrics


class UnusableStoreError(ValueError):
    """Another version of MLflow made the database, its pages deleted the experiment, or the
    database is read-only."""


UNREACHED = (MlflowException, OSError, UnusableStoreError)
"""Errors that leave all that was made on disk, and MLflow without it."""


def warn_unreached(tracking: Tracking, error: Exception, kept: str) -> None:
    """Say in one line that MLflow lacks something, why, and where it is."""
    reason = first_line(error)
    unusable = isinstance(error, UnusableStoreError)
    notice(f"{reason if unusable else f'MLflow at {tracking.uri} not reached ({reason})'}; {kept}")


def safe_name(name: str) -> str:
    """A name of a param or metric as MLflow takes it: letters, digits and `_-. :/`, at most 250.
    A changed name ends in a digest, so different names stay different."""
    plain = re.sub(r"[^\w\-. :/]", "_", name)
    if plain == name and len(name) <= _LONGEST_NAME:
        return name
    return f"{plain[: _LONGEST_NAME - 7]}.{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def find_runs(
    client: MlflowClient, experiment: str, tags: Mapping[str, str], *more: str
) -> list[Run]:
    """The runs with these tags that are not deleted, the oldest first. Values may hold any letter;
    MLflow's filters take no quotes. `more` are clauses of such a filter."""
    plain = {key: value for key, value in tags.items() if not {*"'\"\\\\"} & {*value}}
    clauses = [*(f"tags.`{key}` = '{value}'" for key, value in plain.items()), *more]
    runs = []
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            " and ".join(clauses),
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += [run for run in page if tags.items() <= run.data.tags.items()]
        if not (token := page.token):
            return runs


def prepare(tracking: Tracking, outputs: Path, sweep: str) -> None:
    """Create database, experiment and the sweep's run, before several jobs do so at once.

    Raises:
        UnusableStoreError: before anything is trained.
        MlflowException: the server cannot be reached.
    """
    client = connect(tracking, outputs)
    parent(client, experiment(client, tracking, outputs), outputs, sweep)


def connect(tracking: Tracking, outputs: Path) -> MlflowClient:
    """A client; a database is created under a lock, before anything else opens it.

    Raises:
        UnusableStoreError: with what to do.
    """
    uri = _uri(tracking, outputs)
    if is_read_only(uri):
        raise UnusableStoreError(
            f"tracking.uri={tracking.uri} is read-only; make it and its folder writable, set "
            "tracking.uri to a new file, or tracking=none"
        )
    outputs.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(outputs):
        if (missing := _missing_database(uri)) is not None:
            _make(missing, outputs)
        _refuse_other_version(uri, outputs)
        _follow_move(uri, outputs)
        return _client(uri)


def connect_to_read(tracking: Tracking, outputs: Path) -> MlflowClient:
    """A client that writes nothing, neither a lock beside the database.

    Raises:
        UnusableStoreError: with what to do.
    """
    uri = _uri(tracking, outputs)
    _refuse_other_version(uri, outputs)
    return _client(uri)


def _uri(tracking: Tracking, outputs: Path) -> str:
    assert tracking.uri is not None
    return escaped(tracking.uri, outputs)


def _client(uri: str) -> MlflowClient:
    _quieten_migrations()
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    client.get_experiment("0")
    return client


def _quieten_migrations() -> None:
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)


def escaped(uri: str, outputs: Path) -> str:
    """The URI of the database in `outputs` with their path as URIs have it: `?` would begin a
    query, and `%20` be read as a space. Others are as they were typed."""
    if uri != f"sqlite:///{outputs}/mlflow.db" or not re.search(r"[%?]", uri):
        return uri
    # With its driver: of `sqlite:///` MLflow makes a folder of the escaped name, too.
    return f"sqlite+pysqlite:///{quote(str(outputs), safe='/ ')}/mlflow.db"


def _refuse_other_version(uri: str, outputs: Path) -> None:
    """MLflow itself changes a database of an older version, which that version then cannot read."""
    database = _database(uri)
    if database is None:
        return
    with closing(sqlite3.connect(database)) as connection:
        try:
            rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.DatabaseError:  # no tables yet, or no database: MLflow says so
            return
    migrations = ScriptDirectory(str(Path(mlflow.__file__).parent / "store/db_migrations"))
    revisions = {revision.revision for revision in migrations.walk_revisions()}
    if not rows or {row[0] for row in rows} == {*migrations.get_heads()}:
        return
    older = {row[0] for row in rows} <= revisions
    remedy = (
        f"Copy it, then `mlflow db upgrade {uri}`, after which older versions cannot read it"
        if older
        else "Install the newer MLflow"
    )
    raise UnusableStoreError(
        f"tracking.uri={uri}: a database of {'an older' if older else 'a newer'} MLflow than the "
        f"installed {mlflow.__version__}. {remedy}; or set tracking.uri to a new file and send "
        f"each sweep with `{report_command('NAME', outputs, 'tracking.resync=true')}`"
    )


def _follow_move(uri: str, outputs: Path) -> None:
    """Lead a database that lies in `outputs` to the artifacts beside it: MLflow stores their place
    as an absolute path, which after a move or a copy is that of the old folder."""
    database = _database(uri)
    if database is None or database.resolve().parent != outputs.resolve():
        return
    new = _artifacts(outputs)
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?"
        for (old,) in connection.execute(query, ("file:%/mlartifacts",)).fetchall():
            if old != new:
                columns = ("experiments", "artifact_location"), ("runs", "artifact_uri")
                for table, column in columns:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )


def _database(uri: str) -> Path | None:
    """The file of a SQLite database that exists."""
    database = make_url(uri).database if uri.startswith("sqlite") else None
    return Path(database) if database and Path(database).is_file() else None


def is_read_only(uri: str) -> bool:
    """Whether this process may not write a database that is there: that of another user, or on a
    disk that is mounted so. SQLite writes a journal beside it."""
    database = _database(uri)
    written = (database, database.parent) if database else ()
    return not all(os.access(path, os.W_OK) for path in written)


def _missing_database(uri: str) -> Path | None:
    """The file of a SQLite database that does not exist, in a folder that does."""
    database = make_url(uri).database if uri.startswith("sqlite") else None
    path = Path(database) if database and database != ":memory:" else None
    absent = path is not None and path.parent.is_dir() and not os.path.lexists(path)
    return path if absent else None


def _make(database: Path, outputs: Path) -> None:
    """Make a database whole or not at all: where a kill leaves MLflow's migrations half done, it
    takes the file for that of an older version, and refuses it from then on."""
    with tempfile.TemporaryDirectory() as folder, atomic(database) as part:
        made = Path(folder) / database.name
        _quieten_migrations()
        SqlAlchemyStore(f"sqlite:///{made}", _artifacts(outputs)).engine.dispose()
        shutil.copyfile(made, part)


def _artifacts(outputs: Path) -> str:
    return (outputs / "mlartifacts").resolve().as_uri()


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
    """The id of the experiment, which is created where there is none.

    Raises:
        UnusableStoreError: it was deleted in MLflow, which keeps its name.
    """
    if existing := _existing(client, tracking):
        return existing
    with _one_at_a_time(outputs):
        local = str(tracking.uri).startswith("sqlite:")
        artifacts = _artifacts(outputs) if local else None
        return _existing(client, tracking) or client.create_experiment(
            tracking.experiment, artifact_location=artifacts
        )


def _existing(client: MlflowClient, tracking: Tracking) -> str:
    """The id of the experiment, empty where there is none; raises as `experiment` does."""
    existing = client.get_experiment_by_name(tracking.experiment)
    if existing and existing.lifecycle_stage != LifecycleStage.ACTIVE:
        raise UnusableStoreError(
            f"tracking.experiment={tracking.experiment} was deleted in MLflow; restore it "
            f"with `MLFLOW_TRACKING_URI={tracking.uri} mlflow experiments restore "
            f"--experiment-id {existing.experiment_id}`, or choose another name"
        )
    return existing.experiment_id if existing else ""


def parent(client: MlflowClient, experiment: str, outputs: Path, sweep: str) -> str:
    """The id of the run of the whole sweep; the oldest where two machines created one at once."""
    with _one_at_a_time(outputs):
        tags = {f"{PREFIX}kind": "sweep", f"{PREFIX}sweep": sweep}
        if runs := find_runs(client, experiment, tags):
            return runs[0].info.run_id
        run = client.create_run(experiment, run_name=sweep, tags=tags)
        # It only groups its children and has nothing of its own to do.
        client.set_terminated(run.info.run_id)
        return run.info.run_id


def active_run(client: MlflowClient, run_id: str) -> Run | None:
    """None of a run that is gone or was deleted in MLflow's pages."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


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
    """Log an audit as a run with the file as its artifact, once for each digest, in an experiment
    of audits: they have none of the columns of trained runs."""
    client = connect(tracking, outputs)
    audits = replace(tracking, experiment=f"{tracking.experiment}-audits")
    experiment_id = experiment(client, audits, outputs)
    tags = {f"{PREFIX}kind": "audit", f"{PREFIX}data": name, f"{PREFIX}digest": digest}
    runs = find_runs(client, experiment_id, tags)
    run_name = f"audit-{name}"
    run = runs[0] if runs else client.create_run(experiment_id, run_name=run_name, tags=tags)
    client.log_artifact(run.info.run_id, str(path))
    client.set_terminated(run.info.run_id)


def _one_at_a_time(outputs: Path) -> AbstractContextManager[None]:
    return lock.briefly(outputs / ".mlflow.lock")
