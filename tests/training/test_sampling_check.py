"""Log-probabilities of drawing and update are compared in every step, whatever draws."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from trl import GRPOTrainer

from medreason import data, phantom
from medreason.config import Config
from medreason.models.load import load_model, load_processor
from medreason.runs.run_folder import RunFolder
from medreason.samples import TASKS, Sample
from medreason.training import grpo, sampling_check, vllm_rollout
from medreason.training.grouped_trainer import GroupedGRPOTrainer
from medreason.training.sampling_check import SamplingCheck, without_dropout
from medreason.training.vllm_rollout import VllmGRPOTrainer

Compose = Callable[..., Config]
SMALL = (
    *("modality=ct", "method.prompts_per_step=2", "hardware.per_device_prompts=1"),
    *("method.trl.num_generations=2", "method.trl.max_completion_length=12"),
    *("method.trl.learning_rate=1e-4", "method.trl.max_steps=2"),
)
MEAN, MOST = (f"sampling/sampling_logp_difference/{kind}" for kind in ("mean", "max"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    loaded = phantom.load(tmp_path_factory.mktemp("cache"), train_images=2, test_images=1, seed=0)
    return data.select(loaded, "train", ["ct"], TASKS)


Build = Callable[..., GRPOTrainer]


@pytest.fixture
def built(composed: Compose, samples: list[Sample], tmp_path: Path) -> Build:
    def build(*overrides: str) -> GRPOTrainer:
        config = composed(*SMALL, *overrides)
        model = load_model(config.model, config.hardware, full_precision=not config.adapter)
        processor = load_processor(config.model)
        trainer = grpo.trainer(config, samples, model, processor, RunFolder(tmp_path), [])
        trainer.reward_funcs[1:] = [lambda completion_ids, **_: [0.0] * len(completion_ids)]
        # They differ within a group, or it would have no loss.
        trainer.reward_funcs[0] = lambda completion_ids, **_: [
            float(i % 2) for i, _ in enumerate(completion_ids)
        ]
        return trainer

    return build


def weights(trainer: GRPOTrainer) -> dict[str, Tensor]:
    assert isinstance(trainer.model, nn.Module)
    named = trainer.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("method.trl.temperature=0.7", "method.trl.top_p=0.8", "method.trl.top_k=20"),
        ("method.trl.num_iterations=2", "+method.trl.off_policy_mask_threshold=0.1"),
        (
            *("adapter=lora_r8", "adapter.lora_dropout=0.5", "rollout.dynamic_sampling=1"),
            # A rate with which the second step's log-probabilities differ by 0.02 with dropout.
            *("method.trl.learning_rate=1e-2", "hardware.per_device_prompts=2"),
        ),
    ],
    ids=["plain", "truncated", "old policy", "dropout"],
)
def test_each_step_logs_the_differences_and_learns_the_same_bits(
    built: Build, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    checked = built(*more)
    checked.train()
    logs = [row for row in checked.state.log_history if "loss" in row]
    # With two iterations the second step learns from completions of the weights before the first.
    expected = [True, "method.trl.num_iterations=2" not in more]
    assert [MEAN in row for row in logs] == [MOST in row for row in logs] == expected
    for row in logs[: sum(expected)]:
        assert 0 < row[MEAN] <= row[MOST] < 1e-4
    monkeypatch.setattr(SamplingCheck, "compare_with_drawn", lambda *_: None)
    unchecked = built(*more)
    unchecked.train()
    assert MEAN not in unchecked.state.log_history[0]
    assert all(torch.equal(w, weights(unchecked)[name]) for name, w in weights(checked).items())


@pytest.mark.parametrize(
    "more", [(), ("adapter=lora_r8", "adapter.lora_dropout=0.5")], ids=["all weights", "dropout"]
)
def test_rollout_of_other_weights_ends_before_the_first_update(
    built: Build, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    trainer = built(*more)
    assert isinstance(trainer, GroupedGRPOTrainer)
    before, sample = weights(trainer), trainer._sample

    def of_other_weights(model: nn.Module, *inputs: Any) -> object:
        head = model.get_output_embeddings().weight.data  # pyright: ignore
        head *= 1.05
        drawn = sample(model, *inputs)  # pyright: ignore
        head /= 1.05
        return drawn

    monkeypatch.setattr(trainer, "_sample", of_other_weights)
    words = (
        r"^rollout=grouped draws from another model.*at most 0\.001 with hardware\.precision="
        r"float32.*drafts \(set rollout\.draft_tokens=0\), stored vision.*\(rollout=trl\)$"
    )
    with pytest.raises(RuntimeError, match=words):
        trainer.train()
    assert trainer.state.global_step == 0
    for name, weight in weights(trainer).items():
        torch.testing.assert_close(weight, before[name])


@pytest.mark.parametrize("correction", ["true", "false"])
@pytest.mark.parametrize("update", ["grouped", "trl"])
def test_vllm_is_compared_with_and_without_importance_weights(
    built: Build, monkeypatch: pytest.MonkeyPatch, update: str, correction: str
) -> None:
    monkeypatch.setattr(vllm_rollout, "Engine", lambda **_: SimpleNamespace())
    weighed = f"+rollout.vllm.vllm_importance_sampling_correction={correction}"
    trainer = built("rollout=vllm", f"rollout.update={update}", weighed)
    end = trainer.eos_token_ids[0]
    rows = [[30, 40, end], [50, end]]

    def drawn(prompts: list[list[int]], *_: object, **__: object) -> tuple[Any, Any]:
        ids = [rows[i % 2] for i, _ in enumerate(prompts)]
        return ids, [[-0.5] * len(row) for row in ids]

    trainer._generate_single_turn = drawn
    with pytest.raises(RuntimeError, match=r"^rollout=vllm draws from another model.*choose rol"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_settings_with_which_vllm_is_not_compared_are_named(
    built: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vllm_rollout, "Engine", lambda **_: SimpleNamespace())
    with caplog.at_level(logging.WARNING):
        built("rollout=vllm")
        assert "does not compare" not in caplog.text
        built("rollout=vllm", "method.trl.top_p=0.9", "method.trl.top_k=5")
    assert "update with method.trl.top_p=0.9, method.trl.top_k=5: vLLM gives" in caplog.text


@pytest.mark.parametrize(
    ("difference", "precision", "rounding", "words"),
    [
        (0.0005, "float32", 0.0, None),
        (
            0.002,
            "float32",
            1e-6,
            r"differ by 0\.002 on average \(at most 0\.001 with hardware\.precision",
        ),
        (0.02, "bfloat16", 0.0, None),
        (0.07, "bfloat16", 0.01, "rollout=vllm draws from another model than the update"),
        # Random weights of a 2B on a GPU.
        (0.1, "bfloat16", 0.09, None),
        (0.2, "bfloat16", 0.09, r"at most 0\.18 with"),
    ],
)
def test_other_log_probabilities_end_the_run(
    difference: float, precision: str, rounding: float, words: str | None
) -> None:
    differences = torch.full((2, 4), difference)
    differences[0, 0] = float("nan")  # vLLM has none for it
    differences[:, 3] = 100.0  # padding
    batch = {
        "sampling_per_token_logps": -differences,
        "completion_mask": torch.tensor([[1, 1, 1, 0]] * 2),
    }
    check = object.__new__(VllmGRPOTrainer)
    check._precision, check._compared, check.use_vllm = precision, (0.0, 0.0, 0.0), True
    check.rounding = rounding
    check.accelerator = Accelerator(cpu=True)
    with pytest.raises(RuntimeError, match=words) if words else nullcontext():
        check._refuse_other_model(-sampling_check._drawn(batch))
    assert check._compared[1] == 5


def test_dropout_is_off_while_log_probabilities_are_compared() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Dropout(0.5).eval())
    with without_dropout(model):
        assert model.training
        assert not model[1].training
    assert model[1].training
    assert not model[2].training
