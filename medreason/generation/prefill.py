"""Prefill: the one pass over prompts that computes their KV cache and their next-token logits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.packed_pass import PackedPass, packed_pass
from medreason.models.load import without_adapter


@dataclass(frozen=True)
class Prefill:
    """Rows whose prompts are prefilled: where `decode` begins."""

    logits: Tensor
    """(rows, vocabulary), of each completion's first token; with drafts (tokens, vocabulary), row
    after row, behind the row's prompt and behind each drafted token."""
    position: Tensor
    """(3, rows, 1): mRoPE position of each prompt's last token."""
    mask: Tensor
    """(rows, tokens): 0 where the KV cache holds padding; drafts included."""
    cache: Callable[[], DynamicCache]
    """The KV cache of the rows, made once a second token is to be decoded."""
    passes: PackedPass | None = None
    """That have made it, and can decode the rows; None where transformers has."""
    prompts: PromptCache | None = None
    """The KV cache of the prompts themselves, where every prompt has the same number of rows."""
    drafted: Sequence[int] = ()
    """How many drafted tokens are behind the prompt of each row; () where none has any."""

    def of_rows(self, places: Sequence[int]) -> Prefill:
        """Some of the rows, without their logits; the KV cache of the others is let go."""
        cache, index = self.cache(), torch.tensor(places, device=self.mask.device)
        cache.batch_select_indices(index)
        return replace(
            self,
            logits=self.logits.new_empty(0),
            position=self.position[:, index],
            mask=self.mask[index],
            cache=lambda: cache,
            drafted=[self.drafted[place] for place in places] if self.drafted else (),
        )


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
    passes = packed_pass(model)
    if passes is not None:
        logits, cache = _packed(model, passes, inputs, position_ids)
    else:
        outputs = model(
            # Positions are given, so the model needs no types of tokens to find them.
            **{name: value for name, value in inputs.items() if name != "mm_token_type_ids"},
            position_ids=position_ids,
            use_cache=True,
            # Logits of all prompt tokens would be prompts x tokens x vocabulary numbers.
            logits_to_keep=1,
        )
        logits, cache = outputs.logits[:, -1], outputs.past_key_values
    entries = torch.arange(len(logits), device=logits.device).repeat_interleave(completions)
    return Prefill(
        logits=logits[entries],
        position=position_ids[:, entries, -1:],
        mask=inputs["attention_mask"][entries],
        cache=functools.partial(repeat_kv_cache, cache, entries, room),
        prompts=PromptCache(cache, inputs["attention_mask"]),
        passes=passes,
    )


def _packed(
    model: PreTrainedModel, passes: PackedPass, inputs: Mapping[str, Any], position_ids: Tensor
) -> tuple[Tensor, DynamicCache]:
    """Logits (prompts, vocabulary) and KV cache."""
    ids, base = inputs["input_ids"], without_adapter(model)
    encoded = (
        inputs["mm_encoder_outputs"]["image"]
        if "mm_encoder_outputs" in inputs
        else base.get_image_features(  # pyright: ignore[reportCallIssue]
            inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
        )
    )
    cache = passes.empty_cache(*ids.shape)
    logits = passes.of_prompts(
        *(ids, inputs["attention_mask"], position_ids, cache),
        image=(torch.cat([*encoded.pooler_output]), base.config.image_token_id),
    )
    return logits, cache


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
