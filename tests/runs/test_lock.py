"""One process works on a run folder, on this machine and on others that share its disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from medreason.runs import lock

HOLD = """
import sys, time, subprocess
from pathlib import Path
from medreason.runs import lock
with lock.held(Path(sys.argv[1])) as descriptor:
    if sys.argv[2:]:  # a worker that outlives its parent, like one that is still importing torch
        subprocess.Popen(["sleep", sys.argv[2]], pass_fds=[descriptor])
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def foreign(folder: Path) -> Path:
    """An owner's file as another machine leaves it."""
    owner = folder / ".owner.json"
    owner.write_text(json.dumps({"boot": "elsewhere", "pid": 1, "token": "t", "heartbeat": 7}))
    return owner


def test_folder_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with lock.held(tmp_path) as descriptor:
        assert descriptor is None
    kill(process)
    assert (tmp_path / ".owner.json").exists()
    with lock.held(tmp_path) as descriptor:
        assert descriptor is not None
    assert not (tmp_path / ".owner.json").exists()


def test_folder_that_is_held_says_by_whom(tmp_path: Path) -> None:
    assert lock.owner(tmp_path) == "another process"
    with lock.held(tmp_path, "sweep=demo"):
        assert lock.owner(tmp_path) == f"process {os.getpid()} (sweep=demo)"
        owner = foreign(tmp_path)
        assert lock.owner(tmp_path) == "process 1 on another machine"
        owner.write_text(json.dumps(json.loads(owner.read_text()) | {"host": "gpu07"}))
        assert lock.owner(tmp_path) == "process 1 on gpu07"


@pytest.mark.parametrize("flock", [True, False])
def test_folder_of_a_zombie_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool
) -> None:
    process = holder(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
    if not flock:  # a file system without locks
        monkeypatch.setattr(lock, "kernel_lock", lambda file, wait=False: None)
    with lock.held(tmp_path) as descriptor:
        assert descriptor is not None
    process.wait()


@pytest.mark.parametrize("zombie", [True, False])
def test_worker_of_a_killed_parent_is_waited_for(tmp_path: Path, zombie: bool) -> None:
    process = holder(tmp_path, "2")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | (os.WNOWAIT if zombie else 0))
    began = time.monotonic()
    with lock.held(tmp_path) as descriptor:
        assert descriptor is not None
    assert time.monotonic() - began > 0.5


def set_sleep(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], None]) -> None:
    """Replace `time.sleep` for the lock alone: other threads of this process may sleep, too."""
    monkeypatch.setattr(lock, "time", SimpleNamespace(**vars(time) | {"sleep": sleep}))


def test_owner_on_another_machine_with_a_heartbeat_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = foreign(tmp_path)

    def beats(_: float) -> None:
        record = json.loads(owner.read_text())
        owner.write_text(json.dumps(record | {"heartbeat": record["heartbeat"] + 1}))

    set_sleep(monkeypatch, beats)
    with lock.held(tmp_path) as descriptor:
        assert descriptor is None


def test_owner_on_another_machine_without_a_heartbeat_is_replaced_whatever_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = foreign(tmp_path)
    os.utime(owner, (2**33, 2**33))  # a clock far ahead
    waited: list[float] = []
    set_sleep(monkeypatch, waited.append)
    with lock.held(tmp_path) as descriptor:
        assert descriptor is not None
        assert json.loads(owner.read_text())["boot"] == lock.boot_id()
    assert len(waited) == lock.MISSED_HEARTBEATS


def test_owner_that_was_taken_over_leaves_the_folder_to_the_other_machine(tmp_path: Path) -> None:
    with lock.held(tmp_path):
        foreign(tmp_path)
    assert json.loads((tmp_path / ".owner.json").read_text())["boot"] == "elsewhere"


def test_owner_file_that_was_cut_off_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".owner.json").write_text('{"boot"')
    set_sleep(monkeypatch, lambda _: None)
    with lock.held(tmp_path) as descriptor:
        assert descriptor is not None
