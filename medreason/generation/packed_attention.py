"""Attention of packed sequences that passes over what no token sees.

With one mask over `[prompt | block 1 | ... | block G]` all tokens are compared with all, of which a
block needs the prompt and itself. Here each block has the prompt's keys beside its own
(`groups.Blocks`), unless one is much longer than the others, or FlexAttention is told the tiles
that are needed (`tiles`).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, noop_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from medreason.generation.packing import CompletionBlocks, PackedSequences, additive_mask

_NAME = "sdpa_of_blocks"


def enable(model: PreTrainedModel) -> None:
    """From now on the language model's layers, if they do what sdpa does, take a `BlockMask`, or
    `Blocks` beside their mask, too.

    Qwen2-VL refuses `attn_implementation="flex_attention"`, which would be that of all its passes.
    """
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.config.get_text_config()._attn_implementation = _NAME


def enabled(model: PreTrainedModel) -> bool:
    return model.config.get_text_config()._attn_implementation == _NAME


def seen(
    model: PreTrainedModel,
    packed: PackedSequences,
    dtype: torch.dtype,
    *,
    by_blocks: bool | None = None,
) -> dict[str, Any]:
    """What the model's forward takes beside packed sequences, for its tokens to see what they may.
    The mask is numbers of `dtype`, added to scores. Without `by_blocks`, what is less work."""
    if not enabled(model) or not (packed.cheaper_by_blocks if by_blocks is None else by_blocks):
        return {"attention_mask": additive_mask(packed.visible, dtype)}
    text = model.config.get_text_config()
    visible, blocks = packed.blocks(text.num_attention_heads // text.num_key_value_heads)
    return {"attention_mask": additive_mask(visible, dtype), "blocks": blocks}


def tiles(packed: PackedSequences) -> BlockMask:
    """What is visible, as `Packed.visible` says it."""
    block = packed.block
    questions, tokens = block.shape

    def visible(question: Tensor, _: Tensor, token: Tensor, earlier: Tensor) -> Tensor:
        there = block[question, earlier]
        return (token >= earlier) & ((there == 0) | (there == block[question, token]))

    return create_block_mask(visible, questions, None, tokens, tokens, device=str(block.device))


def unmasked(mask: Tensor | BlockMask) -> Tensor | BlockMask:
    """A mask of the same kind that hides nothing."""
    if isinstance(mask, Tensor):
        return torch.zeros_like(mask)
    device = str(mask.kv_num_blocks.device)
    return create_block_mask(noop_mask, *mask.shape, device=device)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,  # noqa: ANN401
    *,
    blocks: CompletionBlocks | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    if blocks is not None:
        return _of_blocks(query, key, value, attention_mask, blocks, **more), None
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    # Under autocast positions make float32 of queries and keys; torch's own attention undoes that.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return flex_attention_forward(module, query, key, value, attention_mask, **more)


def _of_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
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
    in_prompts = (states[:, :, : blocks.prefix] for states in (query, key, value))
    of_prompts = attend(*in_prompts, is_causal=True, enable_gqa=True)

    def own(states: Tensor) -> Tensor:
        """(questions, completions, heads, completion tokens, width)"""
        tokens = states.transpose(1, 2).flatten(0, 1).index_select(0, blocks.taken_from)
        return tokens.unflatten(0, (questions, completions, -1)).transpose(2, 3)

    def beside_prompts(states: Tensor) -> Tensor:
        """(questions, completions x heads, prompt and completion tokens, width)"""
        shared = states[:, None, :, : blocks.prefix].expand(-1, completions, -1, -1, -1)
        return torch.cat([shared, own(states)], dim=3).flatten(1, 2)

    # Heads that read the same keys are queries more of one head: no keys are repeated for them.
    asking = own(query).unflatten(2, (key.shape[1], -1))
    found = attend(
        asking.flatten(3, 4).flatten(1, 2),
        beside_prompts(key),
        beside_prompts(value),
        attn_mask=mask,
    )
    # Of shape (questions, completions, key heads, heads of each, completion tokens, width).
    of_blocks = found.view(asking.shape).permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)
    lines = torch.cat([of_prompts.transpose(1, 2), of_blocks], dim=1).flatten(0, 1)
    return lines.index_select(0, blocks.put_back_from).unflatten(0, (questions, -1))
