"""What finished runs took says what is ahead: a letter is not a reply."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from run_folders import draw_samples, reply, write_run

from medreason.config import Config
from medreason.execution.throughput import Throughput
from medreason.runs.files import read_json, write_json

Compose = Callable[..., Config]


def finished(
    config: Config, folder: Path, key: str, seconds: float, forms: Sequence[Sequence[str]]
) -> None:
    """A run whose evaluations of these forms took so many seconds together."""
    run = write_run(
        config,
        draw_samples(folder),
        lambda *_: reply("A"),
        key=key,
        logs=[{"step": 10, "loss": 1.0, "validation/seconds": 5.0}],
        train_seconds=25.0,
        attempts=1,
        evaluate_seconds=seconds,
    )
    metrics = read_json(run.path / "metrics.json")
    run = run.run
    keys = [f"evaluation{i}" for i in range(len(forms))]
    for name, answers in zip(keys, forms, strict=True):
        if not run.evaluation(name).exists():
            shutil.copytree(run.evaluation(keys[0]), run.evaluation(name))
        write_json(run.evaluation(name) / "metrics.json", metrics | {"answers": answers})
    run.update(evaluations=keys)


def test_letters_and_replies_have_a_rate_each(composed: Compose, tmp_path: Path) -> None:
    replies, letters = composed(), composed("evaluation=option_likelihood")
    rows = 72  # 36 questions, each about a blank image too
    finished(replies, tmp_path, "a" * 12, 2.0 * rows, [["generated"]])
    finished(letters, tmp_path, "b" * 12, 0.1 * rows, [["option_likelihood"]])
    rates = Throughput(replies.folder / "runs")
    assert rates.evaluation(replies) == pytest.approx(2.0)
    assert rates.evaluation(letters) == pytest.approx(0.1)
    assert rates.validation(letters) == pytest.approx(2.0)
    assert rates.training(replies) == 2.0  # without the seconds of its validation


def test_seconds_of_several_forms_together_are_of_none(composed: Compose, tmp_path: Path) -> None:
    config = composed()
    finished(config, tmp_path, "a" * 12, 90.0, [["generated"], ["option_likelihood"]])
    assert Throughput(config.folder / "runs").evaluation(config) is None
