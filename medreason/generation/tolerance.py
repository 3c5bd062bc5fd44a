"""How far apart two ways of computing the same log-probabilities may be."""

from __future__ import annotations

import torch

_MEAN_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Above what rounding makes of it, and below what a mask that is not followed makes of it."""


def tolerance(dtype: torch.dtype) -> float:
    """The largest allowed mean difference of shared and unshared log-probabilities."""
    return _MEAN_DIFFERENCE.get(dtype, max(_MEAN_DIFFERENCE.values()))
