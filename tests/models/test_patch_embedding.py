"""The patch embedding as a product gives what transformers' convolution gives."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from medreason.config import Config
from medreason.models.load import load_merged, load_model
from medreason.models.model_folder import EMBEDDED
from medreason.models.patch_embedding import PatchConv3d, multiplies_patches, multiply_patches

Compose = Callable[..., Config]
GRID = torch.tensor([[1, 4, 6]])


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl"])
def folder(request: pytest.FixtureRequest) -> Path:
    """With a tiny model of each family."""
    return EMBEDDED if request.param == "qwen2_vl" else request.getfixturevalue("qwen2_5_vl")


def refuse_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a convolution is computed")

    monkeypatch.setattr(functional, "conv3d", refuse)


def models_of(config: Config) -> tuple[PreTrainedModel, PreTrainedModel]:
    """(with transformers' convolution, with the product)."""
    stock = load_model(config.model, config.hardware, patch_products=False)
    return stock, load_model(config.model, config.hardware)


def projection(model: nn.Module) -> nn.Conv3d:
    (layer,) = (module for module in model.modules() if isinstance(module, nn.Conv3d))
    return layer


def features_and_gradients(model: nn.Module, autocast: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(embedded patches, features of the tower, gradients of the convolution's parameters)."""
    whole: Any = model
    layer = projection(model)
    tower, dtype = whole.model.visual, layer.weight.dtype
    pixels = torch.rand(24, layer.weight[0].numel(), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        patches = tower.patch_embed(pixels.to(dtype))
        features = tower(pixels.to(dtype), GRID).pooler_output
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    loss = (features.float() * weights).sum()
    return patches, features, [*torch.autograd.grad(loss, [*layer.parameters()])]


def difference(result: Tensor, expected: Tensor) -> float:
    """Relative to the largest number expected."""
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("precision", "autocast", "limit"),
    [("float32", False, 1e-5), ("bfloat16", False, 0.03), ("float32", True, 0.03)],
    ids=["float32", "bfloat16", "autocast"],
)
def test_features_and_gradients_are_those_of_transformers(
    composed: Compose, folder: Path, precision: str, autocast: bool, limit: float
) -> None:
    config = composed(f"model.path={folder}", f"hardware.precision={precision}")
    stock, model = models_of(config)
    assert type(projection(stock)) is nn.Conv3d
    assert model.state_dict().keys() == stock.state_dict().keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), stock.state_dict().values(), strict=True)
    )
    patches, features, gradients = features_and_gradients(stock, autocast)
    ours, of_ours, with_respect = features_and_gradients(model, autocast)
    assert patches.dtype == (torch.bfloat16 if autocast else getattr(torch, precision))
    assert difference(ours, patches) < (1e-5 if limit == 1e-5 else 2**-7)
    assert difference(of_ours, features) < limit
    for result, expected in zip(with_respect, gradients, strict=True):
        assert difference(result, expected) < limit


def test_no_model_that_is_loaded_computes_a_convolution(
    composed: Compose, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_convolutions(monkeypatch)
    config = composed(f"model.path={folder}")
    stock, model = models_of(config)
    features_and_gradients(model, autocast=False)
    copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    for each in copies:
        features_and_gradients(each, autocast=False)
        assert projection(each).weight is not projection(model).weight
    with pytest.raises(AssertionError, match="a convolution is computed"):
        features_and_gradients(stock, autocast=False)


def test_random_weights_are_multiplied_too(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_convolutions(monkeypatch)
    config = composed("action=bench", "model.weights=random")
    features_and_gradients(load_model(config.model, config.hardware), autocast=False)


def test_an_export_has_transformers_layers(composed: Compose) -> None:
    config = composed()
    assert not multiplies_patches(load_merged(config.model, config.hardware)[0])


def test_an_adapter_of_the_embedding_multiplies(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("hardware.precision=float32")
    torch.manual_seed(0)
    model = get_peft_model(
        load_model(config.model, config.hardware),
        LoraConfig(r=4, target_modules=["patch_embed.proj"], init_lora_weights=False),
    )
    embed: Any = model.get_base_model().get_submodule("model.visual.patch_embed")
    model.save_pretrained(tmp_path)
    # PEFT merges by a convolution.
    merged: Any = load_model(composed(f"model.path={tmp_path}").model, config.hardware)
    refuse_convolutions(monkeypatch)
    pixels = torch.rand(24, 1176)
    expected = embed(pixels)
    torch.testing.assert_close(merged.model.visual.patch_embed(pixels), expected)


@pytest.mark.parametrize(
    ("settings", "size", "is_product"),
    [
        ({}, (2, 14, 14), True),
        ({"bias": True}, (2, 14, 14), True),
        ({}, (4, 14, 28), False),
        ({"padding": (0, 1, 1)}, (2, 14, 14), False),
        ({"dilation": (1, 2, 1)}, (2, 27, 14), False),
        ({"groups": 3}, (2, 14, 14), False),
    ],
)
def test_only_an_input_of_one_window_is_a_product(
    settings: dict[str, Any],
    size: tuple[int, int, int],
    is_product: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(3, 6, (2, 14, 14), (2, 14, 14), **{"bias": False, **settings})
    patches = torch.rand(5, 3, *size)
    expected = layer(patches)
    multiply_patches(layer)
    assert isinstance(layer, PatchConv3d)
    convolve, computed = functional.conv3d, []
    monkeypatch.setattr(
        functional, "conv3d", lambda *inputs: computed.append(1) or convolve(*inputs)
    )
    torch.testing.assert_close(layer(patches), expected)
    assert (not computed) == is_product
    torch.testing.assert_close(layer(patches[0]), expected[0])  # without a batch


def test_a_convolution_with_overlapping_windows_is_left_alone() -> None:
    layer = nn.Conv3d(3, 6, 3)
    multiply_patches(layer)
    assert type(layer) is nn.Conv3d
