"""Attention of packed sequences that skips the pairs of tokens which a mask would hide.

Under one mask over `[prompt prefix | block 1 | ... | block G]` every token is compared with every
other, though a completion block needs the prefix and itself alone. Here each block attends to the
prefix's keys beside its own (`packing.CompletionBlocks`), unless one completion is much longer than
the others.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from medreason.generation.packing import CompletionBlocks, PackedSequences, additive_mask

_NAME = "sdpa_of_blocks"


class AttentionInputs(TypedDict):
    """What a model's forward takes for packed sequences beside their tokens and positions."""

    attention_mask: Tensor
    """Added to the scores: of the blocks where there are `blocks`, else of the whole sequence."""
    blocks: NotRequired[CompletionBlocks]


def enable(model: PreTrainedModel) -> None:
    """Let the language model's layers take `blocks`, where their attention is sdpa.

    Without `blocks` the layers do what sdpa does, so evaluation and generation stay as they are.
    """
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    # Of the language model alone: the vision tower has attention of its own.
    model.config.get_text_config()._attn_implementation = _NAME


def enabled(model: PreTrainedModel) -> bool:
    return model.config.get_text_config()._attn_implementation == _NAME


def attention_inputs(
    model: PreTrainedModel,
    packed: PackedSequences,
    dtype: torch.dtype,
    *,
    by_blocks: bool | None = None,
) -> AttentionInputs:
    """Mask in `dtype`, with blocks where the model takes them and `by_blocks` asks for them.

    `by_blocks=None` chooses the way that compares fewer pairs of tokens.
    """
    if not enabled(model) or not (packed.cheaper_by_blocks if by_blocks is None else by_blocks):
        return {"attention_mask": additive_mask(packed.visible, dtype)}
    text = model.config.get_text_config()
    visible, blocks = packed.blocks(text.num_attention_heads // text.num_key_value_heads)
    return {"attention_mask": additive_mask(visible, dtype), "blocks": blocks}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    blocks: CompletionBlocks | None = None,
    draft_layout: DraftLayout | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in each layer; `blocks` and `draft_layout` come down from the
    model's forward."""
    if draft_layout is not None:
        attended = _attention_of_drafts(query, key, value, attention_mask, draft_layout, **settings)
        return attended, None
    if blocks is None:
        if query.shape[2] == 1 and query.device.type == "cpu":
            return _attention_of_one_token(query, key, value, attention_mask, **settings), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    return _attention_by_blocks(query, key, value, attention_mask, blocks, **settings), None


def _attention_of_one_token(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    """(rows, 1, heads, width) of queries (rows, heads, 1, width), and keys and values
    (rows, key heads, tokens, width); without dropout."""
    # As in the blocks: query heads that read the same keys become further queries of one head. One
    # query at a time, torch's kernel for CPUs takes 1.6 times as long in float32, and in bfloat16
    # ten times.
    queries = query.view(len(query), key.shape[1], -1, query.shape[-1])
    attended = scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scaling)
    return attended.reshape(len(query), 1, -1, query.shape[-1])


@dataclass(frozen=True)
class DraftLayout:
    """Where the tokens of a pass over drafts, which is one sequence, are in their rows."""

    width: int
    """Positions of the row that has the most in this pass."""
    token_of_place: Tensor
    """(rows x width) -> token of the sequence; any where the row has fewer."""
    place_of_token: Tensor
    """(tokens) -> rows x width."""


def _attention_of_drafts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    layout: DraftLayout,
    *,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    """(1, tokens, heads, width) of queries (1, heads, tokens, width), and keys and values
    (rows, key heads, slots, width)."""
    by_row = query[0].transpose(0, 1).index_select(0, layout.token_of_place)
    # As in the blocks: query heads that read the same keys become further queries of one head.
    queries = by_row.view(len(key), layout.width, key.shape[1], -1, query.shape[-1])
    queries = queries.permute(0, 2, 3, 1, 4)  # (rows, key heads, heads of each, positions, width)
    attended = scaled_dot_product_attention(
        queries.flatten(2, 3), key, value, attn_mask=mask, scale=scaling
    )
    by_row = attended.view(queries.shape).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)
    return by_row.index_select(0, layout.place_of_token)[None]


def _attention_by_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    blocks: CompletionBlocks,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    """(questions, tokens, heads, width) of queries (questions, heads, tokens, width), and keys and
    values (questions, key heads, tokens, width)."""
    attend = functools.partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    questions, completions = len(query), blocks.completions

    # Prefixes: causal and without a mask, so that torch may choose its fast kernels. Shorter
    # prefixes end in tokens of blocks, whose results are not read from this part.
    prefix_states = (states[:, :, : blocks.prefix] for states in (query, key, value))
    of_prefixes = attend(*prefix_states, is_causal=True, enable_gqa=True)

    def of_blocks(states: Tensor) -> Tensor:
        """(questions, completions, heads, completion tokens, width)"""
        tokens = states.transpose(1, 2).flatten(0, 1).index_select(0, blocks.block_index)
        return tokens.unflatten(0, (questions, completions, -1)).transpose(2, 3)

    def behind_prefixes(states: Tensor) -> Tensor:
        """(questions, completions x heads, prefix and completion tokens, width)"""
        prefix = states[:, None, :, : blocks.prefix].expand(-1, completions, -1, -1, -1)
        return torch.cat([prefix, of_blocks(states)], dim=3).flatten(1, 2)

    # Grouped-query attention: query heads that read the same keys become further queries of one
    # head, since repeating keys and values for them would cost memory and bandwidth.
    queries = of_blocks(query).unflatten(2, (key.shape[1], -1))
    attended = attend(
        queries.flatten(3, 4).flatten(1, 2),
        behind_prefixes(key),
        behind_prefixes(value),
        attn_mask=mask,
    )
    # Of shape (questions, completions, key heads, heads of each, completion tokens, width).
    in_blocks = attended.view(queries.shape).permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)
    tokens = torch.cat([of_prefixes.transpose(1, 2), in_blocks], dim=1).flatten(0, 1)
    return tokens.index_select(0, blocks.sequence_index).unflatten(0, (questions, -1))
