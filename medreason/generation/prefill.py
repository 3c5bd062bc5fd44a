"""Prompts that a model has read: the KV cache and the logits from which decoding goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True)
class Prefill:
    """Rows whose prompts have been read."""

    logits: Tensor
    """(rows, vocabulary), of the first token to come."""
    position: Tensor
    """(3, rows, 1): mRoPE position of each prompt's last token."""
    mask: Tensor
    """(rows, tokens): 0 where the cache holds padding."""
    cache: Callable[[], DynamicCache]
    """Keys and values of the rows; asked for once a second token is to be decoded."""


def mrope_positions(model: PreTrainedModel | PeftModel, inputs: Mapping[str, Any]) -> Tensor:
    """mRoPE positions (3, questions, prompt tokens) by the model's own rule."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    found, _ = base.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return found
