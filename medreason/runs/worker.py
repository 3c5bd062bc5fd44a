"""The worker: `python -m medreason.runs.worker FOLDER EVALUATION_KEY`, one process a device.

Trains what is not trained and evaluates what is not evaluated. All it says goes to train.log.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import TracebackType

import torch
from accelerate import PartialState

from medreason import config as configuration
from medreason import data, tracking
from medreason.evaluation.run import evaluate
from medreason.runs import environment, watch
from medreason.runs.ledger import Folder
from medreason.runs.progress import Reporter
from medreason.training.run import train, trained_model


def main() -> None:
    folder, evaluation_key = Folder(Path(sys.argv[1])), sys.argv[2]
    sys.excepthook = _recorder_of_errors(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if parent := os.environ.get("MEDREASON_PARENT"):
        watch.end_with(int(parent))
    config = configuration.read(folder.config)
    cpu = config.hardware.accelerator == "cpu"
    # Before any thread of torch starts. The gradients of tokens a model is sure of are denormal
    # numbers, with which a CPU computes several times slower.
    torch.set_flush_denormal(cpu)
    state = PartialState(cpu=cpu)
    samples = data.load(config.data, config.folder / "cache")
    reporter = Reporter(folder.progress)
    report = reporter if state.is_main_process else lambda *_: None
    if state.is_main_process:
        environment.write(folder)
    with tracking.mirrored(config, folder, active=state.is_main_process):
        if config.method.algorithm != "none" and not folder.state().trained:
            train(config, data.trained_on(config, samples), folder, report)
        evaluate(trained_model(config, folder), samples, folder, evaluation_key, report)
        if state.is_main_process:
            folder.update(state="done", trained=True)
    state.destroy_process_group()


def _recorder_of_errors(folder: Folder):  # noqa: ANN202
    """An excepthook that leaves the error's first line in state.json, for the table of a sweep."""

    def record(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        first = next(iter(str(error).splitlines()), "")
        folder.update(error=f"{kind.__name__}: {first}" if kind is not ValueError else first)
        sys.__excepthook__(kind, error, trace)

    return record


if __name__ == "__main__":
    main()
