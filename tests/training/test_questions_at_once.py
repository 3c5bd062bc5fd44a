"""`hardware.per_device_prompts=auto` takes as many questions at once as fit by the estimate."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from medreason import data
from medreason.config import Config
from medreason.runs.keys import evaluation_parts, train_parts
from medreason.runs.run_folder import RunFolder
from medreason.training import memory_limits
from medreason.training.memory_limits import memory_lines, with_questions_at_once
from medreason.training.run import train

Compose = Callable[..., Config]
STEP = ("method=sft", "method.prompts_per_step=24", "hardware.per_device_prompts=auto")


@pytest.mark.parametrize(("fits", "larger"), [(1, 2), (4, 6), (8, 12), (24, None)])
def test_the_largest_divisor_of_a_step_that_fits_is_taken(
    composed: Compose, fits: int, larger: int | None
) -> None:
    whole = composed(*STEP, "hardware.device_gb=1000")
    takes = {
        questions: memory_limits._estimate(
            composed(*STEP[:2], f"hardware.per_device_prompts={questions}"), []
        ).peak
        for questions in (fits, larger)
        if questions
    }
    assert with_questions_at_once(whole, [])[0].hardware.questions_at_once == 24
    room = (takes[fits] + 1) / 0.85 / 1e9
    config, chosen = with_questions_at_once(composed(*STEP, f"hardware.device_gb={room}"), [])
    assert config.hardware.per_device_prompts == str(fits)
    assert config.accumulation == 24 // fits
    assert chosen is not None
    which = "" if larger else ", the whole step"
    takes = "1 question at once takes" if fits == 1 else f"{fits} questions at once take"
    assert f"hardware.per_device_prompts=auto is {fits}{which}: {takes} about " in chosen
    assert (f", and {larger} about " if larger else " GiB (an estimate may fill 85% of") in chosen


AUTO = (*STEP, "hardware.gradient_checkpointing=auto")


def peak(composed: Compose, questions: int, *, again: bool) -> int:
    cut = (f"hardware.per_device_prompts={questions}", f"hardware.gradient_checkpointing={again}")
    return memory_limits._estimate(composed(*STEP[:2], *cut), []).peak


def room_for(composed: Compose, questions: int, *, again: bool) -> str:
    return f"hardware.device_gb={(peak(composed, questions, again=again) + 1) / 0.85 / 1e9}"


def test_checkpointing_is_chosen_by_what_is_faster(composed: Compose) -> None:
    config, chosen = with_questions_at_once(composed(*AUTO, "hardware.device_gb=1000"), [])
    assert not config.hardware.recomputes
    assert config.hardware.questions_at_once == 24
    assert chosen is not None
    assert "hardware.gradient_checkpointing=auto is false: activations are kept" in chosen
    told = "with true, which computes them twice and has room for 24 questions at once, an update "
    assert re.search(rf"{told}takes 1\.\d\d times as long \(estimated\)", chosen)

    # Where only recomputing takes the whole step at once, and micro-batches are small.
    config, chosen = with_questions_at_once(composed(*AUTO, room_for(composed, 24, again=True)), [])
    assert config.hardware.recomputes
    assert config.hardware.questions_at_once == 24
    assert chosen is not None
    assert "auto is true: activations are computed twice, which saves memory; with false" in chosen
    assert "times as long (estimated)" in chosen


def test_checkpointing_is_chosen_where_nothing_else_fits(composed: Compose) -> None:
    given = (*STEP[:2], "hardware.per_device_prompts=24", AUTO[-1])
    for again in (False, True):
        room = room_for(composed, 24, again=again)
        config, chosen = with_questions_at_once(composed(*given, room), [])
        assert config.hardware.recomputes == again
        assert config.hardware.questions_at_once == 24
        assert chosen is not None
        assert chosen.startswith(f"hardware.gradient_checkpointing=auto is {str(again).lower()}: ")
    assert chosen.endswith("auto is true: without, the activations do not fit")
    lines = memory_lines(composed(*given, "hardware.device_gb=0.5"), [])
    assert "gradient_checkpointing=auto is true" in lines[1]


def test_plan_says_what_was_chosen_and_why(composed: Compose) -> None:
    lines = memory_lines(composed(*STEP, "hardware.device_gb=2"), [])
    assert any(line.startswith("hardware.per_device_prompts=auto is ") for line in lines)
    assert "an estimate may fill 85% of 1.9 GiB" in "".join(lines)
    assert len(memory_lines(composed(*STEP[:2]), [])) == 1


def test_what_does_not_fit_at_all_is_planned_with_its_remedies(composed: Compose) -> None:
    lines = memory_lines(composed(*STEP, "hardware.device_gb=0.5"), [])
    smallest = r"auto is 1, the smallest: it takes about \S+ GiB, more than the 0\.5 GiB that"
    assert re.search(smallest, lines[1])
    assert "does not fit into 0.5 GiB" in lines[2]


def test_a_model_of_unknown_memory_is_not_said_to_be_too_large(composed: Compose) -> None:
    unknown = composed(*AUTO, "hardware.device_gb=40", "model.path=owner/not-here")
    _, chosen = with_questions_at_once(unknown, [])
    assert str(chosen).endswith("auto is true: what the model takes of memory is not known")


def test_several_devices_share_a_step(composed: Compose) -> None:
    two = composed(*STEP, "hardware.devices=2", "hardware.device_gb=1000")
    _, chosen = with_questions_at_once(two, [])
    share = "is 12, a device's whole share of a step: 12 questions at once take about "
    assert share in str(chosen)


@pytest.mark.parametrize(
    ("hardware", "decides"),
    [
        ("hardware.memory_check=true", "the memory check before the first update"),
        ("hardware.memory_check=false", "the first update"),
    ],
)
@pytest.mark.parametrize("questions", ["auto", "1"])
def test_what_fits_by_a_margin_below_that_of_the_estimate_is_said_to_be_open(
    composed: Compose, hardware: str, decides: str, questions: str
) -> None:
    room = f"hardware.device_gb={peak(composed, 1, again=False) / 0.95 / 1e9}"
    given = f"hardware.per_device_prompts={questions}"
    _, line = memory_lines(composed(*STEP[:2], given, hardware, room), [])
    said = "auto is 1, the smallest: it takes about" if questions == "auto" else "about"
    filled = r"more than the 85% of \S+ GiB that an estimate may fill"
    open_until = f"it may still fit, {decides} shows it"
    assert re.fullmatch(rf".*{said} \S+ GiB(,| are) {filled}: {open_until}", line)


def test_a_device_of_unknown_memory_takes_one_question(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_limits, "device_limit_bytes", lambda _: None)
    config, chosen = with_questions_at_once(composed(*STEP), [])
    assert config.hardware.questions_at_once == 1
    assert "set hardware.device_gb" in str(chosen)
    config, chosen = with_questions_at_once(composed(*AUTO), [])
    assert config.hardware.recomputes
    assert str(chosen).endswith("auto is true: the device's memory is not known")
    assert len(memory_lines(composed(*STEP[:2]), [])) == 1


def test_the_split_is_in_no_key(composed: Compose) -> None:
    automatic, given = composed(*STEP), composed(*STEP[:2], "hardware.per_device_prompts=3")
    assert train_parts(automatic, "0", "") == train_parts(given, "0", "")
    assert evaluation_parts(automatic, "0", "0") == evaluation_parts(given, "0", "0")


def test_a_training_takes_what_was_chosen(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("method=sft", "modality=ct", "data.train_images=4", "data.test_images=1")
    steps = ("method.trl.max_steps=2", "method.prompts_per_step=4", "hardware.threads=1")
    given = composed(*small, *steps, "hardware.per_device_prompts=2")
    samples = data.trained_on(given, data.load(given.data, tmp_path / "cache"))
    room = (memory_limits._estimate(given, samples).peak + 1) / 0.85 / 1e9  # for two, not for four
    automatic = composed(
        *(*small, *steps, "hardware.per_device_prompts=auto", f"hardware.device_gb={room}")
    )
    losses = []
    for name, config in (("given", given), ("chosen", automatic)):
        folder = RunFolder(tmp_path / name)
        train(config, samples, folder, lambda *_: None)
        losses.append([row["loss"] for row in folder.logged() if "loss" in row])
    assert losses[0] == losses[1]
    said = "hardware.per_device_prompts=auto is 2: 2 questions at once take about"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("value", ["many", "0", "-1", "1.5"])
def test_other_values_are_refused(composed: Compose, value: str) -> None:
    with pytest.raises(ValueError, match=rf"hardware\.per_device_prompts={value}"):
        composed("method=sft", f"hardware.per_device_prompts={value}")


def test_micro_batches_cannot_be_counted_where_their_size_is_open(composed: Compose) -> None:
    grpo = ("method=grpo", "+method.trl.steps_per_generation=4")
    with pytest.raises(ValueError, match=r"steps_per_generation=4 counts micro-batches"):
        composed(*grpo, "hardware.per_device_prompts=auto")
