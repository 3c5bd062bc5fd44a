"""An adapter in its base model, without rounding its change away.

Weights of a checkpoint in bfloat16 lie on bfloat16's grid. A change of less than half a step that
is added to them is lost, always towards no change; so it is where PEFT adds the output of an
adapter to the rounded output of its layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel

_ALIGNED = 8
"""Numbers: rows of a multiple of 16 bytes, as CUDA's matrix products take them."""


class MergedLinear(nn.Module):
    """A linear layer with its adapter in one product `[W | R] [x ; P x]`, which rounds once.

    For LoRA, R is (alpha / r) B and P is A. Without `projection`, as for DoRA, P x is x, and R is
    what rounding took from the merged weights.
    """

    def __init__(
        self, weight: Tensor, rest: Tensor, bias: Tensor | None, projection: Tensor | None = None
    ) -> None:
        """`weight` (outputs, inputs), `rest` (outputs, rank), `projection` (rank, inputs)."""
        super().__init__()
        more = -rest.shape[1] % _ALIGNED if projection is not None else 0
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]
        self.weight = _frozen(torch.cat([weight, pad(rest.to(weight.dtype), (0, more))], dim=1))
        self.bias = None if bias is None else _frozen(bias.to(weight.dtype))
        self.projection = None
        if projection is not None:
            self.projection = _frozen(pad(projection.to(weight.dtype), (0, 0, 0, more)))

    def forward(self, inputs: Tensor) -> Tensor:
        more = inputs if self.projection is None else linear(inputs, self.projection)
        return linear(torch.cat([inputs, more], dim=-1), self.weight, self.bias)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def with_exact_layers(model: PeftModel, precision: torch.dtype) -> PreTrainedModel:
    """The base model in `precision` with a `MergedLinear` in place of each adapted linear layer, to
    be evaluated. Adapted layers of other kinds are merged and rounded."""
    exact: dict[str, MergedLinear] = {}
    for name, layer in _adapted_layers(model):
        base: Any = layer.get_base_layer()
        if is_low_rank(layer):
            exact[name] = low_rank(layer, precision)
            continue
        base.float()
        layer.merge()
        if isinstance(base, nn.Linear):
            weight = base.weight.to(precision)
            exact[name] = MergedLinear(weight, base.weight - weight.float(), base.bias)
        base.to(precision)
    whole: PreTrainedModel = model.unload()  # pyright: ignore[reportCallIssue, reportAssignmentType]
    for name, layer in exact.items():
        whole.set_submodule(name, layer)
    return whole


def merged(model: PeftModel, precision: torch.dtype) -> tuple[PreTrainedModel, float]:
    """(the base model with the adapter merged into weights of `precision`, what share of the
    adapter's change these weights keep)."""
    kept = total = 0.0
    for _, layer in _adapted_layers(model):
        base: Any = layer.get_base_layer().float()
        before = base.weight.detach().clone()
        layer.merge()
        change = base.weight.detach() - before
        base.to(precision)
        added = base.weight.detach().float() - before.to(precision).float()
        kept += float((added * change).sum())
        total += float(change.square().sum())
    whole: PreTrainedModel = model.unload()  # pyright: ignore[reportCallIssue, reportAssignmentType]
    return whole, kept / total if total else 1.0


@torch.no_grad()
def merged_weights(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """(name in the base model, weight with the active adapters), one at a time.

    The base is left as it is: PEFT's own merge and its reverse round it in half precision.
    """
    base = model.get_base_model()
    layers = dict(_adapted_layers(model))
    for name, parameter in base.named_parameters():
        owner = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        if owner is None and ".original_module." not in name:
            yield name.replace(".modules_to_save.default", ""), parameter.data
        elif owner and name == f"{owner}.base_layer.weight":
            yield f"{owner}.weight", _with_adapters(layers[owner], parameter.data)
        elif owner and name.startswith(f"{owner}.base_layer."):
            yield name.replace(".base_layer", ""), parameter.data


def _with_adapters(layer: LoraLayer, weight: Tensor) -> Tensor:
    with_delta: Any = layer  # the class of each kind of layer has it
    merged = weight.float()
    for adapter in layer.active_adapters:
        merged = merged + with_delta.get_delta_weight(adapter).float()
    return merged.to(weight.dtype)


def _adapted_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in list(model.get_base_model().named_modules()):
        if isinstance(module, LoraLayer):
            yield name, module


def is_low_rank(layer: LoraLayer) -> bool:
    """Whether the layer is `W x + (alpha / r) B A x`."""
    plain = isinstance(layer.get_base_layer(), nn.Linear) and not layer.lora_variant
    return plain and len(layer.lora_A) == 1


def low_rank(layer: LoraLayer, precision: torch.dtype) -> MergedLinear:
    base, (name,) = layer.get_base_layer(), layer.lora_A
    down, up, scaling = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    assert isinstance(base, nn.Linear)
    assert isinstance(down, nn.Linear)
    assert isinstance(up, nn.Linear)
    bias = base.bias if up.bias is None else base.bias + scaling * up.bias
    return MergedLinear(base.weight.to(precision), scaling * up.weight, bias, down.weight)
