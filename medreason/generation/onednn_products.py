"""On a CPU, the products of a rollout by oneDNN, with weights laid out once for all its steps.

torch multiplies float32 on a CPU by MKL, which reads the weights row by row: for the 16 rows of a
decoding step, and for prompts too, that takes twice as long as a kernel of oneDNN over blocks of
the same weights. Reordering them takes as long as a few steps, so it pays in a rollout, where the
weights stay, and not in an update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_LEAST = 2**16
"""Numbers of a weight: a smaller one stays in the cache of a core, whatever its layout."""

_MOST_BYTES = 2**29
"""Of all copies. A larger model leaves the memory to its update."""

_ROWS = 16
"""For which oneDNN chooses the blocks; they do as well for other numbers of rows."""


@contextmanager
def onednn_products(model: nn.Module) -> Iterator[None]:
    """Within, the model's large linear layers multiply by copies of their weights as they are now.

    The results are those of torch to rounding, without gradients. Nothing changes on CUDA, or for a
    model whose copies would take more than half a GiB.
    """
    layers = _layers(model)
    sizes = [layer.weight.numel() * _dtype(layer).itemsize for layer in layers]
    changed = layers if sum(sizes) <= _MOST_BYTES else []
    for layer in changed:
        vars(layer)["forward"] = product(layer.weight, layer.bias, _dtype(layer))
    try:
        yield
    finally:
        for layer in changed:
            del vars(layer)["forward"]


def _layers(model: nn.Module) -> list[nn.Linear]:
    """Those whose weights are whole, plain and on a CPU whose oneDNN takes their type."""
    if not torch.backends.mkldnn.is_available():
        return []
    takes_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and type(module.weight) is nn.Parameter  # not one of FSDP's parts
        and module.weight.device.type == "cpu"
        and module.weight.numel() >= _LEAST
        and (
            _dtype(module) == torch.float32 or (_dtype(module) == torch.bfloat16 and takes_bfloat16)
        )
    ]


def _dtype(layer: nn.Linear) -> torch.dtype:
    """That of the product."""
    autocast = torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if autocast else layer.weight.dtype


def is_changed(layer: nn.Module) -> bool:
    """Whether the layer multiplies by such a copy now."""
    return "forward" in vars(layer)


def product(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What `nn.Linear` computes, in `dtype`, by a copy of the weight."""
    # Operators without a public name, which torch.compile calls for frozen weights.
    operators = torch.ops.mkldnn
    copy = operators._reorder_linear_weight(weight.detach().to(dtype), _ROWS)
    bias = None if bias is None else bias.detach().to(dtype)

    def multiply(inputs: Tensor) -> Tensor:
        return operators._linear_pointwise(inputs.to(dtype), copy, bias, "none", [], "")

    return multiply
