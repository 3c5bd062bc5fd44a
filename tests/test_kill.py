"""Killed at ten random moments and re-run: the same tables, nothing trained twice, no orphans.

`pytest -m slow tests/test_kill.py`; MEDREASON_KILL_SEED chooses other moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from processes import wait_until_gone, working_in

from medreason.runs.run_folder import run_folders

KILLS = 10
SWEEP = (
    *("-m", "experiment=smoke/quick", "sweep=s", "hydra/launcher=joblib_x2"),
    *("method=base,sft,grpo", "modality=ct", "task=disease,grading", "hardware.threads=1"),
    *("data.train_images=16", "data.test_images=2", "evaluation.max_new_tokens=16"),
    *("evaluation.modalities=[ct]", "evaluation.controls=[]", "method.trl.max_steps=12"),
    "runs.checkpoint_steps=3",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def start(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "medreason", *SWEEP], cwd=folder, stdout=output, stderr=output
        )


def tables(folder: Path) -> dict[str, Any]:
    """Predictions and training metrics of each run; timings differ, nothing else may."""
    by_run: dict[str, Any] = {}
    for run in run_folders(folder / "outputs/runs"):
        state = run.state()
        assert state.state == "done", (run.path.name, state)
        (key,) = state.evaluations
        rows = pq.read_table(run.evaluation(key) / "predictions.parquet").to_pylist()
        by_run[run.path.name] = (
            [{k: v for k, v in row.items() if k != "image"} for row in rows],
            [(row["step"], row["loss"], row.get("reward")) for row in run.logged()],
        )
    return by_run


def trained(folder: Path) -> dict[str, int]:
    """When the weights of each trained run were written, in nanoseconds."""
    runs = [run for run in run_folders(folder / "outputs/runs") if run.model.exists()]
    return {run.path.name: run.model.stat().st_mtime_ns for run in runs if run.state().trained}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("untouched")
    assert start(folder).wait() == 0, (folder / "output.txt").read_text()
    return tables(folder)


@pytest.mark.parametrize("victim", ["launcher", "worker", "any"])
def test_kills_change_nothing(tmp_path: Path, untouched: dict[str, Any], victim: str) -> None:
    rng = random.Random(f"{victim}{os.environ.get('MEDREASON_KILL_SEED', '0')}")
    before: dict[str, int] = {}
    for _ in range(KILLS):
        launcher = start(tmp_path)
        deadline = time.monotonic() + rng.uniform(1, 45)
        while time.monotonic() < deadline and launcher.poll() is None:
            time.sleep(0.05)
        living = working_in(tmp_path)
        workers = [p for p in living if "medreason.execution.fork_server" in p.cmdline()]
        targets = {"launcher": [launcher], "worker": workers or living, "any": living}[victim]
        if launcher.poll() is None and targets:
            os.kill(rng.choice(targets).pid, signal.SIGKILL)
        if victim == "worker" or victim == "launcher":
            launcher.wait()
        else:
            time.sleep(2)
            launcher.kill()
            launcher.wait()
        wait_until_gone(tmp_path)
        assert trained(tmp_path).items() >= before.items()
        before = trained(tmp_path)
    assert start(tmp_path).wait() == 0, (tmp_path / "output.txt").read_text()
    wait_until_gone(tmp_path)

    assert tables(tmp_path) == untouched
    assert trained(tmp_path).items() >= before.items()
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("medreason")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = [run.info.run_name for run in runs]
    assert sorted(names) == sorted(set(names))  # each folder once, the sweep once
