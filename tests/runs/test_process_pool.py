"""Processes of a pool that end with the signal that interrupts the command leave no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from medreason.runs import process_pool

CODE = """
import sys
import time
from medreason.runs import interrupts, parent_watch, process_pool

def wait(seconds):
    print("begun", flush=True)
    time.sleep(seconds)

def start(pid):
    if sys.argv[1:] == ["slowly"]:
        print("begun", flush=True)
        time.sleep(0.5)
    parent_watch.start_in_pool(pid)

if __name__ == "__main__":
    interrupts.listen()
    try:
        for _ in process_pool.results(wait, [0.05] * 4000, chunk=4, initializer=start):
            pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def start(pid: int) -> None:
    assert pid != os.getpid()


@pytest.fixture
def hang_up_is_not_ignored() -> Iterator[None]:
    """As it is where these tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order(processes: int) -> None:
    words = [f"{i}" for i in range(21)]
    found = process_pool.results(int, words, chunk=4, initializer=start, processes=processes)
    assert list(found) == list(range(21))


def test_pool_that_is_left_early_ends() -> None:
    found = process_pool.results(int, ["1"] * 9, chunk=1, initializer=start, processes=2)
    with closing(found) as results:
        assert next(results) == 1


@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGHUP, True)],
)
@pytest.mark.usefixtures("hang_up_is_not_ignored")
def test_signal_ends_it_without_a_traceback(number: signal.Signals, *, group: bool) -> None:
    for _ in range(3):
        check_interrupted(number, group=group)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("hang_up_is_not_ignored")
def test_signal_while_processes_begin_leaves_no_traceback(number: signal.Signals) -> None:
    check_interrupted(number, "slowly", group=True)


def check_interrupted(number: signal.Signals, *words: str, group: bool) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", CODE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert command.stdout
    assert command.stdout.readline().startswith("begun")
    (os.killpg if group else os.kill)(command.pid, number)
    said, _ = command.communicate(timeout=60)
    assert "Traceback" not in said
    assert said.endswith("interrupted\n")
