"""What validation costs: CPU seconds of the demo's trainings and of the validations in them.

    python experiments/validation/cost.py [--rounds 1] [--methods sft,grpo,rarl] [OVERRIDE ...]

One thread; the demo's 120 updates with a validation after 25, 50, 75, 100 and 120. Overrides change
either. With several rounds each method is trained so often, in turn, and the medians of equal work
count: other programs on the machine lengthen CPU seconds, too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from hydra import compose, initialize_config_dir

from medreason import config as configuration
from medreason import data
from medreason.config import CONF, Config
from medreason.console import show
from medreason.data import validation
from medreason.execution import worker
from medreason.runs.run_folder import RunFolder
from medreason.training import run as training
from medreason.training.validation import Validator

SETTINGS = ("experiment=smoke/demo", "hardware.threads=1")


class TimedValidator(Validator):
    """Sums the CPU seconds of its validations."""

    seconds: ClassVar[list[float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        begin, asked = time.process_time(), len(self.trainer.state.log_history)
        super().on_step_end(*args, **kwargs)
        if len(self.trainer.state.log_history) > asked:
            self.seconds.append(time.process_time() - begin)


def measure(config: Config, folder: Path) -> tuple[float, list[float]]:
    """(CPU seconds of the whole training, of each of its validations)."""
    TimedValidator.seconds = []
    samples = data.samples_of(config)
    trained, questions = data.trained_on(config, samples), validation.questions(config, samples)
    begin = time.process_time()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # the lines of steps
        training.train(config, trained, RunFolder(folder), lambda *_: None, questions=questions)
    return time.process_time() - begin, TimedValidator.seconds


def configured(folder: str, method: str, overrides: Sequence[str]) -> Config:
    words = [*SETTINGS, f"outputs={folder}", f"method={method}", *overrides]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return configuration.load(compose("config", overrides=words))


def report(name: str, whole: float, validations: Sequence[float]) -> None:
    each = " ".join(f"{seconds:.2f}" for seconds in validations)
    share = 100 * sum(validations) / whole
    show(f"{name}: {whole:.1f} s, of which validations {each}: {share:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--methods", default="sft,grpo,rarl")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    training.Validator = TimedValidator
    torch.set_num_threads(1)
    measured: dict[str, list[tuple[float, list[float]]]] = {}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for method in arguments.methods.split(","):
                config = configured(folder, method, arguments.overrides)
                worker.processes(config)
                measured.setdefault(method, []).append(measure(config, Path(folder) / method))
                report(method, *measured[method][-1])
    wholes = [median(whole for whole, _ in rounds) for rounds in measured.values()]
    validations = [
        [median(times) for times in zip(*(times for _, times in rounds), strict=True)]
        for rounds in measured.values()
    ]
    if arguments.rounds > 1:
        for method, whole, times in zip(measured, wholes, validations, strict=True):
            report(f"{method}, medians", whole, times)
    report("all", sum(wholes), [sum(times) for times in validations])


if __name__ == "__main__":
    main()
