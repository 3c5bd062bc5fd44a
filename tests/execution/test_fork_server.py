"""A forked worker looks to its launcher as one that was started anew.

The server of these tests imports a small module in place of the worker, which takes ten seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from processes import wait_until_dead

from medreason.execution import fork_server, supervision
from medreason.execution.fork_server import ForkedWorker
from medreason.runs import lock
from medreason.runs.parent_watch import end_with

WORKER = """
import faulthandler, os, pathlib, random, signal, sys, time
from medreason.runs import parent_watch

def stuck():
    (pathlib.Path.cwd() / "stuck").touch()
    time.sleep(60)

def main(path, key):
    faulthandler.register(signal.SIGUSR1)
    parent_watch.end_with(int(os.environ["MEDREASON_PARENT"]))
    sys.excepthook = lambda kind, *_: print("recorded", kind.__name__, flush=True)
    print(path.name, os.environ["ASKED"], os.getcwd(), sys.argv[1:], sys.stdin.read(), flush=True)
    print("draw", random.random(), os.getpid() == os.getpgid(0), flush=True)
    exec(key)
"""
START = """
import socket, sys
from medreason.execution import fork_server
fork_server._WORKER = "light_worker"
fork_server.serve(socket.socket(fileno=int(sys.argv[1])))
"""
LAUNCHER = """
import pathlib, sys, time
import test_fork_server as tests
folder = pathlib.Path(sys.argv[1])
tests.fork_server._COMMAND = tests.COMMAND
tests.write_worker(folder)
with tests.lock.held(folder) as descriptor:
    worker = tests.start(folder, "stuck()", descriptor)
    while not (folder / "stuck").exists():
        worker.poll()
        time.sleep(0.01)
    print(worker.pid, worker._server.process.pid, flush=True)
    time.sleep(60)
"""


COMMAND = (sys.executable, "-c", START)


def write_worker(folder: Path, text: str = WORKER) -> None:
    (folder / "light_worker.py").write_text(text)


def start(folder: Path, key: str, *descriptors: int, **variables: str) -> ForkedWorker:
    paths = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"ASKED": "this", "PYTHONPATH": paths} | variables
    environment["MEDREASON_PARENT"] = str(os.getpid())
    os.chdir(folder)
    with (folder / "train.log").open("a") as log:
        return fork_server.start(folder, key, environment, log.fileno(), descriptors)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fork_server, "_COMMAND", COMMAND)
    monkeypatch.setattr(fork_server, "_idle", [])
    write_worker(tmp_path)
    yield tmp_path
    fork_server._close_idle()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('stopped')", 1, "stopped"),
        ("raise KeyError(1)", 1, "recorded KeyError"),
        ("import atexit; atexit.register(print, 'at exit')", 0, "at exit"),
        ("os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_worker_ends_as_a_process_of_its_own(folder: Path, key: str, code: int, words: str) -> None:
    worker = start(folder, key)
    assert worker.wait(timeout=30) == worker.poll() == worker.returncode == code
    first, second, *rest = (folder / "train.log").read_text().splitlines()
    assert first.split()[:3] == [folder.name, "this", str(folder)]
    assert first.endswith(f"{[str(folder), key]} ")
    assert second.endswith(" True")
    assert "\n".join(rest) == words


def test_runs_share_the_imports_and_no_random_numbers(folder: Path) -> None:
    servers = []
    for variables in ({}, {}, {"ASKED": "that"}):
        worker = start(folder, "pass", **variables)
        servers.append(worker._server.process.pid)
        assert worker.wait(timeout=30) == 0
    assert servers[0] == servers[1] != servers[2]  # libraries read their variables at the import
    assert not psutil.pid_exists(servers[0])
    draws = [line for line in (folder / "train.log").read_text().splitlines() if "draw" in line]
    assert len(set(draws)) == 3


def test_an_import_that_fails_is_in_the_log(folder: Path) -> None:
    write_worker(folder, "raise OSError('libcudart.so is missing')")
    assert start(folder, "pass").wait(timeout=30) == 1
    assert "OSError: libcudart.so is missing" in (folder / "train.log").read_text()
    write_worker(folder)
    assert start(folder, "pass").wait(timeout=30) == 0


def test_an_import_can_be_stopped(folder: Path) -> None:
    write_worker(folder, "import time; time.sleep(60)")
    worker = start(folder, "pass")
    os.killpg(worker.pid, signal.SIGTERM)
    assert worker.wait(timeout=30) == -signal.SIGTERM


def test_a_worker_that_hangs_writes_its_stacks_and_is_stopped_with_its_children(
    folder: Path,
) -> None:
    worker = start(folder, "import subprocess; subprocess.Popen(['sleep', '60']); stuck()")
    wait_for(lambda: worker.poll() is None and (folder / "stuck").exists())
    (child,) = psutil.Process(worker.pid).children()
    supervision.dump_stacks(worker.pid)
    assert "in stuck" in (folder / "train.log").read_text()
    os.killpg(worker.pid, signal.SIGTERM)
    assert worker.wait(timeout=30) == -signal.SIGTERM
    wait_until_dead([child])


def test_a_signal_to_all_processes_of_a_job_leaves_the_worker_time_to_end(folder: Path) -> None:
    """Slurm's, which the worker takes as `Interruption` does."""
    waits = "signal.signal(signal.SIGTERM, lambda *_: None)"
    ends = "(pathlib.Path.cwd() / 'stuck').touch(); signal.pause(); time.sleep(1.5); sys.exit(143)"
    worker = start(folder, f"{waits}; {ends}")
    wait_for(lambda: worker.poll() is None and (folder / "stuck").exists())
    for pid in (worker._server.process.pid, worker.pid):
        os.kill(pid, signal.SIGTERM)
    assert worker.wait(timeout=30) == 143
    os.kill(worker._server.process.pid, signal.SIGTERM)  # idle, it ends at once
    assert worker._server.process.wait(timeout=30) == -signal.SIGTERM


def test_the_worker_alone_holds_the_lock_when_the_launcher_has_left_it(folder: Path) -> None:
    path = folder / "lock"
    with path.open("a") as file:
        assert lock.kernel_lock(file)
        worker = start(folder, "stuck()", file.fileno())
        wait_for(lambda: worker.poll() is None and (folder / "stuck").exists())
    with path.open("a") as file:
        assert lock.kernel_lock(file) is False
        os.kill(worker.pid, signal.SIGKILL)
        assert worker.wait(timeout=30) == -signal.SIGKILL
        assert lock.kernel_lock(file)
    assert worker._server.process.poll() is None  # ready for the next run


@pytest.mark.parametrize("victim", ["launcher", "server"])
def test_no_process_is_left_when_one_is_killed(tmp_path: Path, victim: str) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert launcher.stdout
    worker, server = map(psutil.Process, map(int, launcher.stdout.readline().split()))
    (launcher if victim == "launcher" else server).kill()
    wait_until_dead([worker])
    launcher.kill()
    launcher.wait()
    wait_until_dead([server])
    with lock.held(tmp_path) as descriptor:
        assert descriptor is not None


def test_a_fork_watches_again_what_its_parent_has_watched() -> None:
    end_with(os.getppid())
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, bytes([end_with.cache_info().currsize]))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1) == b"\0"
