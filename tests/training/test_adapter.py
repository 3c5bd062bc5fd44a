"""Adapters of every kind train on the layers they name, and 8-bit optimizer states still train."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners import lora
from run_folders import draw_samples
from safetensors.torch import load_file
from torch import Tensor, nn

from medreason import data
from medreason.config import Config
from medreason.generation import fused_step
from medreason.models.load import load_model, meta_model
from medreason.models.model_folder import EMBEDDED
from medreason.runs.run_folder import RunFolder
from medreason.training import adapter, run
from medreason.training.adapter import LoraLinear
from medreason.training.run import train, trained_model

Compose = Callable[..., Config]
SAMPLED = (  # replies of this form end within 12 tokens, so some are right and some are not
    *("method=grpo", "prompt=no_think", "reward=no_think", "task=disease"),
    *("method.trl.num_generations=4", "method.trl.max_completion_length=12"),
)


@pytest.mark.parametrize(("name", "weights"), [("lora_r8", 1_089_536), ("lora_all", 9_232_384)])
def test_adapter_of_the_2b_has_the_published_size(
    composed: Compose, name: str, weights: int
) -> None:
    config = composed(f"adapter={name}", "model=random_2b", "action=plan")
    model = meta_model(config.model)
    settings = adapter.lora_config(config, model)
    assert settings
    assert adapter.count_parameters(get_peft_model(model, settings))[0] == weights


@pytest.mark.parametrize(
    "target", ["adapter.target_modules=[q_proj,w_proj]", "adapter.target_modules='.*w_proj'"]
)
def test_adapter_on_a_layer_that_is_not_there_lists_those_that_are(
    composed: Compose, target: str
) -> None:
    config = composed("adapter=lora_r8", target)
    with pytest.raises(
        ValueError, match=r"w_proj' matches no layer.*language_model\.layers\.\*\.self_attn\.q_proj"
    ):
        adapter.lora_config(config, meta_model(config.model))


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter=qlora"],
        ["adapter=qlora", *SAMPLED],
        ["adapter=lora_r8", "adapter.use_dora=true"],
        ["hardware.optimizer_states=8bit"],
    ],
    ids=["qlora", "qlora of sampled completions", "dora", "8-bit states"],
)
def test_small_training_moves_every_trained_weight(
    composed: Compose, tmp_path: Path, overrides: list[str]
) -> None:
    config = composed(
        *("method=sft", "modality=ct", "data.train_images=8", "data.test_images=1"),
        *("method.prompts_per_step=4", "method.trl.max_steps=2", "method.trl.learning_rate=1e-3"),
        *("method.trl.warmup_steps=0", *overrides),
    )
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    samples = data.trained_on(config, data.load(config.data, tmp_path / "cache"))
    train(config, samples, folder, lambda *_: None)
    (file,) = folder.model.glob("*.safetensors")
    saved = load_file(file)
    assert 0 < folder.state().trainable_parameters <= folder.state().parameters
    if config.adapter:
        assert folder.state().trainable_parameters == sum(w.numel() for w in saved.values())
        assert all(weight.dtype == torch.float32 for weight in saved.values())
        assert all(weight.any() for name, weight in saved.items() if "lora_B" in name)
    else:
        (file,) = EMBEDDED.glob("*.safetensors")
        before = load_file(file)
        assert not any(torch.equal(weight, before[name].float()) for name, weight in saved.items())
    evaluated = load_model(trained_model(config, folder).model, config.hardware)
    assert all(p.isfinite().all() for p in evaluated.parameters() if p.is_floating_point())


def test_only_the_language_model_is_held_in_4_bits(composed: Compose) -> None:
    config = composed("adapter=qlora")
    model = load_model(config.model, config.hardware)
    packed = [name for name, weight in model.named_parameters() if weight.dtype == torch.uint8]
    assert packed
    assert all("language_model.layers" in name for name in packed)


@pytest.mark.parametrize("autocast", [True, False], ids=["update and rollout", "generate"])
def test_training_in_bfloat16_computes_the_whole_adapter(
    composed: Compose, tmp_path: Path, autocast: bool
) -> None:
    layer = adapted_layer(composed, tmp_path)
    inputs = torch.randn(4, 2048, 128).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = layer(inputs)
    assert outputs.dtype == torch.bfloat16
    assert 0.99 < added_share(layer, inputs, outputs) < 1.01
    gradients = [
        torch.autograd.grad(forward(inputs).float().square().mean(), layer.lora_B.parameters())[0]
        for forward in (layer, functools.partial(lora.Linear.forward, layer))
    ]
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert difference < 0.01


def test_decoding_steps_in_bfloat16_compute_the_whole_adapter(
    composed: Compose, tmp_path: Path
) -> None:
    layer = adapted_layer(composed, tmp_path)
    inputs = torch.randn(8192, 128).bfloat16()
    product = fused_step._joined([layer], torch.bfloat16)
    outputs = product(nn.functional.pad(inputs, (0, product.ranks)))
    assert outputs.dtype == torch.bfloat16
    assert 0.99 < added_share(layer, inputs, outputs) < 1.01


def adapted_layer(composed: Compose, folder: Path) -> LoraLinear:
    """A layer of a trainer in bfloat16 with an adapter as an early training leaves it."""
    config = composed("method=rarl", "hardware.precision=bfloat16", "adapter.lora_dropout=0")
    trainer = run.build(config, draw_samples(folder, 12), RunFolder(folder / "run"), [])
    assert isinstance(trainer.model, PeftModel)
    torch.manual_seed(0)
    layer: Any = next(m for m in trainer.model.modules() if isinstance(m, LoraLinear))
    layer.lora_B.default.weight.data.normal_(std=3e-4)
    return layer


def added_share(layer: LoraLinear, inputs: Tensor, outputs: Tensor) -> float:
    """How much of the adapter is in the outputs."""
    weight, bias = (p.double() for p in layer.get_base_layer().parameters())
    of_base = inputs.double() @ weight.T + bias
    change = inputs.double() @ layer.get_delta_weight("default").double().T
    return (((outputs.double() - of_base) * change).sum() / change.square().sum()).item()
