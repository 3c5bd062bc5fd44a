"""Ctrl-C ends a command in one line: what is kept, and what to type to go on."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from run_folders import draw_samples, reply, write_run

from medreason import cli, tracking
from medreason.config import Config
from medreason.execution import launch
from medreason.runs import interrupts
from medreason.runs.interrupts import InterruptedRunError
from medreason.runs.run_folder import RunFolder, run_folders


@pytest.fixture(autouse=True)
def handler_is_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_interrupt_ends_in_one_line_with_the_command(
    number: signal.Signals,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "_run_command_line", lambda: os.kill(os.getpid(), number))
    monkeypatch.setattr(sys, "argv", ["medreason", "method=sft", "sweep=a b"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert capsys.readouterr().err == (
        f"medreason: {words}; what was finished is kept; to go on: python -m medreason "
        "method=sft 'sweep=a b'\n"
    )


def test_sigterm_that_timeout_sends_twice_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cli, "_run_command_line", stopped)
    monkeypatch.setattr(sys, "argv", ["medreason"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.count("stopped by SIGTERM") == 1


def test_second_ctrl_c_does_not_wait_for_what_the_first_one_lets_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it waited") from None

    monkeypatch.setattr(cli, "_run_command_line", stopped)
    monkeypatch.setattr(sys, "argv", ["medreason"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.count("interrupted") == 1


def test_jobs_of_joblib_are_waited_for_before_the_first_signal_ends_their_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[bool] = []

    def stopped() -> None:
        interrupts.before_end(lambda: waited.append(True))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli, "_run_command_line", stopped)
    monkeypatch.setattr(sys, "argv", ["medreason"])
    with pytest.raises(SystemExit):
        cli.main()
    assert waited == [True]


def test_run_whose_worker_got_the_signal_alone_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of Slurm, or of somebody's `kill`."""

    def interrupted(*_: object) -> None:
        raise InterruptedRunError("a signal ended its worker")

    monkeypatch.setattr(launch.worker_process, "run", interrupted)
    (tmp_path / "run/checkpoints/checkpoint-7").mkdir(parents=True)
    request: Any = SimpleNamespace(folder=RunFolder(tmp_path / "run"))
    unused: Any = None
    config: Any = SimpleNamespace(method=SimpleNamespace(algorithm="sft"))
    words = r"run: a signal.*keeps the checkpoint of step 7; re-run the same command to resume"
    with pytest.raises(InterruptedRunError, match=words):
        launch._start_and_wait(config, request, unused, unused, None, 0)
    assert request.folder.state().state != "failed"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ((), "has no checkpoint yet"),
        (("checkpoints/checkpoint-9", "checkpoints/checkpoint-10"), "checkpoint of step 10"),
        (("checkpoints/checkpoint-9", "model/config.json"), "its weights and the answers so far"),
    ],
)
def test_interrupted_run_says_what_it_keeps(
    made: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.worker_process, "run", interrupted)
    for name in made:
        (tmp_path / name).mkdir(parents=True)
    request: Any = SimpleNamespace(folder=RunFolder(tmp_path))
    unused: Any = None
    config: Any = SimpleNamespace(method=SimpleNamespace(algorithm="sft"))
    with pytest.raises(KeyboardInterrupt, match=words):
        launch._start_and_wait(config, request, unused, unused, None, 0)


def test_mlflow_shows_a_stopped_run_as_killed(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    config = composed("method=base", "sweep=one")
    evaluation = write_run(config, draw_samples(tmp_path, per_cell=2), lambda i, s: reply("A"))
    config = replace(config, tracking=replace(config.tracking, images=0))
    with (
        pytest.raises(SystemExit),
        tracking.mirrored(config, evaluation.run, evaluation.key, active=True),
    ):
        sys.exit("stopped")
    (run_id,) = evaluation.run.state().mlflow_runs.values()
    assert MlflowClient(config.tracking.uri).get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", [(), ("-m", "seed=0,1", "hydra/launcher=joblib_x2")])
def test_interrupted_training_goes_on_with_the_command_that_is_shown(
    words: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    small = ("method=sft", "evaluation=quick", "data.train_images=8", "data.test_images=1")
    steps = ("method.trl.max_steps=20", "hardware.threads=1", "evaluation.modalities=[ct]")
    command = [sys.executable, "-m", "medreason", *words, *small, *steps]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    runs = tmp_path / "outputs/runs"
    while sum(bool(run.logged()) for run in run_folders(runs)) < (2 if words else 1):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, number)  # as a terminal and `timeout` do
    _, told = process.communicate(timeout=120)
    for run in run_folders(runs):  # long before runs.checkpoint_steps
        (step,) = {row["step"] for row in run.logged()[-1:]}
        assert [path.name for path in run.checkpoints.iterdir()] == [f"checkpoint-{step}"]
        assert re.search(rf"ends update {step} and writes a checkpoint, within 5 min", told)
    assert process.returncode == 128 + number
    assert "Traceback" not in told
    line = next(line for line in told.splitlines() if "; to go on: python " in line)
    assert line.startswith("medreason: ")
    report = (*command[:3], "action=report", "tracking=none")
    shown = subprocess.run(report, cwd=tmp_path, capture_output=True, text=True)
    assert re.search(r"interrupted at step \d+ of 20; the same command resumes", shown.stdout)
    assert "to resume: " not in told  # one advice
    if words:
        assert "2 interrupted" in told
    again = shlex.split(line.partition("to go on: python ")[2])
    done = subprocess.run([sys.executable, *again], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed from its last checkpoint" in done.stderr
    states = {run.state().state for run in run_folders(runs)}
    assert states == {"done"}
