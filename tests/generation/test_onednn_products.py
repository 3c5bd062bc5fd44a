"""On a CPU: products over reordered weights, and attention of a decoding step."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache

from medreason.config import Hardware, Model
from medreason.generation import onednn_products as products
from medreason.generation import packed_attention
from medreason.models.load import load_model


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 320), nn.SiLU(), nn.Linear(320, 256, bias=False))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_torch_and_their_weights_those_of_now(
    dtype: torch.dtype, autocast: bool
) -> None:
    model = layers().to(dtype)
    inputs = torch.randn(5, 2, 256).to(dtype).transpose(0, 1)
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected = model(inputs)
            with products.onednn_products(model):
                assert all("forward" in vars(model[i]) for i in (0, 2))
                given, alone = model(inputs), model(inputs[:, :1])
        assert given.dtype == expected.dtype
        close = {} if dtype == torch.float32 and not autocast else {"atol": 4e-3, "rtol": 2e-2}
        torch.testing.assert_close(given, expected, **close)
        assert torch.equal(alone, given[:, :1])  # a row's result does not depend on the others
        assert not any("forward" in vars(layer) for layer in model)
        model[0].weight.data *= 1.5


def test_layers_that_are_small_large_adapted_or_others_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = nn.Linear(64, 64)
    with products.onednn_products(small):
        assert "forward" not in vars(small)
    adapted = get_peft_model(layers(), LoraConfig(r=4, target_modules=["0"]))  # pyright: ignore
    with products.onednn_products(adapted):
        changed = [name for name, module in adapted.named_modules() if "forward" in vars(module)]
    assert [name.split("model.")[-1] for name in changed] == ["0.base_layer", "2"]
    monkeypatch.setattr(products, "_MOST_BYTES", 1000)
    model = layers()
    with products.onednn_products(model):
        assert not any("forward" in vars(layer) for layer in model)


def test_error_within_gives_the_layers_back() -> None:
    model = layers()
    with pytest.raises(ZeroDivisionError), products.onednn_products(model):
        raise ZeroDivisionError
    assert not any("forward" in vars(layer) for layer in model)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_of_one_token_is_that_of_transformers(precision: str, padded: bool) -> None:
    tiny = Model(name="tiny", path="tiny")
    model = load_model(tiny, Hardware("cpu", "cpu", 1, "1", 1, precision)).eval()
    ids, mask = torch.randint(20, 400, (3, 9)), torch.ones(3, 10, dtype=torch.long)
    mask[0, :3] = 1 - padded

    @torch.no_grad()
    def logits() -> torch.Tensor:
        cache = DynamicCache()
        model(input_ids=ids, attention_mask=mask[:, :9], past_key_values=cache)
        return model(input_ids=ids[:, :1], attention_mask=mask, past_key_values=cache).logits

    expected = logits()
    packed_attention.enable(model)
    limit = 1e-5 if precision == "float32" else 0.1
    torch.testing.assert_close(logits(), expected, atol=limit, rtol=limit)
