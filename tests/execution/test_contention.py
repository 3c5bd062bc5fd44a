"""One line says that other processes slow a training on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest

from medreason.config import Config
from medreason.execution import contention, worker_process
from medreason.execution.contention import Contention
from medreason.execution.gpu_slots import GpuSlots


@pytest.fixture
def minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of a second, in which a process that sleeps gets no processor time."""
    monkeypatch.setattr(contention, "_SECONDS", 1.0)
    monkeypatch.setattr(contention, "cores", lambda: 2)


def lines(watch: Contention, minutes: int) -> list[str]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        ranks = [psutil.Process(process.pid)]
        told = []
        while minutes:
            if watch.is_due:
                minutes -= 1
                told.append(watch.line(ranks))
        process.kill()
    return [line for line in told if line]


def test_training_that_gets_less_than_its_threads_on_a_loaded_machine_says_so_once(
    minute: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (6.25, 5.0, 4.0))
    watch = Contention(threads=2)
    (line,) = lines(watch, 2)
    assert line == (
        "other processes slow it: it got 0.0 of 2 cores in the last minute, 6.2 processes want "
        "the 2 of this machine; hardware.threads=1 may be faster then"
    )
    assert not watch.is_due


@pytest.mark.parametrize(("load", "threads"), [(2.1, 2), (0.3, 1)])
def test_nothing_is_said_where_no_others_want_the_cores(
    minute: None, monkeypatch: pytest.MonkeyPatch, load: float, threads: int
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert lines(Contention(threads), 3) == []


def test_nothing_is_said_of_a_training_that_gets_its_cores(
    minute: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    got = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr(contention, "_processor_seconds", lambda _: next(got))
    assert lines(Contention(threads=2), 3) == []


@pytest.mark.parametrize(
    ("asked", "of_user", "threads"),
    [("3", "1", "3"), ("null", "1", "1"), ("null", "4,2", "4"), ("null", "", "2")],
)
def test_a_worker_takes_the_threads_that_are_asked_for_and_does_not_spin(
    composed: Callable[..., Config],
    minute: None,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    of_user: str,
    threads: str,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", of_user)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    config = composed(f"hardware.threads={asked}")
    environment = worker_process._environment(config, GpuSlots())
    assert environment["OMP_NUM_THREADS"] == threads
    assert int(environment["GOMP_SPINCOUNT"]) <= 10_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    assert worker_process._environment(config, GpuSlots())["GOMP_SPINCOUNT"] == "5"
