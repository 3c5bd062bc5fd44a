"""A real `mlflow server`: four jobs at a time, and one that dies in the middle and comes back."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from mlflow import MlflowClient
from run_folders import draw_samples, reply, write_run

from medreason import tracking
from medreason.config import Config
from medreason.runs.run_folder import EvaluationFolder

pytestmark = pytest.mark.slow  # five processes import MLflow
Compose = Callable[..., Config]
JOBS, STEPS = 4, 3


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """Killed at the end, without a chance to put anything in order."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    alone = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes less
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=alone, start_new_session=True
        )
    try:
        while not answers(port):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def runs(composed: Compose, tmp_path: Path, port: int) -> list[tuple[Config, EvaluationFolder]]:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    logs = [{"step": step, "loss": 1.0 / step} for step in range(1, STEPS + 1)]
    address = f"tracking.uri=http://127.0.0.1:{port}"
    configs = [composed("tracking=server", address, f"seed={seed}") for seed in range(JOBS)]
    runs = []
    for config in configs:
        key = f"{config.seed:012d}"
        folder = write_run(config, samples, lambda i, s: reply("A"), key=key, logs=logs)
        folder.run.update(train_key=key)  # by which MLflow's run of a folder is found again
        runs.append((config, folder))
    return runs


def work(config: Config, evaluation: EvaluationFolder, began: Event, end: Event) -> None:
    """A worker that has MLflow open until the test says so."""
    with tracking.mirrored(config, evaluation.run, evaluation.key, active=True):
        began.set()
        end.wait()


@contextmanager
def at_work(runs: list[tuple[Config, EvaluationFolder]]) -> Iterator[Event]:
    """All jobs have their run open; they end with the event, and that is waited for."""
    context = multiprocessing.get_context("spawn")
    end, begun = context.Event(), [context.Event() for _ in runs]
    jobs = [
        context.Process(target=work, args=(*run, began, end))
        for run, began in zip(runs, begun, strict=True)
    ]
    for job in jobs:
        job.start()
    for began in begun:
        assert began.wait(timeout=300)
    yield end
    for job in jobs:
        job.join()
        assert job.exitcode == 0


def assert_all_is_there(runs: list[tuple[Config, EvaluationFolder]], port: int) -> None:
    client = MlflowClient(f"http://127.0.0.1:{port}")
    experiment = client.get_experiment_by_name("medreason")
    assert experiment
    mlflow_runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in mlflow_runs if run.data.tags["medreason.kind"] == "sweep"]
    children = [run for run in mlflow_runs if run is not parent]
    assert sorted(run.data.tags["medreason.seed"] for run in children) == ["0", "1", "2", "3"]
    for run in children:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert "test/accuracy" in run.data.metrics
        assert len(client.get_metric_history(run.info.run_id, "curves/loss")) == STEPS
    assert all(folder.run.state().synced for _, folder in runs)


def test_four_jobs_at_a_time_lose_no_run(
    runs: list[tuple[Config, EvaluationFolder]], tmp_path: Path, port: int
) -> None:
    config = runs[0][0]
    with server(tmp_path / "server", port):
        # As a sweep does before its jobs; without it they would race to make the experiment.
        tracking.prepare(config.tracking, config.folder, config.sweep)
        with at_work(runs) as end:
            end.set()
        assert_all_is_there(runs, port)


def test_server_that_dies_in_the_middle_and_comes_back_has_all_in_the_end(
    runs: list[tuple[Config, EvaluationFolder]], tmp_path: Path, port: int
) -> None:
    alive = server(tmp_path / "server", port)
    alive.__enter__()
    with at_work(runs) as end:
        alive.__exit__(None, None, None)
        end.set()
    assert not any(folder.run.state().synced for _, folder in runs)
    with server(tmp_path / "server", port):
        config = runs[0][0]
        folders = [folder for _, folder in runs]
        assert tracking.catch_up(config.tracking, config.folder, config.sweep, folders)
        assert_all_is_there(runs, port)
