"""Tokens of several rows through the language model of Qwen2-VL or Qwen2.5-VL as one sequence.

Products take as many tokens as there are, however unequal the rows are; attention alone goes row by
row. Of the last layer no more is computed than is read: keys and values of all tokens, the rest of
those behind which logits are wanted. On a CPU, which the products of padding keep busy, that is a
third of a prefill.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import DynamicCache, PreTrainedModel

from medreason.generation.fused_step import FusedStep, _Layer, _Product, takes_fused_steps
from medreason.generation.kv_cache import PreallocatedLayer, empty_kv_cache
from medreason.generation.packing import additive_mask
from medreason.generation.small_models import are_as_in_transformers
from medreason.models.load import without_adapter


@dataclass(frozen=True)
class RowLayout:
    """Where the tokens of a sequence are in their rows, and what each sees."""

    rows: Tensor
    """(tokens): the row of each in the KV cache."""
    slots: Tensor
    """(tokens): where its keys and values are written."""
    length: int
    """Slots of each row that attention sees, written or not."""
    token_of_place: Tensor
    """(rows x width) -> token; any where the row has fewer than the widest."""
    place_of_token: Tensor
    """(tokens) -> rows x width."""
    visible: Tensor
    """(rows or 1, width, length), bool."""

    @property
    def width(self) -> int:
        return self.visible.shape[1]


def padded_layout(mask: Tensor, before: Tensor) -> RowLayout:
    """Of rows that are padded on the left as `mask` (rows, width) says, behind what `before`
    (rows, slots) says of the KV cache."""
    mask, before = mask.bool(), before.bool()
    (count, width), first = mask.shape, before.shape[1]
    rows, columns = mask.nonzero().T
    places = rows * width + columns
    token_of_place = torch.zeros(count * width, dtype=torch.long, device=mask.device)
    token_of_place[places] = torch.arange(len(places), device=mask.device)
    filled = torch.cat([before, mask], dim=1)
    filled = filled[:1] if bool(filled.all()) else filled  # one mask for all
    behind = torch.ones(width, first + width, dtype=torch.bool, device=mask.device).tril(first)
    return RowLayout(
        rows=rows,
        slots=first + columns,
        length=first + width,
        token_of_place=token_of_place,
        place_of_token=places,
        visible=filled[:, None] & behind,
    )


class PackedPass(FusedStep):
    """The language model with its weights as one decoding takes them; see `FusedStep`."""

    def empty_cache(self, rows: int, slots: int) -> DynamicCache:
        """A KV cache with room for so many tokens of each row."""
        shape = (rows, self._key_heads, slots, self._width)
        like = self._embedding.weight.new_empty(0, dtype=self._dtype)
        return empty_kv_cache(like, len(self._layers), shape)

    def embed(self, tokens: Tensor) -> Tensor:
        """(tokens, width)"""
        return self._embedding(tokens)

    def of_prompts(
        self,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: DynamicCache,
        *,
        before: Tensor | None = None,
        image: tuple[Tensor, int] | None = None,
        read: Literal["last", "none"] = "last",
    ) -> Tensor:
        """Logits (rows, vocabulary) behind prompts (rows, tokens), which are padded on the left as
        `mask` says, at mRoPE positions (3, rows, tokens).

        `before` (rows, slots) is 0 where the KV cache before them is padding; `image`: (vision
        features, the token in whose places they go).
        """
        layout = padded_layout(mask, mask[:, :0] if before is None else before)
        tokens = ids.flatten()[layout.place_of_token]
        hidden = self.embed(tokens)
        if image is not None:
            features, placeholder = image
            hidden[tokens == placeholder] = features.to(hidden.dtype)
        positions = positions.flatten(1)[:, layout.place_of_token]
        return self.of_tokens(hidden, positions, layout, cache, read=read)

    def of_tokens(
        self,
        hidden: Tensor,
        positions: Tensor,
        layout: RowLayout,
        cache: DynamicCache,
        *,
        read: Literal["all", "last", "none"] = "all",
    ) -> Tensor:
        """Logits behind embedded tokens (tokens, width) at mRoPE positions (3, tokens): behind all,
        or behind the last of each row, which are padded on the left, or behind none."""
        with torch.autocast(hidden.device.type, enabled=False):
            turns = positions.index_select(0, self._axes).T[:, None] * self._frequencies
            angles = turns.cos(), turns.sin()
            visible = layout.visible.repeat(1, self._query_heads // self._key_heads, 1)
            mask = additive_mask(visible[:, None], self._dtype)
            layers = [*zip(self._layers, cache.layers, strict=True)]
            whole = layers if read == "all" else layers[:-1]
            for layer, cached in whole:
                normed = self._normed(hidden, layer.attention_norm)
                turned = self._turned(layer.queries_keys_values, normed, *angles)
                keys, values = self._write(turned[:, self._query_heads :], cached, layout)
                attended = self._attend(turned[:, : self._query_heads], keys, values, mask, layout)
                hidden = self._behind_attention(layer, hidden, attended)
            if read != "all":
                hidden = self._last_layer(*layers[-1], hidden, angles, mask, layout, read=read)
            return self._head(self._normed(hidden, self._norm))

    def _last_layer(
        self,
        layer: _Layer,
        cached: object,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        layout: RowLayout,
        *,
        read: str,
    ) -> Tensor:
        """The hidden states (rows, width) of the last tokens; of none, if none are read."""
        normed, channels = self._normed(hidden, layer.attention_norm), self._query_heads
        of_queries, of_others = _split(layer.queries_keys_values, channels * self._width)
        turned = self._turned(of_others, normed, *(angle[:, channels:] for angle in angles))
        keys, values = self._write(turned, cached, layout)
        if read == "none":
            return hidden[:0]
        last = layout.token_of_place.view(-1, layout.width)[:, -1]
        queries = self._turned(
            of_queries, normed[last], *(angle[last, :channels] for angle in angles)
        ).unflatten(1, (self._key_heads, -1))
        of_last = mask.unflatten(2, (-1, layout.width))[:, :, :, -1]
        attended = scaled_dot_product_attention(queries, keys, values, attn_mask=of_last)
        return self._behind_attention(layer, hidden[last], attended.transpose(1, 2).flatten(1))

    def _turned(self, product: _Product, normed: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Queries, keys and values (tokens, heads, channels), of which values do not turn."""
        states = product(normed).view(len(normed), -1, self._width)
        turned = torch.empty_like(states)
        rolled = states.roll(self._width // 2, dims=-1)
        return torch.addcmul(states * cosine, rolled, sine, out=turned)

    def _write(self, states: Tensor, cached: object, layout: RowLayout) -> tuple[Tensor, Tensor]:
        assert isinstance(cached, PreallocatedLayer)
        states = states.unflatten(1, (2, -1))
        return cached.write_tokens(states, layout.rows, layout.slots, layout.length)

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, layout: RowLayout
    ) -> Tensor:
        """(tokens, heads x channels), heads in the order of `FusedStep`."""
        by_row = queries.index_select(0, layout.token_of_place)
        by_row = by_row.view(len(keys), layout.width, self._key_heads, -1, self._width)
        # Query heads that read the same keys are further queries of one head.
        by_head = by_row.permute(0, 2, 3, 1, 4)
        attended = scaled_dot_product_attention(
            by_head.flatten(2, 3), keys, values, attn_mask=mask
        )
        by_row = attended.view(by_head.shape).permute(0, 3, 2, 1, 4).flatten(0, 1)
        return by_row.index_select(0, layout.place_of_token).flatten(1)

    def _behind_attention(self, layer: _Layer, hidden: Tensor, attended: Tensor) -> Tensor:
        """Adds to the hidden states in place."""
        layer.output.add_to(hidden, attended)
        normed = self._normed(hidden, layer.mlp_norm)
        products = [product(normed) for product in layer.gate_up]
        gate, up = products if len(products) == 2 else products[0].chunk(2, dim=-1)
        layer.down.add_to(hidden, silu(gate).mul_(up))
        return hidden


def _split(product: _Product, outputs: int) -> tuple[_Product, _Product]:
    """The first outputs of a product, and the others."""
    biases = (None, None) if product.bias is None else product.bias.tensor_split([outputs])
    parts = zip(product.weight.tensor_split([outputs]), biases, strict=True)
    first, others = (_Product(weight, bias, product.projection) for weight, bias in parts)
    return first, others


def packed_pass(model: PreTrainedModel) -> PackedPass | None:
    """The model's, as long as its weights stay as they are; None where it takes none."""
    base = without_adapter(model)
    # On accelerators kernels, not products, take the time of few tokens, and none has run it.
    on_cpu = base.device.type == "cpu" and base.config._attn_implementation == "sdpa"
    known = on_cpu and takes_fused_steps(base) and _is_known(type(base), base.device)
    return PackedPass(base) if known else None


@functools.cache
def _is_known(kind: type[PreTrainedModel], device: torch.device) -> bool:
    return are_as_in_transformers("packed passes", kind, device, _difference)


@torch.no_grad()
def _difference(small: PreTrainedModel) -> float:
    """Largest difference of logits from transformers', relative to the largest of those: of two
    rows of unequal lengths, whose last two tokens are passes of their own."""
    device = small.device
    axes = torch.tensor([[[1]], [[2]], [[3]]], device=device)
    ids = torch.tensor([[3, 5, 7, 11, 2], [0, 0, 9, 4, 6]], device=device)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], device=device)
    positions = axes * torch.arange(5, device=device).expand(3, 2, -1)
    with torch.autocast(device.type, enabled=False):
        expected = small(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        passes = PackedPass(small)
        cache = passes.empty_cache(2, 5)
        passes.of_prompts(ids[:, :3], mask[:, :3], positions[..., :3], cache, read="none")
        drafted = passes.of_tokens(
            passes.embed(ids[:, 3]),
            positions[..., 3],
            padded_layout(mask[:, 3:4], mask[:, :3]),
            cache,
        )
        last = passes.of_prompts(
            *(ids[:, 4:], mask[:, 4:], positions[..., 4:], cache), before=mask[:, :4]
        )
    results = torch.stack([drafted, last], dim=1)
    return ((results - expected[:, 3:]).abs().max() / expected.abs().max()).item()
