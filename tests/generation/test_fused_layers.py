"""Layers in few kernels compute what transformers' layers do, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import GenerationConfig, PreTrainedModel

from medreason.config import Config, Hardware, Model
from medreason.evaluation import run
from medreason.generation import (
    fused_layers,
    fused_operators,
    fused_step,
    kept_graphs,
    packed_attention,
    packing,
)
from medreason.generation.cuda_graph import CudaGraphStep
from medreason.generation.decoding import CompletionTokens, decode
from medreason.generation.fused_step import FusedStep, takes_fused_steps
from medreason.generation.kept_graphs import DecodingGraphs
from medreason.generation.prefill import mrope_positions, prefill_prompts
from medreason.models.load import load_model, without_adapter
from medreason.models.merging import with_exact_layers
from medreason.training.adapter import LoraLinear

Compose = Callable[..., Config]
FAMILIES = pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
GRIDS = torch.tensor([[1, 4, 6], [1, 6, 10]])
"""Of the images of two questions; a window of the tiny Qwen2.5-VL is 4 x 4 patches."""
LIMIT = 24


@pytest.fixture
def load(qwen2_5_vl: Path) -> Callable[..., PreTrainedModel]:
    def loaded(family: str, precision: str = "float32") -> PreTrainedModel:
        path = "tiny" if family == "qwen2_vl" else str(qwen2_5_vl)
        return load_model(
            Model(name="tiny", path=path), Hardware("cpu", "cpu", 1, "1", 1, precision)
        ).eval()

    return loaded


def with_lora(model: PreTrainedModel) -> PeftModel:
    """With an adapter that changes what its layers compute."""
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0)
    settings._register_custom_module({nn.Linear: LoraLinear})
    torch.manual_seed(0)
    adapted: Any = get_peft_model(model, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    return adapted.eval()


def prompts(model: PreTrainedModel | PeftModel, seed: int = 1) -> dict[str, Tensor]:
    """Two questions about an image each, padded on the left."""
    image = model.config.image_token_id
    rows = [
        [20, *[image] * (int(grid.prod()) // 4), *range(30, 30 + text)]
        for grid, text in zip(GRIDS, (9, 5), strict=True)
    ]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    draw = torch.Generator().manual_seed(seed)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == image).int(),
        "pixel_values": torch.randn(int(GRIDS.prod(-1).sum()), 1176, generator=draw),
        "image_grid_thw": GRIDS,
    }


def update(
    model: PreTrainedModel | PeftModel,
    *,
    by_blocks: bool | None = None,
    autocast: bool = False,
    seed: int = 1,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(log-probabilities of the tokens of three completions of each question, gradients of a loss
    of them, log-probabilities of all tokens in their places)."""
    inputs = prompts(model, seed)
    base: Any = without_adapter(model)
    packed_attention.enable(base)
    draw = torch.Generator().manual_seed(2)
    lengths = torch.tensor([[5, 2, 7], [3, 7, 1]])
    packed = packing.pack(
        inputs["input_ids"],
        inputs["attention_mask"],
        mrope_positions(model, inputs),
        torch.randint(20, 400, (2, 3, 7), generator=draw),
        (torch.arange(7) < lengths[..., None]).long(),
    )
    dtype = torch.bfloat16 if autocast else base.dtype
    attention = packed_attention.attention_inputs(base, packed, dtype, by_blocks=by_blocks)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            pixel_values=inputs["pixel_values"].to(base.dtype),
            image_grid_thw=GRIDS,
            **attention,
        ).logits
    of_all_tokens = logits.float().log_softmax(-1)
    tokens = packed.labels.clamp(min=0)[..., None]
    logps = packing.unpack(of_all_tokens.gather(-1, tokens)[..., 0], packed)
    model.zero_grad()
    (logps * torch.randn(logps.shape, generator=draw)).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logps.detach(), gradients, of_all_tokens[packed.labels >= 0].detach()


def relative(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients over their norm."""
    assert gradients.keys() == expected.keys()
    differences = torch.stack([(gradients[n] - g).norm() for n, g in expected.items()])
    return float(differences.norm() / torch.stack([g.norm() for g in expected.values()]).norm())


@FAMILIES
@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("by_blocks", [True, False], ids=["by blocks", "under one mask"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_logps_and_gradients_of_an_update_are_those_of_transformers_layers(
    load: Callable[..., PreTrainedModel],
    family: str,
    adapter: bool,
    by_blocks: bool,
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[int] = []
    gated = fused_operators.gated
    counted = lambda gate, up: runs.append(1) or gated(gate, up)  # noqa: E731
    monkeypatch.setattr(fused_operators, "gated", counted)

    def computed(*, fused: bool) -> tuple[Tensor, dict[str, Tensor]]:
        model: Any = load(family)
        if fused:
            assert fused_layers.fuse(model)
        runs.clear()  # of a small model, tried once
        model = with_lora(model) if adapter else model
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        return update(model, by_blocks=by_blocks)[:2]

    (expected, gradients), (logps, fused_gradients) = computed(fused=False), computed(fused=True)
    assert (logps - expected).abs().max() < 1e-5
    assert len(gradients) > 40
    assert relative(fused_gradients, gradients) < 1e-5
    if family == "qwen2_vl":  # whose tower has no gates
        layers = load(family).config.get_text_config().num_hidden_layers
        assert len(runs) == layers * (2 if checkpointing else 1)


@FAMILIES
@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
def test_bfloat16_is_no_further_from_float32_than_with_transformers_layers(
    load: Callable[..., PreTrainedModel], family: str, kind: str
) -> None:
    exact_model, models = (
        load(family),
        [load(family, "bfloat16" if kind == "bfloat16" else "float32") for _ in range(2)],
    )
    assert fused_layers.fuse(models[1])
    errors = torch.zeros(2, 2)  # (transformers' and fused, of log-probabilities and gradients)
    for seed in range(16):
        _, exact_gradients, exact = update(exact_model, seed=seed)
        for row, model in zip(errors, models, strict=True):
            _, gradients, logps = update(model, autocast=kind == "autocast", seed=seed)
            row[0] += (logps - exact).abs().mean()
            row[1] += relative({n: g.float() for n, g in gradients.items()}, exact_gradients)
    assert (errors[1] <= 1.05 * errors[0]).all()


@pytest.mark.parametrize("distributed", [False, True])
def test_gradients_of_micro_batches_add_up(
    load: Callable[..., PreTrainedModel], distributed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("qwen2_vl")
    assert fused_layers.fuse(model)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: distributed)
    _, first, _ = update(model, autocast=True, seed=1)
    _, second, _ = update(model, autocast=True, seed=2)
    update(model, autocast=True, seed=1)
    monkeypatch.setattr(model, "zero_grad", lambda: None)
    _, both, _ = update(model, autocast=True, seed=2)
    assert relative(both, {name: first[name] + second[name] for name in first}) < 1e-6
    assert all(gradient.dtype == torch.float32 for gradient in both.values())


def test_windows_of_an_image_are_attended_in_a_call_for_each_size(
    load: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pixels = load("qwen2_5_vl"), prompts(load("qwen2_5_vl"))["pixel_values"]
    tower: Any = model.model.visual
    expected = tower(pixels, GRIDS)
    assert fused_layers.fuse(model)
    calls: list[torch.Size] = []

    def counted(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        calls.append(query.shape)
        return scaled_dot_product_attention(query, key, value, **settings)

    monkeypatch.setattr(fused_layers, "scaled_dot_product_attention", counted)
    features = tower(pixels, GRIDS)
    assert (features.pooler_output - expected.pooler_output).abs().max() < 1e-5
    # Of 4 x 4, 4 x 2, 2 x 4 and 2 x 2 patches in two layers; in the one between, whole images.
    windows, images = [(1, 4), (4, 8), (3, 16)], [(1, 24), (1, 60)]
    assert [(shape[0], shape[2]) for shape in calls] == [*windows, *images, *windows]


def decoded(
    model: PreTrainedModel | PeftModel, *, graphs: bool, sampled: bool
) -> list[CompletionTokens]:
    with torch.no_grad():
        prefill = prefill_prompts(model, prompts(model), completions=4, room=LIMIT)  # pyright: ignore
    settings = GenerationConfig(
        do_sample=sampled, temperature=2.0, max_new_tokens=LIMIT, eos_token_id=[*range(100, 120)]
    )
    numbers = torch.rand(LIMIT, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    numbers, kept = numbers if sampled else None, DecodingGraphs() if graphs else None
    return decode(model, prefill, settings, numbers, graphs=kept)  # pyright: ignore


@FAMILIES
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("adapter", ["none", "trained", "exact"])
def test_steps_in_few_kernels_decode_the_tokens_of_transformers_layers(
    load: Callable[..., PreTrainedModel],
    family: str,
    sampled: bool,
    adapter: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_graphs, "WINDOW", 7)
    model: Any = load(family)
    if adapter != "none":
        model = with_lora(model)
    if adapter == "exact":
        model = with_exact_layers(model, torch.float32)
    expected = decoded(model, graphs=False, sampled=sampled)
    steps = 0
    call = FusedStep.__call__

    def counted(step: FusedStep, *args: Any) -> Tensor:
        nonlocal steps
        steps += 1
        return call(step, *args)

    monkeypatch.setattr(FusedStep, "__call__", counted)
    for _ in range(2):  # the second time, frozen layers are joined already
        completions = decoded(model, graphs=True, sampled=sampled)
        assert [row.ids for row in completions] == [row.ids for row in expected]
        for row, plain in zip(completions, expected, strict=True):
            assert row.logps == pytest.approx(plain.logps, abs=1e-5)
    assert steps > LIMIT / 2
    # Of whatever the steps have joined, the layers compute the same as before.
    again = decoded(model, graphs=False, sampled=sampled)
    assert [row.ids for row in again] == [row.ids for row in expected]


@FAMILIES
def test_frozen_weights_are_held_once_and_trained_ones_stay_their_own(
    load: Callable[..., PreTrainedModel], family: str
) -> None:
    model: Any = load(family)
    layer = model.model.language_model.layers[0].self_attn
    before = copy.deepcopy(model.state_dict())
    own = layer.q_proj.weight.untyped_storage().data_ptr()
    FusedStep(model)
    assert layer.q_proj.weight.untyped_storage().data_ptr() == own
    model.requires_grad_(requires_grad=False)
    first = FusedStep(model)._layers[0].queries_keys_values.weight
    for product in (layer.q_proj, layer.k_proj, layer.v_proj):
        assert product.weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
    second = FusedStep(model)._layers[0].queries_keys_values.weight
    assert second.data_ptr() == first.data_ptr()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_evaluated_weights_are_frozen(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[PreTrainedModel] = []

    def answer(model: PreTrainedModel, *_: object, **__: object) -> list:
        models.append(model)
        return []

    monkeypatch.setattr(run, "answer_rows", answer)
    run.predict_rows(composed("method=base"), [], lambda *_: None)
    assert not any(p.requires_grad for p in models[0].parameters())


@pytest.mark.parametrize("trained", [True, False], ids=["autocast", "bfloat16"])
def test_bfloat16_steps_are_no_further_from_float32_than_with_transformers_layers(
    load: Callable[..., PreTrainedModel], trained: bool
) -> None:
    exact_model = load("qwen2_vl")

    def logits(model: PreTrainedModel, *, autocast: bool, fused: bool = True) -> Tensor:
        """Behind the prompts and 12 given tokens, step by step."""
        inputs = prompts(model)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        given = torch.randint(20, 400, (12, 8), generator=torch.Generator().manual_seed(4))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            prefill = prefill_prompts(model, inputs, completions=4, room=LIMIT)
            step = (
                DecodingGraphs().begin(model, prefill, LIMIT)
                if fused
                else CudaGraphStep(model, prefill.cache(), prefill.mask, LIMIT)
            )
            rows = [
                step(tokens, prefill.position + 1 + place).float().log_softmax(-1)
                for place, tokens in enumerate(given)
            ]
        return torch.stack(rows)

    exact = logits(exact_model, autocast=False)
    model = exact_model if trained else load("qwen2_vl", "bfloat16")
    fused = logits(model, autocast=trained)
    stock = logits(model, autocast=trained, fused=False)
    assert (fused - exact).abs().mean() <= 1.05 * (stock - exact).abs().mean()


@pytest.mark.parametrize("what", [fused_layers, fused_step])
def test_layers_that_compute_something_else_are_left_as_they_are(
    load: Callable[..., PreTrainedModel],
    what: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    what._is_known.cache_clear()

    class Wrong:
        """The operators, one of them a little off."""

        def __getattr__(self, name: str) -> Callable[..., Tensor]:
            return getattr(torch.ops.medreason, name)

        def gated(self, gate: Tensor, up: Tensor, room: int) -> Tensor:
            return 1.01 * torch.ops.medreason.gated(gate, up, room)

    of_operators = fused_operators if what is fused_layers else fused_step
    monkeypatch.setattr(of_operators, "_operators", Wrong())
    model = load("qwen2_vl")
    applies = fused_layers.fuse if what is fused_layers else takes_fused_steps
    assert not applies(model)
    assert not applies(model)
    assert caplog.text.count("going on with transformers'") == 1
    assert "forward" not in vars(model.model.language_model.norm)
    what._is_known.cache_clear()


def test_quantized_layers_and_other_families_are_left_as_they_are(
    load: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load("qwen2_vl")
    assert takes_fused_steps(model)

    class Packed(nn.Linear):
        """As bitsandbytes' layers, whose weights are no numbers to multiply by."""

    layer = model.model.language_model.layers[1].mlp
    layer.up_proj = Packed(*layer.up_proj.weight.shape[::-1], bias=False)
    assert not takes_fused_steps(model)

    class Other(type(model)): ...

    assert not fused_layers.fuse(Other(model.config))
