"""A rank that dies, a rank that hangs, nodes that cannot meet: each with its message."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from medreason.config import Config, Hardware
from medreason.execution import slurm, supervision
from medreason.execution.supervision import HungError

RANKS = """
import faulthandler, signal, subprocess, sys, time
faulthandler.register(signal.SIGUSR1)

def stuck_in_a_collective():
    time.sleep(60)

if sys.argv[-1] == "0":
    subprocess.Popen([*sys.orig_argv[:-1], "1"])
stuck_in_a_collective()
"""
"""Two processes that never come to a step, as torchrun's ranks look from outside."""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture
def slurm_node(monkeypatch: pytest.MonkeyPatch, composed: Callable[..., Config]) -> Hardware:
    """The second of two nodes of a job."""
    variables = {"JOB_ID": "70011", "JOB_NUM_NODES": "2", "NODEID": "1", "NTASKS": "2"}
    for name, value in (variables | {"JOB_NODELIST": "gpu[07-08,12],big1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return replace(composed().hardware, nodes=2)


def test_hang_is_noticed_and_every_rank_says_where_it_is(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    command = [sys.executable, "-c", RANKS, "medreason.execution.worker", "0"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        with pytest.raises(
            HungError, match=r"no step for 0\.05 minutes.*re-run the same command to resume"
        ):
            supervision.wait(process, tmp_path / "progress.json", 0.05)
        assert len(supervision.ranks(process.pid)) == 2
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert log.read_text().count("in stuck_in_a_collective") == 2


def test_process_that_goes_on_is_not_taken_for_hung(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\nfor i in range(40):\n"
        "    pathlib.Path(sys.argv[1]).write_text(str(i))\n    time.sleep(0.1)"
    )
    progress = tmp_path / "progress.json"
    process = subprocess.Popen([sys.executable, "-c", program, str(progress)])
    supervision.wait(process, progress, 0.05)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("dies", "words"),
    [
        ("os.kill(os.getpid(), 9)", "rank 1 was killed (SIGKILL); out of memory is the usual"),
        ("os.kill(os.getpid(), 11)", "rank 1 died of SIGSEGV"),
        ("sys.exit(3)", "the worker ended with exit code 1"),
    ],
)
def test_rank_that_dies_takes_the_job_down_and_is_named(
    tmp_path: Path, dies: str, words: str
) -> None:
    program = tmp_path / "rank.py"
    program.write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1':\n"
        f"    print('last words', flush=True)\n    {dies}\ntime.sleep(60)"
    )
    done = subprocess.run([*TORCHRUN, str(program)], capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert supervision.how_it_died(done.returncode, output) == (
        words if "usual" not in words else f"{words} cause"
    )
    assert supervision.was_killed(output) == ("rank 1" in words)
    assert "last words" in supervision.last_lines(done.stdout + done.stderr)


def test_traceback_of_an_error_with_a_remedy_is_for_the_log_alone() -> None:
    trace = "Traceback ...\n  File a.py\nValueError: torch says no"
    assert supervision.last_lines(trace).endswith("  ValueError: torch says no")
    assert supervision.last_lines(f"{trace}\n{supervision.REFUSED}set a=1\n") == ""


def test_ranks_that_a_signal_has_ended_are_interrupted_and_not_failed(tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    for code, interrupted in (("143", True), ("143 * (os.environ['RANK'] == '1') or 1", False)):
        program.write_text(f"import os, sys\nsys.exit({code})")
        done = subprocess.run([*TORCHRUN, str(program)], capture_output=True, text=True)
        assert supervision.was_interrupted(done.returncode, done.stdout + done.stderr) is (
            interrupted
        )
    assert supervision.was_interrupted(143, "")
    assert not supervision.was_interrupted(1, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_torchrun_that_a_signal_has_ended_is_interrupted(
    number: signal.Signals, tmp_path: Path
) -> None:
    program = tmp_path / "rank.py"
    program.write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)")
    with subprocess.Popen(
        [*TORCHRUN, str(program)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        while "begun" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        output = process.stdout.read()
    assert supervision.was_interrupted(process.returncode, output)


def test_child_that_the_same_signal_has_ended_is_no_job() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        supervision.finish_jobs(0)


UPDATES = """
import pathlib, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
pathlib.Path(sys.argv[1]).write_text("begun")
while not (asked and sys.argv[2] == "ends"):
    time.sleep(0.05)
time.sleep(0.5)
pathlib.Path(sys.argv[1]).write_text("finished")
"""


@pytest.mark.parametrize("step", ["ends", "hangs"])
def test_step_may_end_within_the_grace_and_a_hanging_one_is_not_waited_for(
    tmp_path: Path, step: str
) -> None:
    file = tmp_path / "file"
    process = subprocess.Popen([sys.executable, "-c", UPDATES, str(file), step])
    try:
        while not file.exists():
            time.sleep(0.01)
        began = time.monotonic()
        supervision.finish(process, 60 if step == "ends" else 1, lambda: None)
        assert time.monotonic() - began < 30
        assert process.poll() == (0 if step == "ends" else None)
        assert file.read_text() == ("finished" if step == "ends" else "begun")
    finally:
        process.kill()
        process.wait()


def test_single_process_that_is_killed_is_told_so() -> None:
    assert supervision.how_it_died(-9, "") == (
        "the worker was killed (SIGKILL); out of memory is the usual cause"
    )


def test_nodes_of_a_slurm_job_meet_at_its_first(slurm_node: Hardware) -> None:
    assert slurm.rendezvous(slurm_node) == slurm.Rendezvous(1, "gpu07", 30011)


def test_environment_stands_above_slurm(
    slurm_node: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    monkeypatch.setenv("MASTER_PORT", "4711")
    assert slurm.rendezvous(slurm_node) == slurm.Rendezvous(1, "10.0.0.7", 4711)


def test_port_in_use_is_refused_on_the_first_node(
    slurm_node: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("SLURM_NODEID", "0")
        with pytest.raises(ValueError, match=rf"port {port}, where.*is in use.*set MASTER_PORT"):
            slurm.rendezvous(slurm_node)
        monkeypatch.setenv("SLURM_NODEID", "1")  # which listens nowhere
        assert slurm.rendezvous(slurm_node)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SLURM_JOB_ID", None, r"needs a Slurm job.*hydra\.launcher\.nodes=2"),
        ("SLURM_JOB_NUM_NODES", "3", r"this Slurm job has 3 .*set hardware\.nodes=3"),
        ("SLURM_NTASKS", "8", r"8 tasks on 2 nodes.*tasks_per_node=1"),
    ],
)
def test_job_of_another_shape_is_refused(
    slurm_node: Hardware, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, words: str
) -> None:
    monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=words):
        slurm.rendezvous(slurm_node)


def test_one_machine_needs_no_meeting(composed: Callable[..., Config]) -> None:
    assert slurm.rendezvous(composed("hardware=cpu_x2").hardware) is None


def test_worker_among_fewer_ranks_than_the_profile_says_is_refused(
    composed: Callable[..., Config],
) -> None:
    from medreason.execution import worker  # torch

    with pytest.raises(ValueError, match=r"1 processes were started.*cpu_x2 says 2 = .* 1 \* 2"):
        worker.processes(composed("hardware=cpu_x2"))
