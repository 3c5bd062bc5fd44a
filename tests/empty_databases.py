"""MLflow makes the tables of a new database by 60 migrations, seconds each time: once is enough."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from sqlalchemy import make_url

from medreason.config import Tracking
from medreason.runs.files import atomic
from medreason.tracking import store

connect = store.connect


def share(folder: Path | None) -> None:
    """Let `store.connect` of this process copy a database in `folder` where there is none yet."""
    if not folder:
        return

    def connect_to_copy(tracking: Tracking, outputs: Path) -> MlflowClient:
        uri = make_url(store.escaped(tracking.uri or "", outputs))
        database = Path(uri.database or "")
        if uri.drivername.startswith("sqlite") and not database.exists():
            _copy(folder, database)
        return connect(tracking, outputs)

    store.connect = connect_to_copy


def _copy(folder: Path, database: Path) -> None:
    template = folder / "empty.db"
    if not template.exists():
        with atomic(template) as path:
            MlflowClient(f"sqlite:///{path}").get_experiment("0")
    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=database.parent) as place:
        copied = Path(shutil.copy(template, place))
        with suppress(FileExistsError):  # another process was first
            os.link(copied, database)
