"""Outputs that were copied work in the new place, and nothing is written in the old one."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import commands
import pytest
from mlflow import MlflowClient
from run_folders import draw_samples, reply, write_run

from medreason import tracking
from medreason.actions import report
from medreason.config import Config
from medreason.runs.run_folder import EvaluationFolder, RunFolder


def content(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and digest of each file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in files
    }


@pytest.mark.parametrize("absolute", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_copied_outputs_are_shown_and_sent_from_their_new_place(
    absolute: bool, composed: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    monkeypatch.chdir(old)
    outputs = old / "outputs" if absolute else Path("outputs")
    database = f"sqlite:///{outputs}/mlflow.db"
    config = composed("method=base", "sweep=one", f"outputs={outputs}", f"tracking.uri={database}")
    samples = draw_samples(outputs / "cache/drawn", per_cell=2)
    folder = write_run(config, samples, lambda i, s: reply("A"))
    report.run(config)
    assert tracking.catch_up(config.tracking, outputs, "one", [folder])
    shutil.copytree(old, new)
    before = content(old)
    outputs = new / "outputs" if absolute else Path("outputs")
    shutil.rmtree(new / "outputs/mlartifacts")
    words = ("action=report", "sweep=one", f"outputs={outputs}", "tracking.resync=true")
    done = commands.medreason(*words, cwd=new)
    assert done.returncode == 0, done.stderr
    assert content(old) == before
    monkeypatch.chdir(new)
    page = (outputs / "reports/one/index.html").read_text()
    assert "data:image/" in page
    run = EvaluationFolder(RunFolder(outputs / "runs" / folder.run.path.name), folder.key)
    (run_id,) = run.run.state().mlflow_runs.values()
    client = MlflowClient(f"sqlite:///{new}/outputs/mlflow.db")
    shown = client.get_run(run_id)
    assert shown.data.tags["mlflow.note.content"] == f"Run folder: {run.run.path.resolve()}"
    assert f"predictions-{run.key}.json" in {item.path for item in client.list_artifacts(run_id)}
    with closing(sqlite3.connect(outputs / "mlflow.db")) as connection:
        places = connection.execute("SELECT artifact_uri FROM runs").fetchall()
    assert {place for (place,) in places if str(old) in place} == set()
