"""FlexAttention for packed sequences: it passes over the tiles in which nothing is visible."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from medreason.training.groups import Packed

_NAME = "sdpa_or_flex"


def enable(model: PreTrainedModel) -> None:
    """From now on the language model's layers take a `BlockMask`, too.

    Qwen2-VL refuses `attn_implementation="flex_attention"`, which would be that of all its passes.
    """
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.config.get_text_config()._attn_implementation = _NAME


def enabled(model: PreTrainedModel) -> bool:
    return model.config.get_text_config()._attn_implementation == _NAME


def tiles(packed: Packed) -> BlockMask:
    """What is visible, as `Packed.visible` says it."""
    block = packed.block
    questions, tokens = block.shape

    def visible(question: Tensor, _: Tensor, token: Tensor, earlier: Tensor) -> Tensor:
        there = block[question, earlier]
        return (token >= earlier) & ((there == 0) | (there == block[question, token]))

    return create_block_mask(visible, questions, None, tokens, tokens, device=str(block.device))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,  # noqa: ANN401  a mask of either kind, or none
    **more: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor | None]:
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    # Under autocast positions make float32 of queries and keys; torch's own attention undoes that.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return flex_attention_forward(module, query, key, value, attention_mask, **more)
