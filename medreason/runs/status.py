"""What has become of a run that has no results yet, in words for tables."""

from __future__ import annotations

from typing import Any

from medreason import config as configuration
from medreason.runs import lock
from medreason.runs.files import read_json
from medreason.runs.run_folder import EvaluationFolder, RunFolder, State

_TRAINING = ("training", "validating")
"""Phases of a worker in which it trains."""


def status(evaluation: EvaluationFolder, state: State) -> str:
    """`failed`, `running at step 49 of 60`, `interrupted at step 49 of 60; the same command
    resumes`: by the state of the run, its last progress, and whether a process holds it."""
    folder = evaluation.run
    if state.state == "failed":
        return "failed"
    working = state.state == "running" and state.evaluating == evaluation.key
    if lock.is_held(folder.path):
        return f"running{_place(progress_of(folder))}" if working else "waiting"
    if state.trained and not working:
        trial = "not tested: runs.test=false, as for the trials of a search"
        return trial if is_trial(folder) else "not tested; the same command does it"
    if not state.attempts:
        return "not started"
    progress = progress_of(folder)
    if is_training(folder) and (state.trained or (folder.model / "config.json").exists()):
        return "trained; interrupted before it was tested; the same command goes on"
    if is_training(folder) and not any(folder.checkpoints.glob("checkpoint-*")):
        goes_on = "has no checkpoint yet, the same command starts again"
    else:
        goes_on = "the same command resumes"
    return f"interrupted{_place(progress)}; {goes_on}"


def is_trial(folder: RunFolder) -> bool:
    """Whether a run was trained with `runs.test=false`, to be compared by validation alone; the
    chosen one is evaluated with true."""
    return folder.config.exists() and not configuration.read(folder.config).runs.test


def is_training(folder: RunFolder) -> bool:
    """Whether its worker trains, or did when it ended."""
    return progress_of(folder).get("phase") in _TRAINING


def progress_of(folder: RunFolder) -> dict[str, Any]:
    """How far the worker is, or was when it ended; empty where it did not come to say so."""
    try:
        return read_json(folder.progress)
    except (FileNotFoundError, ValueError):
        return {}


def _place(progress: dict[str, Any]) -> str:
    if not progress or not progress["total"]:
        return ""
    count = f"{progress['done']} of {progress['total']}"
    in_training = progress["phase"] == "training"
    return f" at step {count}" if in_training else f" while {progress['phase']}, {count}"
