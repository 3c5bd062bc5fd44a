"""Prefill: the one pass over prompts that computes their KV cache and their next-token logits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from medreason.generation.kv_cache import repeat_kv_cache


@dataclass(frozen=True)
class Prefill:
    """Rows whose prompts are prefilled: where `decode` begins."""

    logits: Tensor
    """(rows, vocabulary), of each completion's first token."""
    position: Tensor
    """(3, rows, 1): mRoPE position of each prompt's last token."""
    mask: Tensor
    """(rows, tokens): 0 where the KV cache holds padding."""
    cache: Callable[[], DynamicCache]
    """The KV cache of the rows, made once a second token is to be decoded."""
    prompts: PromptCache | None = None
    """That of the prompts themselves, where every prompt has the same number of rows."""


@dataclass(frozen=True)
class PromptCache:
    """Prompts, each of which is that of a group of rows."""

    cache: DynamicCache
    mask: Tensor
    """(prompts, tokens): 0 where the KV cache holds padding."""


@torch.no_grad()
def prefill_prompts(
    model: PreTrainedModel, inputs: Mapping[str, Any], *, completions: int, room: int
) -> Prefill:
    """Prefill each prompt once; its logits and KV cache are repeated for its completions.

    `inputs` are what the model's forward takes for the prompts: input_ids and attention_mask
    padded on the left, mm_token_type_ids, image_grid_thw, and either pixel_values or
    mm_encoder_outputs. The KV cache has room for `room` more tokens.
    """
    position_ids = mrope_positions(model, inputs)
    outputs = model(
        # Positions are given, so the model needs no types of tokens to find them.
        **{name: value for name, value in inputs.items() if name != "mm_token_type_ids"},
        position_ids=position_ids,
        use_cache=True,
        # Logits of all prompt tokens would be prompts x tokens x vocabulary numbers.
        logits_to_keep=1,
    )
    logits = outputs.logits[:, -1]  # (prompts, vocabulary)
    entries = torch.arange(len(logits), device=logits.device).repeat_interleave(completions)
    return Prefill(
        logits=logits[entries],
        position=position_ids[:, entries, -1:],
        mask=inputs["attention_mask"][entries],
        cache=functools.partial(repeat_kv_cache, outputs.past_key_values, entries, room),
        prompts=PromptCache(outputs.past_key_values, inputs["attention_mask"]),
    )


def mrope_positions(model: PreTrainedModel | PeftModel, inputs: Mapping[str, Any]) -> Tensor:
    """mRoPE positions (3, prompts, tokens) by the model's own rule."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    positions, _ = base.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return positions
