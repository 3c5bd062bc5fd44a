"""The worker: `python -m medreason.execution.worker FOLDER EVALUATION_KEY`, one process a device,
or for a run on a CPU a fork of a process that has imported this module (`fork_server`).

Trains what is not trained and evaluates what is not evaluated. Its output goes to train.log.
"""

# ruff: noqa: E402
from __future__ import annotations

from medreason.console import command, first_line, notice, quiet_libraries

quiet_libraries()  # bitsandbytes, which the others import, warns at once

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from accelerate import PartialState

from medreason import config as configuration
from medreason import data, tracking
from medreason.config import Config, checks
from medreason.data import validation
from medreason.evaluation.run import evaluate, refuse_long_tests
from medreason.execution import supervision
from medreason.models import device
from medreason.runs import environment, interrupts, parent_watch
from medreason.runs.progress import Reporter
from medreason.runs.run_folder import EvaluationFolder, RunFolder
from medreason.training.run import train, trained_model

ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], None]


def main(path: Path, evaluation_key: str) -> None:
    folder = RunFolder(path)
    sys.excepthook = _record_error_in(folder)
    for number in (*interrupts.OF_WORKERS, signal.SIGHUP):
        signal.signal(number, interrupts.end_worker)
    faulthandler.register(signal.SIGUSR1)  # the launcher sends it when no step comes
    if parent := os.environ.get("MEDREASON_PARENT"):
        parent_watch.end_with(int(parent))
        parent_watch.end_with(os.getppid())  # torchrun, or the server that forked this process
    config = configuration.read(EvaluationFolder(folder, evaluation_key).config)
    state = processes(config)
    samples = data.samples_of(config)
    reporter = Reporter(folder.progress)
    report = reporter if state.is_main_process else lambda *_: None
    if state.is_main_process:
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        environment.write(folder, gpus, torch.version.cuda if gpus else None)
    with tracking.mirrored(config, folder, evaluation_key, active=state.is_main_process):
        if config.runs.test:
            refuse_long_tests(config, samples)
        if config.method.algorithm != "none" and not folder.state().trained:
            checks.users_functions_are_known(config)  # as this machine finds them
            questions = validation.questions(config, samples)
            train(config, data.trained_on(config, samples), folder, report, questions)
        if config.runs.test:
            evaluate(trained_model(config, folder), samples, folder, evaluation_key, report)
        if state.is_main_process:
            folder.update(state="done", trained=True)
    state.destroy_process_group()


def processes(config: Config) -> PartialState:
    """Join the other ranks, if there are any.

    Raises:
        ValueError: torch finds no GPU, or the ranks are not as many as the profile says.
    """
    device.tune_for_cpu(config.hardware)
    state = device.join(config.hardware)
    if state.num_processes != config.hardware.processes:
        raise ValueError(
            f"{state.num_processes} processes were started (WORLD_SIZE), and hardware="
            f"{config.hardware.name} says {config.hardware.processes} = hardware.nodes * "
            f"hardware.devices = {config.hardware.nodes} * {config.hardware.devices}; start it "
            f"with {command()}, which starts as many as the profile says"
        )
    if config.hardware.parallel in ("zero2", "zero3"):
        import deepspeed  # seconds, and an extra  # pyright: ignore[reportMissingImports]

        # Else it assumes one process when a reference model is loaded.
        deepspeed.init_distributed()
    return state


def _record_error_in(folder: RunFolder) -> ExceptHook:
    """An excepthook that writes the error's first line to state.json, for the table of a sweep."""

    def record(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        first = first_line(error)
        rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        message = first if kind is ValueError else f"{kind.__name__}: {first}"
        if folder.state().error is None:  # the errors of other ranks follow from the first
            folder.update(error=f"{rank}{message}")
        sys.__excepthook__(kind, error, trace)
        if kind is ValueError and str(error) == first and _is_ours(trace):
            notice(f"{supervision.REFUSED}{first}")

    return record


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether a `raise` of medreason is its origin, whose ValueErrors say what to do; not a
    library, nor what Python itself finds wrong in a line."""
    *_, last = [None, *traceback.extract_tb(trace)]
    if last is None or not Path(last.filename).is_relative_to(_PACKAGE):
        return False
    return (last.line or "").startswith("raise ")


_PACKAGE = Path(__file__).resolve().parents[1]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
