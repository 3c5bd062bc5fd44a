"""The first update says how many tensors it moved; a training that moves none is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from medreason import data
from medreason.config import Config
from medreason.runs.run_folder import RunFolder
from medreason.training.run import train
from medreason.training.update_check import UpdateCheck, _digest

sys.path.insert(0, str(Path(__file__).parents[1] / "judging"))
from server import serving

Compose = Callable[..., Config]
SMALL = (
    *("modality=ct", "task=disease", "data.train_images=8", "data.test_images=1"),
    *("method.prompts_per_step=4", "method.trl.max_steps=2", "method.trl.warmup_steps=0"),
)
FOUR = ("method.trl.num_generations=4", "method.trl.max_completion_length=12")
SAMPLED = ("method=grpo", "prompt=no_think", "reward=no_think", *FOUR)
CUT_OFF = (
    *(*SAMPLED, "method.trl.max_completion_length=2"),
    *("method.trl.mask_truncated_completions=true", "runs.checkpoint_steps=1"),
)


def trained(composed: Compose, folder: Path, *overrides: str) -> RunFolder:
    config = composed(*SMALL, *overrides)
    run = RunFolder(folder / "run")
    run.path.mkdir(exist_ok=True)
    samples = data.trained_on(config, data.load(config.data, folder / "cache"))
    train(config, samples, run, lambda *_: None)
    return run


@pytest.mark.parametrize(
    ("overrides", "trained_tensors", "moved"),
    [
        (("method=sft",), 93, 93),
        ((*SAMPLED, "rollout=trl"), 93, 93),
        (SAMPLED, 93, 93),
        # The matrices A have a gradient as soon as B is no longer 0.
        (("method=sft", "adapter=lora_r8"), 16, 8),
        (("method=rarl", *FOUR, "adapter.lora_dropout=0", "method.trl.max_steps=4"), 16, 8),
        (("method=sft", "adapter=qlora"), 56, 28),
    ],
    ids=["sft", "grpo of trl", "grpo", "lora", "rarl", "qlora"],
)
def test_first_update_is_in_log_and_state(
    composed: Compose,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: tuple[str, ...],
    trained_tensors: int,
    moved: int,
) -> None:
    update = trained(composed, tmp_path, *overrides).state().first_update
    still = trained_tensors - moved
    step = update.pop("step")
    assert update == {
        "trained": trained_tensors,
        "moved": moved,
        "without_gradient": still,
        "below_precision": 0,
    }
    words = f"{trained_tensors} trained tensors, {moved} moved, {still} without a gradient, 0 moved"
    assert f"first update, step {step}: {words} less than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("method=sft", "method.trl.learning_rate=0"),
            r"\(93 trained tensors, 0 moved, .*: the rate is 0; set .*learning_rate above 0",
        ),
        (
            (*SAMPLED, "method.trl.learning_rate=0"),
            r".*: the rate is 0; set method\.trl\.learning_rate",
        ),
    ],
    ids=["sft", "grpo"],
)
def test_training_that_moves_nothing_is_refused_with_a_remedy(
    composed: Compose, tmp_path: Path, overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=f"^no weight moved by step 1 {words}"):
        trained(composed, tmp_path, *overrides)
    assert not RunFolder(tmp_path / "run").model.exists()


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (0.0, r"1 without a gradient, .*: the loss does not depend on what is trained; .*adapter"),
        (1.0, r"1 moved less than their precision\): the rate of 0.001 is too small .*=float32"),
    ],
)
def test_tensor_that_stays_as_it_is_is_refused_with_the_reason(
    tmp_path: Path, gradient: float, words: str
) -> None:
    model = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.weight.grad = torch.full_like(model.weight, gradient)
    check, control = UpdateCheck(RunFolder(tmp_path)), TrainerControl()
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    check.on_step_begin(arguments, TrainerState(max_steps=9), control, model)
    check.on_pre_optimizer_step(arguments, TrainerState(max_steps=9), control, model, optimizer)
    optimizer.step()
    with pytest.raises(ValueError, match=words):
        check.on_step_end(arguments, TrainerState(global_step=1, max_steps=9), control, model)


def test_steps_that_teach_nothing_are_trained_on(composed: Compose, tmp_path: Path) -> None:
    run = trained(composed, tmp_path, *CUT_OFF)
    assert [row["step"] for row in run.logged()] == [1, 2]
    assert run.state().first_update["moved"] == 0  # a warning says so


def test_training_that_is_all_warmup_is_warned_of(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warmup = ("method.trl.max_steps=1", "method.trl.warmup_steps=1")
    assert trained(composed, tmp_path, "method=sft", *warmup).state().first_update["moved"] == 0
    words = "no weight moved, .*: the rate warms up from 0 .*; set method.trl.warmup_steps=0 or"
    assert re.search(words, capsys.readouterr().err)


def test_reward_that_no_judge_graded_is_left_out(composed: Compose, tmp_path: Path) -> None:
    with serving() as server:
        run = trained(
            composed,
            tmp_path,
            *("method=grpo", "prompt=no_think", *FOUR, "runs.checkpoint_steps=1"),
            *("reward=rarl_judge", "reward.reasoning.judge=answer"),
            *("judge=openai", f"judge.base_url={server.url}", "judge.attempts=1"),
            "rubric.answer.question='text {question} {answer} {given}'",
        )
        assert server.calls
    rows = run.logged()
    assert len(rows) == 2
    assert any(row["rewards/reasoning/mean"] is None for row in rows)


def test_digest_tells_a_change_that_sums_would_not() -> None:
    values = torch.ones(8)
    moved = values + torch.tensor([1.0, -1, -1, 1, 0, 0, 0, 0]) * torch.finfo(torch.float32).eps
    assert _digest(values) != _digest(moved)
    assert _digest(values) == _digest(values.clone())
    assert _digest(values.bfloat16()) == _digest(values.bfloat16() * (1 + 2**-9))
