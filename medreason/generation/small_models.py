"""A small model of a family, on which what replaces transformers' layers is compared with them."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

_TEXT = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}
_VISION = {
    Qwen2VLForConditionalGeneration: {
        **{"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64}
    },
    Qwen2_5_VLForConditionalGeneration: {
        **{"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48},
        **{"out_hidden_size": 64, "window_size": 56, "fullatt_block_indexes": [1]},
    },
}
"""Families -> shapes of their vision tower."""

PATCH_VALUES = 3 * 2 * 14 * 14

_SAME = 5e-5
"""Largest difference of a small model's logits and gradients in float32, relative to the largest
one."""

_log = logging.getLogger(__name__)


def are_as_in_transformers(
    what: str,
    kind: type[PreTrainedModel],
    device: torch.device,
    difference_of: Callable[[PreTrainedModel], float],
) -> bool:
    """Whether `what` replaces computes the same as transformers on a small model of class `kind`,
    by the difference that it gives; a line says where not, or where it cannot be run."""
    small = small_model(kind, device)
    if small is None:
        return False
    try:
        difference = difference_of(small)
    except _failures() as error:
        _log.warning(
            "%s of %s in few kernels cannot be run here (%s); going on with transformers'",
            *(what, kind.__name__, str(error).partition("\n")[0] or type(error).__name__),
        )
        return False
    if difference <= _SAME:
        return True
    _log.warning(
        "%s of %s in few kernels are not transformers' (%.2g apart); going on with transformers'",
        *(what, kind.__name__, difference),
    )
    return False


def _failures() -> tuple[type[Exception], ...]:
    """What is raised where a kernel can be neither built nor launched."""
    known = (RuntimeError, OSError, subprocess.CalledProcessError)
    with suppress(ImportError):
        from triton.errors import TritonError  # torch for CUDA brings it along

        return (*known, TritonError)
    return known


def small_model(kind: type[PreTrainedModel], device: torch.device) -> PreTrainedModel | None:
    """A model of class `kind` in float32, its weights random; None where the family is not known
    here. It changes no random number drawn later."""
    if kind not in _VISION:
        return None
    config_class: Any = kind.config_class
    config = config_class(
        text_config=_TEXT, vision_config=_VISION[kind], image_token_id=_TEXT["vocab_size"] - 1
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model = kind._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        for parameter in model.parameters():  # norms of 1 and biases of 0 would hide their absence
            parameter.data.normal_(0.2, 0.3)
    return model.to(device).eval()  # pyright: ignore[reportArgumentType]
