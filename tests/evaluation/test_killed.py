"""An evaluation that ends while it reads images ahead leaves nobody reading, and goes on."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import commands
import drawn_phantoms
import psutil
import pytest
from PIL import Image
from processes import wait_until_dead

from medreason import config as configuration
from medreason.config import Config
from medreason.evaluation import predictions, run
from medreason.evaluation.answers import answer_rows
from medreason.execution import worker
from medreason.generation import prefix_sharing
from medreason.runs import interrupts
from medreason.runs.files import write_json
from medreason.runs.run_folder import RunFolder
from medreason.samples import Window

Compose = Callable[..., Config]
KEY = "evaluation0"
QUICK = 4
"""Images, the first ones, that are read at once; each of the others takes two seconds."""
SMALL = (
    *("method=base", "data.train_images=1", "data.test_images=4", "evaluation.tasks=[disease]"),
    *("evaluation.controls=[]", "evaluation.max_new_tokens=4", "tracking=none"),
    # Answers reach the disk with each batch.
    *("hardware.per_device_evaluation=2", "hardware.hang_timeout_minutes=1e-9"),
)


def evaluate(path: Path, phantoms: Path | None, *, ahead: bool, slow: bool) -> None:
    """What a worker does in a process of its own; `ahead` as with a GPU."""
    drawn_phantoms.share(phantoms)
    open_at_once, images = prefix_sharing.open_rgb, itertools.count()

    def open_rgb(image: Path, window: Window) -> Image.Image:
        if next(images) >= QUICK and slow:
            time.sleep(2)
        return open_at_once(image, window)

    def answer(*arguments: Any, **settings: Any) -> object:
        return answer_rows(*arguments, **settings | {"images_ahead": ahead})

    prefix_sharing.open_rgb, run.answer_rows = open_rgb, answer
    commands._end_as_python(worker.main, path, KEY)


def start(path: Path, *, ahead: bool = True, slow: bool = False) -> ForkServerProcess:
    settings = {"ahead": ahead, "slow": slow}
    process = commands.SERVER.Process(
        target=evaluate, args=(path, drawn_phantoms.folder), kwargs=settings
    )
    process.start()
    return process


def folder_of(composed: Compose, path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.evaluation(KEY).mkdir(parents=True)
    configuration.write(composed(*SMALL), folder.evaluation(KEY) / "config.yaml")
    write_json(folder.evaluation(KEY) / "data.json", {})
    return folder


def answers_of(folder: RunFolder) -> list[predictions.Prediction]:
    return predictions.read(folder.evaluation(KEY) / "predictions.parquet")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_evaluation_killed_while_images_are_read_ahead_ends_and_goes_on_to_the_same_answers(
    composed: Compose, tmp_path: Path, number: signal.Signals
) -> None:
    killed, plain = (folder_of(composed, tmp_path / name) for name in ("killed", "plain"))
    undisturbed, process = start(plain.path, ahead=False), start(killed.path, slow=True)
    parts = killed.evaluation(KEY) / "parts"
    while not [*parts.glob("*/*.parquet")]:
        assert process.is_alive()
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    os.kill(process.pid, number)
    process.join(30)
    # Four are being read; the two dozen that wait would take twelve seconds.
    assert time.monotonic() - began < 8
    assert process.exitcode == (interrupts.EXIT_CODE if number == signal.SIGTERM else -number)
    wait_until_dead(children)
    answered = sum(len(predictions.read(file)) for file in parts.glob("*/*.parquet"))
    resumed = start(killed.path)
    for finished in (resumed, undisturbed):
        finished.join(120)
        assert finished.exitcode == 0
    assert 0 < answered < len(answers_of(plain))
    assert answers_of(killed) == answers_of(plain)
