"""A table says what has become of a run without results: going on, interrupted, not started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from medreason import config as configuration
from medreason.config import Config
from medreason.runs import lock
from medreason.runs.files import write_json
from medreason.runs.run_folder import EvaluationFolder, RunFolder
from medreason.runs.status import status

WORKING = {"state": "running", "evaluating": "one", "attempts": 1}


def progress(phase: str, done: int, total: int) -> dict[str, Any]:
    return {"phase": phase, "done": done, "total": total, "left_seconds": None, "note": ""}


TRAINING = progress("training", 49, 60)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    ("state", "seen", "checkpoint", "words"),
    [
        ({}, None, False, ("waiting", "not started")),
        (
            WORKING,
            TRAINING,
            True,
            (
                "running at step 49 of 60",
                "interrupted at step 49 of 60; the same command resumes",
            ),
        ),
        (
            WORKING,
            TRAINING,
            False,
            (
                "running at step 49 of 60",
                "interrupted at step 49 of 60; has no checkpoint yet, the same command starts "
                "again",
            ),
        ),
        (WORKING, None, False, ("running", "interrupted; the same command resumes")),
        (
            WORKING | {"trained": True},
            progress("training", 60, 60),
            False,
            (
                "running at step 60 of 60",
                "trained; interrupted before it was tested; the same command goes on",
            ),
        ),
        (
            WORKING | {"trained": True},
            progress("evaluating", 8, 24),
            False,
            (
                "running while evaluating, 8 of 24",
                "interrupted while evaluating, 8 of 24; the same command resumes",
            ),
        ),
        (
            WORKING | {"trained": True, "evaluating": "another"},
            progress("evaluating", 8, 24),
            False,
            ("waiting", "not tested; the same command does it"),
        ),
        (WORKING | {"state": "failed"}, None, True, ("failed", "failed")),
    ],
)
def test_status_is_that_of_state_progress_and_lock(
    tmp_path: Path,
    *,
    held: bool,
    state: dict[str, Any],
    seen: dict[str, Any] | None,
    checkpoint: bool,
    words: tuple[str, str],
) -> None:
    folder = RunFolder(tmp_path)
    on_disk = folder.update(**state)
    if seen:
        write_json(folder.progress, seen)
    if checkpoint:
        (folder.checkpoints / "checkpoint-40").mkdir(parents=True)
    evaluation = EvaluationFolder(folder, "one")
    with folder.locked() if held else nullcontext():
        assert status(evaluation, on_disk) == words[not held]


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("true", "not tested; the same command does it"),
        ("false", "not tested: runs.test=false, as for the trials of a search"),
    ],
)
def test_a_trial_of_a_search_is_said_to_need_no_test(
    composed: Callable[..., Config], tmp_path: Path, test: str, words: str
) -> None:
    folder = RunFolder(tmp_path)
    on_disk = folder.update(state="done", trained=True, attempts=1)
    configuration.write(composed("method=sft", f"runs.test={test}"), folder.config)
    assert status(EvaluationFolder(folder, "one"), on_disk) == words


def test_folder_of_a_living_process_alone_is_held(tmp_path: Path) -> None:
    assert not lock.is_held(tmp_path)
    with lock.held(tmp_path):
        assert lock.is_held(tmp_path)
        left = (tmp_path / ".owner.json").read_text()
    assert not lock.is_held(tmp_path)
    owner = tmp_path / ".owner.json"
    owner.write_text(left)  # as a process that is killed leaves it
    younger = psutil.Process().create_time() - 60
    os.utime(owner, (younger, younger))
    assert not lock.is_held(tmp_path)  # this process has the dead owner's number by chance
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner.write_text(json.dumps(json.loads(left) | {"pid": dead.pid}))
    assert not lock.is_held(tmp_path)


def test_owner_on_another_machine_is_alive_while_its_heartbeat_is_new(tmp_path: Path) -> None:
    owner = tmp_path / ".owner.json"
    owner.write_text(json.dumps({"boot": "elsewhere", "pid": 1, "token": "t", "heartbeat": 7}))
    assert lock.is_held(tmp_path)
    old = time.time() - 120
    os.utime(owner, (old, old))
    assert not lock.is_held(tmp_path)
