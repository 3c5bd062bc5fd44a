"""What is finished is found again, and only where all that decides it is as it was."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import draw_samples, reply, write_run

from medreason import data
from medreason.config import Config, Reward
from medreason.execution import request
from medreason.execution.request import RunRequest, run_request
from medreason.runs import integrity, keys

Compose = Callable[..., Config]

MINE = """
from medreason import phantom
from my_helpers import factor

def short(reply, sample):
    return factor * (len(reply.text) <= 20)

def read(cache, train_images, test_images, seed):
    return phantom.load(cache, train_images=train_images, test_images=test_images, seed=seed)
"""
SMALL = ("data.train_images=8", "data.test_images=1")


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_functions.py").write_text(MINE)
    (tmp_path / "my_helpers.py").write_text("factor = 1.0\n")
    (tmp_path / "my_notes.py").write_text("# a note\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_functions", "my_helpers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return tmp_path


def finish(config: Config) -> RunRequest:
    """Leave what a finished run of this command leaves."""
    request = run_request(config)
    samples = draw_samples(config.folder / "images", per_cell=1)
    keys = {"key": request.train_key, "evaluation_key": request.evaluation_key}
    run = write_run(config, samples, lambda i, s: reply("A"), **keys).run
    integrity.seal(run, request.evaluation_key)
    run.update(train_key=request.train_key, train_parts=request.parts)
    return request


def rewarded(composed: Compose, **settings: str) -> Config:
    config = composed(*SMALL, "method=grpo")
    mine = Reward(score={"_target_": "my_functions.short", **settings})
    return replace(config, reward=config.reward | {"mine": mine})


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "finished"),
    [
        ("my_functions.py", "<= 20", "<= 5", False),
        ("my_helpers.py", "1.0", "0.5", False),
        ("my_notes.py", "a note", "another note", True),
    ],
)
def test_an_edited_reward_is_not_already_finished(
    code: Path, composed: Compose, file: str, old: str, new: str, finished: bool
) -> None:
    before = finish(rewarded(composed))
    assert run_request(rewarded(composed)).evaluation.finished
    edit(code / file, old, new)
    after = run_request(rewarded(composed))
    assert after.evaluation.finished is finished
    if not finished:
        ((key, was, is_now),) = keys.differences(before.parts, after.parts)
        assert key == "reward.mine.score.source"
        assert was != is_now
        assert str(was).startswith("my_functions ")


@pytest.mark.parametrize("method", ["base", "sft"])
def test_an_edited_data_reader_is_not_already_finished(
    code: Path, composed: Compose, method: str
) -> None:
    overrides = (*SMALL, f"method={method}", "data._target_=my_functions.read")
    finish(composed(*overrides))
    assert run_request(composed(*overrides)).evaluation.finished
    edit(code / "my_functions.py", "def read(", "def read(  # all rows")
    assert not run_request(composed(*overrides)).evaluation.finished


def test_a_setting_named_source_still_decides(code: Path, composed: Compose) -> None:
    (code / "my_functions.py").write_text("def short(reply, sample, *, source): return 0.0\n")
    trained = [keys.train_parts(rewarded(composed, source=s), "data", "model") for s in "ab"]
    assert keys.digest(trained[0]) != keys.digest(trained[1])


def test_another_picture_under_the_same_name_and_size_is_not_already_finished(
    composed: Compose,
) -> None:
    small = ("method=sft", *SMALL)
    finish(composed(*small))
    assert run_request(composed(*small)).evaluation.finished
    image = min((composed().folder / "cache").rglob("ct/train-*.png"))
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    image.write_bytes(content)
    _forget()
    assert not run_request(composed(*small)).evaluation.finished


def _forget() -> None:
    """What a process remembers of its data; another start remembers nothing."""
    data._load.cache_clear()
    request._selections.clear()
