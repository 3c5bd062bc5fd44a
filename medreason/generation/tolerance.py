"""How far apart two ways of computing the same log-probabilities may be."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

_ALWAYS_ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""Mean differences below what a mask or positions that are not followed make of it."""

_TIMES_ROUNDING = 4.0


def computed_in(model: PreTrainedModel) -> torch.dtype:
    """The type of the model's products: a model in training has weights of another."""
    device = model.device.type
    autocast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else model.dtype


def tolerance(dtype: torch.dtype, rounding: float = 0.0) -> float:
    """The largest allowed mean difference of shared and unshared log-probabilities.

    `rounding` is how much the unshared ones differ among themselves in batches of other shapes:
    larger in larger models and for unlikely tokens.
    """
    always = _ALWAYS_ALLOWED.get(dtype, max(_ALWAYS_ALLOWED.values()))
    return max(always, _TIMES_ROUNDING * rounding)
