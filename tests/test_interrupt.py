"""Ctrl-C ends a command in one line: what is kept, and what to type to go on."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from run_folders import draw_samples, reply, write_run

from medreason import cli, console, tracking
from medreason.config import Config
from medreason.execution import launch
from medreason.runs import interrupts
from medreason.runs.interrupts import InterruptedRunError
from medreason.runs.run_folder import RunFolder, run_folders


@pytest.fixture(autouse=True)
def handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And none of a test that was itself started under nohup."""
    monkeypatch.setattr(console, "_works_without_readers", False)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGHUP, 129, "stopped by SIGHUP"),
    ],
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


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_terminal_that_is_closed_does_not_cut_the_end_short(
    first: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shell sends SIGHUP, and the kernel again."""
    ended: list[bool] = []

    def stopped() -> None:
        try:
            os.kill(os.getpid(), first)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            ended.append(True)

    monkeypatch.setattr(cli, "_run_command_line", stopped)
    monkeypatch.setattr(sys, "argv", ["medreason"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert ended
    assert end.value.code == 128 + first
    assert capsys.readouterr().err.count("to go on") == 1


def test_command_under_nohup_outlives_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(cli, "_run_command_line", lambda: os.kill(os.getpid(), signal.SIGHUP))
    cli.main()
    assert not interrupts.interrupted()


PRINTS = """
import os, signal, sys, time
from pathlib import Path
from medreason import console
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it comes a moment later
Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.01)
for _ in range(2):
    console.notice("progress")
    console.show("result")
Path(sys.argv[3]).touch()
"""


def test_nothing_that_is_printed_fails_where_the_terminal_is_closed(tmp_path: Path) -> None:
    began, closed, ended = (tmp_path / name for name in ("began", "closed", "ended"))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", PRINTS, *map(str, (began, closed, ended))])
    wait_until(began.exists, 60)
    os.close(terminal)
    closed.touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ended.exists()


@pytest.mark.parametrize(("ending", "code"), [(True, 0), (False, 1)])
def test_result_without_a_reader_fails_unless_a_signal_has_ended_the_command(
    ending: bool, code: int
) -> None:
    """As with `| head`, and as with `| tee`, which a closed terminal ends too."""
    end = "console.end_without_readers()" if ending else ""
    words = f"from medreason import console\n{end}\nconsole.notice('a')\nconsole.show('b')"
    reader, writer = os.pipe()
    os.close(reader)
    for stderr in (writer, subprocess.PIPE):
        done = subprocess.run([sys.executable, "-c", words], stdout=writer, stderr=stderr)
        assert bool(done.returncode) is bool(code)
    os.close(writer)


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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


SMALL = ("method=sft", "evaluation=quick", "data.train_images=8", "data.test_images=1")
SMALL += ("method.trl.max_steps=20", "hardware.threads=1", "evaluation.modalities=[ct]")


@pytest.mark.slow
def test_training_whose_terminal_is_closed_writes_its_checkpoint(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-m", "medreason", *SMALL])
    os.set_blocking(terminal, False)

    def trains() -> bool:
        with suppress(BlockingIOError):
            os.read(terminal, 2**16)
        return any(run.logged() for run in run_folders(tmp_path / "outputs/runs"))

    wait_until(trains, 300)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    (run,) = run_folders(tmp_path / "outputs/runs")
    assert [p.name for p in run.checkpoints.iterdir()] == [f"checkpoint-{run.logged()[-1]['step']}"]
    assert run.state().state == "running"  # which nobody holds: interrupted
    (run_id,) = run.state().mlflow_runs.values()
    store = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    assert store.get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("words", [(), ("-m", "seed=0,1", "hydra/launcher=joblib_x2")])
def test_interrupted_training_goes_on_with_the_command_that_is_shown(
    words: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "medreason", *words, *SMALL]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    runs, count = tmp_path / "outputs/runs", 2 if words else 1
    wait_until(lambda: sum(bool(run.logged()) for run in run_folders(runs)) == count, 300)
    os.killpg(process.pid, number)  # as a terminal and `timeout` do
    _, told = process.communicate(timeout=120)
    for run in run_folders(runs):  # long before runs.checkpoint_steps
        (step,) = {row["step"] for row in run.logged()[-1:]}
        assert [path.name for path in run.checkpoints.iterdir()] == [f"checkpoint-{step}"]
        if not words:
            assert f"keeps the checkpoint of step {step}; " in told
    said = "ends the update that is under way and writes a checkpoint, within 5 min"
    assert told.count(said) == count
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
