"""The trial step computes what a step of training computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedDataParallelKwargs
from run_folders import draw_samples
from torch import Tensor, nn
from transformers import DynamicCache

from medreason.config import Config
from medreason.generation import prefill
from medreason.runs.run_folder import RunFolder
from medreason.training import memory_check, memory_estimate, run, sft, vllm_rollout
from medreason.training.memory_estimate import DeviceBatch

Compose = Callable[..., Config]
SMALL = (
    *("hardware.per_device_prompts=1", "method.prompts_per_step=1", "method.trl.max_steps=1"),
    *("hardware.precision=bfloat16", "method=sft"),  # TRL's GRPO enters autocast itself
)


def test_trial_step_computes_in_the_precision_of_training(
    composed: Compose, tmp_path: Path
) -> None:
    config, samples = composed(*SMALL), draw_samples(tmp_path / "images", 1)
    trainer = run.build(config, samples, RunFolder(tmp_path / "run"), [])
    computed: dict[str, set[torch.dtype]] = {"trial": set(), "training": set()}

    def products_of(stage: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        return lambda _module, _inputs, output: computed[stage].add(output.dtype)

    assert isinstance(trainer.model, nn.Module)
    layer = trainer.model.get_submodule("model.language_model.layers.0.mlp.up_proj")
    hook = layer.register_forward_hook(products_of("trial"))
    memory_check.trial_step(config, trainer, samples)
    hook.remove()
    layer.register_forward_hook(products_of("training"))
    trainer.train()
    assert computed == {"trial": {torch.bfloat16}, "training": {torch.bfloat16}}


@pytest.mark.parametrize("update", ["grouped", "trl"])
def test_trial_step_of_vllm_draws_nothing_and_passes_its_gate(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: str
) -> None:
    monkeypatch.setattr(vllm_rollout, "Engine", lambda **_: SimpleNamespace())
    grpo = ("method=grpo", "rollout=vllm", f"rollout.update={update}", "hardware=cpu")
    config, samples = composed(*SMALL[:3], *grpo), draw_samples(tmp_path / "images", 1)
    trainer = run.build(config, samples, RunFolder(tmp_path / "run"), [])
    _, batch = memory_check.trial_step(config, trainer, samples)
    assert batch.shared is (update == "grouped")
    planned = memory_estimate.largest_batch(config, text_tokens=9, target_tokens=0, pixels=784)
    assert planned.shared is batch.shared
    assert batch.completion_tokens == config.method.trl["max_completion_length"]


def test_buckets_of_ddp_are_counted_where_gradients_lie_beside_them(composed: Compose) -> None:
    batch = DeviceBatch(1, 1, 300, 16, 784, shared=False)
    sizes = {}
    for profile, prompts in (("gpu", 2), ("gpu_x2", 2), ("gpu_x2", 4)):
        config = composed(
            *("action=plan", "method=sft", "model=random_2b", f"hardware={profile}"),
            f"method.prompts_per_step={prompts}",
        )
        estimate = memory_estimate.estimate(config, batch)
        later = memory_check._allocated_later(config, 1000)
        sizes[profile, config.accumulation] = (8 * estimate.gradients // estimate.states, later)
    assert sizes == {("gpu", 2): (4, 8000), ("gpu_x2", 1): (4, 8000), ("gpu_x2", 2): (8, 12000)}


def test_gradients_of_ddp_are_views_of_its_buckets(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = []

    def distributed(trainer: sft.PortableSFTTrainer, *inputs: Any, **settings: Any) -> None:
        initialize(trainer, *inputs, **settings)
        trainer.accelerator.ddp_handler = DistributedDataParallelKwargs()
        handlers.append(trainer.accelerator.ddp_handler)

    initialize = sft.PortableSFTTrainer.__init__
    monkeypatch.setattr(sft.PortableSFTTrainer, "__init__", distributed)
    samples = draw_samples(tmp_path / "images", 1)
    run.build(composed(*SMALL), samples, RunFolder(tmp_path / "run"), [])
    assert [handler.to_kwargs() for handler in handlers] == [{"gradient_as_bucket_view": True}]


@pytest.mark.parametrize("adapter", ["none", "lora_r8"])
def test_trial_step_holds_what_drawing_a_whole_step_takes(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    config = composed(
        *("method=grpo", f"adapter={adapter}", "rollout.draft_tokens=0", "method.trl.beta=0"),
        *("hardware.per_device_prompts=1", "method.prompts_per_step=2", "method.trl.max_steps=1"),
        *("method.trl.num_generations=4", "method.trl.max_completion_length=64"),
    )
    samples = draw_samples(tmp_path / "images", 2)
    trainer = run.build(config, samples, RunFolder(tmp_path / "run"), [])
    held: list[int] = []
    drawn: list[int] = []
    reserved, repeated = memory_check._reserved, prefill.repeat_kv_cache

    def record(count: int, device: torch.device) -> Tensor:
        held.append(count)
        return reserved(count, device)

    def record_cache(*arguments: Any) -> DynamicCache:
        cache = repeated(*arguments)
        layers: list[Any] = cache.layers
        drawn.append(sum(layer._buffers.nbytes for layer in layers))
        return cache

    monkeypatch.setattr(memory_check, "_reserved", record)
    monkeypatch.setattr(prefill, "repeat_kv_cache", record_cache)
    memory_check.trial_step(config, trainer, samples)
    assert not drawn
    trainer.train()
    _states, drawing, stays = held
    assert stays == 0
    assert drawn
    assert drawing == pytest.approx(max(drawn), rel=0.1)
