"""Packed passes compute the logits and KV caches of transformers' passes over padded prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from medreason.config import Hardware, Model
from medreason.generation import onednn_products, prefill
from medreason.generation import packed_pass as packed
from medreason.generation.tolerance import tolerance
from medreason.models.load import load_model

GRIDS = torch.tensor([[1, 4, 4], [1, 4, 8]])
LENGTHS = (5, 9)
"""Tokens of text behind the image."""


def tiny(precision: str = "float32") -> PreTrainedModel:
    hardware = Hardware("cpu", "cpu", 1, "1", 1, precision)
    return load_model(Model(name="tiny", path="tiny"), hardware).eval()


def inputs_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two prompts, each about an image, of unequal lengths."""
    image, draw = model.config.image_token_id, torch.Generator().manual_seed(0)
    rows = []
    for grid, length in zip(GRIDS.tolist(), LENGTHS, strict=True):
        text = torch.randint(7, 1600, (length,), generator=draw).tolist()
        rows.append([3, 4, *[image] * (grid[1] * grid[2] // 4), *text])
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    pixels = torch.rand(int(GRIDS.prod(-1).sum()), 3 * 2 * 14 * 14, generator=draw)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == image).int(),
        "image_grid_thw": GRIDS,
        "pixel_values": pixels.to(model.dtype),
    }


def prefilled(model: PreTrainedModel, *, completions: int = 2) -> tuple[Tensor, list[Tensor]]:
    """(logits of the first tokens, keys and values of each layer without those of padding)"""
    inputs = inputs_of(model)
    with torch.no_grad():
        rows = prefill.prefill_prompts(model, inputs, completions=completions, room=3)
        cache = rows.cache()
    mask = rows.mask.bool()
    layers: list[Any] = [*cache.layers]
    states = [s.transpose(1, 2)[mask] for layer in layers for s in (layer.keys, layer.values)]
    return rows.logits, states


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "lora"])
def test_prefill_is_that_of_transformers(adapted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny()
    if adapted:
        config = LoraConfig(
            r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
        )
        model = get_peft_model(model, config).eval()
    assert packed.packed_pass(model)
    logits, states = prefilled(model)
    monkeypatch.setattr(prefill, "packed_pass", lambda model: None)
    expected_logits, expected_states = prefilled(model)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    for own, expected in zip(states, expected_states, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_joined_products_are_onednns_where_those_of_the_layers_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, layers = tiny(), []

    def product(weight: Tensor, *others: Any) -> Callable[[Tensor], Tensor]:
        layers.append(weight.shape[0])
        return torch_product(weight, *others)

    torch_product = onednn_products.product
    expected_logits, expected_states = prefilled(model)
    assert not layers  # too small
    monkeypatch.setattr(onednn_products, "_LEAST", 0)
    monkeypatch.setattr(onednn_products, "product", product)
    with onednn_products.onednn_products(model):
        own = len(layers)
        logits, states = prefilled(model)
    text = model.config.get_text_config()
    assert len(layers) - own == text.num_hidden_layers + 1  # of the last one, two
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    for given, expected in zip(states, expected_states, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16"])
def test_prefill_rounds_as_transformers_in_bfloat16(
    autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("float32" if autocast else "bfloat16")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits, states = prefilled(model)
        monkeypatch.setattr(prefill, "packed_pass", lambda model: None)
        expected_logits, expected_states = prefilled(model)
    assert [s.dtype for s in states] == [s.dtype for s in expected_states]
    logps, expected = (x.float().log_softmax(-1) for x in (logits, expected_logits))
    assert (logps - expected).abs().mean() < tolerance(torch.bfloat16)


def test_last_layer_computes_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny()
    tokens: list[int] = []

    def count(_module: nn.Module, given: tuple[Tensor, ...], _output: Tensor) -> None:
        tokens.append(given[0].flatten(0, -2).shape[0])

    first, *_, last = model.model.language_model.layers
    for layer in (first, last):
        layer.mlp.gate_proj.register_forward_hook(count)
    prefilled(model)
    assert tokens == [int(inputs_of(model)["attention_mask"].sum()), 2]


def test_weights_in_parts_are_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Part(nn.Parameter):
        """As FSDP makes of a weight; around an adapter it leaves the class of the base model."""

    model: Any = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["v_proj"])).eval()  # pyright: ignore
    assert packed.packed_pass(model)
    monkeypatch.setattr(packed, "DTensor", Part)
    head = model.get_base_model().lm_head
    head.weight = Part(head.weight.detach())
    assert packed.packed_pass(model) is None


def test_models_of_other_kinds_are_left_to_transformers() -> None:
    model = tiny()
    kind = type(model)
    model.__class__ = type("Sharded", (kind,), {})  # as FSDP does
    assert packed.packed_pass(model) is None
    model.__class__ = kind
    model.config._attn_implementation = "eager"
    assert packed.packed_pass(model) is None
    model.config._attn_implementation = "sdpa"
    assert packed.packed_pass(model) is not None
    model.config.get_text_config().hidden_act = "gelu"
    assert packed.packed_pass(model) is None
