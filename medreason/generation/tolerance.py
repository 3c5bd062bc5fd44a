"""How far apart two ways of computing the same log-probabilities may be."""

from __future__ import annotations

import torch

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Of the mean difference between shared and plain log-probabilities, where rounding makes it."""
