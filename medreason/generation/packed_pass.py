"""Tokens of several rows through the language model of Qwen2-VL or Qwen2.5-VL as one sequence.

Products take as many tokens as there are, however unequal the rows are; attention alone goes row by
row. Of the last layer no more is computed than is read: keys and values of all tokens, the rest of
those behind which logits are wanted. On a CPU, which the products of padding keep busy, that is a
third of a prefill.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from transformers import DynamicCache, PreTrainedModel

from medreason.generation import onednn_products
from medreason.generation.kv_cache import PreallocatedLayer, empty_kv_cache
from medreason.generation.small_models import are_as_in_transformers
from medreason.generation.tolerance import computed_in
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

    def heads_of_places(self, queries: int, heads: int) -> Tensor:
        """(rows x queries x width) -> the query head of a token, of (tokens x heads), of which
        queries are the first.

        Query heads that read the same keys become further queries of one head.
        """
        of_token = torch.arange(queries, device=self.rows.device)
        by_row = self.token_of_place.view(-1, 1, self.width) * heads
        return (by_row + of_token[:, None]).flatten()

    def places_of_heads(self, queries: int) -> Tensor:
        """(tokens x queries) -> rows x queries x width: the way back."""
        of_token = torch.arange(queries, device=self.rows.device)
        rows, columns = self.place_of_token // self.width, self.place_of_token % self.width
        by_token = (rows[:, None] * queries + of_token) * self.width + columns[:, None]
        return by_token.flatten()

    def of_last(self, counts: Sequence[int]) -> tuple[RowLayout, Tensor]:
        """Of the last so many tokens of each row alone, for attention; and which tokens these are.
        Rows are padded on the left."""
        width, device = max(counts), self.token_of_place.device
        first = width - torch.tensor(counts, device=device)
        read = torch.arange(width, device=device) >= first[:, None]
        places = read.flatten().nonzero()[:, 0]
        token_of_place = torch.zeros(read.numel(), dtype=torch.long, device=device)
        token_of_place[places] = torch.arange(len(places), device=device)
        tokens = self.token_of_place.view(-1, self.width)[:, -width:][read]
        visible = self.visible[:, -width:]
        return replace(
            self, token_of_place=token_of_place, place_of_token=places, visible=visible
        ), tokens


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


class PackedPass:
    """The language model, while its weights stay as they are."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` is one that `packed_pass` knows."""
        text, whole = model.config.get_text_config(), cast(Any, model)
        self._embedding = whole.get_input_embeddings()
        self._head = whole.get_output_embeddings()
        self._decoder = whole.model.language_model
        self._dtype = computed_in(model)
        self._query_heads, self._key_heads = text.num_attention_heads, text.num_key_value_heads
        self._width = text.hidden_size // text.num_attention_heads
        *layers, last = self._decoder.layers
        with torch.inference_mode(mode=False), torch.no_grad():
            self._products = [self._joined(layer.self_attn, ("q", "k", "v")) for layer in layers]
            self._last_queries = self._joined(last.self_attn, ("q",))
            self._last_others = self._joined(last.self_attn, ("k", "v"))

    def _joined(self, attention: nn.Module, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """The outputs of layers of the same input beside each other: one product, but with
        adapters."""
        layers = [getattr(attention, f"{name}_proj") for name in names]
        if any(type(layer) is not nn.Linear for layer in layers):
            return lambda inputs: torch.cat([layer(inputs) for layer in layers], dim=-1)
        weight = torch.cat([layer.weight for layer in layers]).to(self._dtype)
        bias = torch.cat([layer.bias for layer in layers]).to(self._dtype)
        if all(map(onednn_products.is_changed, layers)):
            return onednn_products.product(weight, bias, self._dtype)
        return functools.partial(linear, weight=weight, bias=bias)

    def empty_cache(self, rows: int, slots: int) -> DynamicCache:
        """A KV cache with room for so many tokens of each row."""
        shape = (rows, self._key_heads, slots, self._width)
        like = self._embedding.weight.new_empty(0, dtype=self._dtype)
        return empty_kv_cache(like, len(self._decoder.layers), shape)

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
        read: Sequence[int] | Literal["none"] | None = None,
    ) -> Tensor:
        """Logits (tokens read, vocabulary) behind prompts (rows, tokens), which are padded on the
        left as `mask` says, at mRoPE positions (3, rows, tokens): behind the last token of each
        row, behind the last `read` of each, row after row, or behind none.

        `before` (rows, slots) is 0 where the KV cache before them is padding; `image`: (vision
        features, the token in whose places they go).
        """
        # Products take the tokens beside each other, attention the rows: padding costs it little.
        layout = padded_layout(mask, mask[:, :0] if before is None else before)
        tokens = ids.flatten()[layout.place_of_token]
        hidden = self.embed(tokens)
        if image is not None:
            features, placeholder = image
            hidden[tokens == placeholder] = features.to(hidden.dtype)
        positions = positions.flatten(1)[:, layout.place_of_token]
        read = [1] * len(ids) if read is None else read
        return self.of_tokens(hidden, positions, layout, cache, read=read)

    def of_tokens(
        self,
        hidden: Tensor,
        positions: Tensor,
        layout: RowLayout,
        cache: DynamicCache,
        *,
        read: Sequence[int] | Literal["all", "none"] = "all",
    ) -> Tensor:
        """Logits behind embedded tokens (tokens, width) at mRoPE positions (3, tokens): behind all,
        or behind the last so many of each row, which are padded on the left, or behind none."""
        mask = self._mask(layout)
        rotary = self._decoder.rotary_emb
        # Of the class: `fused_layers` gives the module another forward.
        cosine, sine = type(rotary).forward(rotary, hidden, positions[:, None])
        first, second = sine[0].chunk(2, dim=-1)
        turns = _Turns(cosine[0, :, None], torch.cat([-first, second], dim=-1)[:, None])
        *layers, last = zip(self._decoder.layers, cache.layers, strict=True)
        attention = self._attention(layout, mask, self._query_heads + 2 * self._key_heads)
        for (layer, cached), products in zip(layers, self._products, strict=True):
            normed = _normed(layer.input_layernorm, hidden)
            states = self._turned(products(normed), turns, self._query_heads)
            keys, values = self._write(states[:, self._query_heads :], cached, layout)
            attended = attention(states, keys, values)
            hidden = _behind_attention(layer, hidden, attended)
        return self._last_layer(*last, hidden, turns, mask, layout, read)

    def _attention(self, layout: RowLayout, mask: Tensor | None, heads: int) -> _Attention:
        return _Attention(
            mask,
            layout.heads_of_places(self._query_heads, heads),
            layout.places_of_heads(self._query_heads),
        )

    def _mask(self, layout: RowLayout) -> Tensor | None:
        """(rows or 1, 1, heads of a key head x width, length), added to the scores."""
        visible, shared = layout.visible, self._query_heads // self._key_heads
        if layout.width == 1 and bool(visible.all()):  # rows of equal length without drafts
            return None
        seen, hidden = torch.tensor([0.0, torch.finfo(self._dtype).min], dtype=self._dtype)
        # One pass over the memory: these masks are as large as the scores of a head.
        mask = torch.where(visible[:, None].expand(-1, shared, -1, -1), seen, hidden)
        return mask.flatten(1, 2)[:, None]

    def _last_layer(
        self,
        layer: nn.Module,
        cached: object,
        hidden: Tensor,
        turns: _Turns,
        mask: Tensor | None,
        layout: RowLayout,
        read: Sequence[int] | str,
    ) -> Tensor:
        normed = _normed(layer.input_layernorm, hidden)  # pyright: ignore[reportArgumentType]
        others = self._turned(self._last_others(normed), turns, 0)
        keys, values = self._write(others, cached, layout)
        if read == "none":  # the KV cache is all that is wanted of a prefix
            return hidden[:0]
        if not isinstance(read, str):
            if mask is not None:
                mask = mask.unflatten(2, (-1, layout.width))[:, :, :, -max(read) :].flatten(2, 3)
            layout, last = layout.of_last(read)
            hidden, normed, turns = hidden[last], normed[last], turns.of(last)
        queries = self._last_queries(normed).view(len(normed), -1, self._width)
        attention = self._attention(layout, mask, self._query_heads)
        attended = attention(turns(queries), keys, values)
        hidden = _behind_attention(layer, hidden, attended)
        return self._head(_normed(self._decoder.norm, hidden))

    def _turned(self, states: Tensor, turns: _Turns, queries: int) -> Tensor:
        """Heads of `queries`, keys and values (tokens, heads, channels), of which values do not
        turn; `states` are written over."""
        states = states.view(len(states), -1, self._width)
        turns(states[:, : queries + self._key_heads])
        return states

    def _write(self, states: Tensor, cached: object, layout: RowLayout) -> tuple[Tensor, Tensor]:
        assert isinstance(cached, PreallocatedLayer)
        states = states.unflatten(1, (2, self._key_heads))
        return cached.write_tokens(states, layout.rows, layout.slots, layout.length)


@dataclass(frozen=True)
class _Attention:
    """Attention of tokens that are beside each other, row by row."""

    mask: Tensor | None
    heads_of_places: Tensor
    """See `RowLayout`."""
    places_of_heads: Tensor

    def __call__(self, states: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(tokens, heads x channels) of states (tokens, heads and others, channels), and keys and
        values (rows, key heads, slots, channels)."""
        tokens, _, width = states.shape
        by_row = states.view(-1, width).index_select(0, self.heads_of_places)
        by_row = by_row.view(*keys.shape[:2], -1, width).to(keys.dtype)
        attended = scaled_dot_product_attention(by_row, keys, values, attn_mask=self.mask)
        by_token = attended.reshape(-1, width).index_select(0, self.places_of_heads)
        return by_token.view(tokens, -1)


@dataclass(frozen=True)
class _Turns:
    """Rotary embedding of tokens."""

    cosine: Tensor
    """(tokens, 1, channels)"""
    sine: Tensor
    """Negative in the first half of the channels."""

    def __call__(self, states: Tensor) -> Tensor:
        """Turn states (tokens, heads, channels), each with the channel half a width away, where
        they are."""
        rolled = states.roll(states.shape[-1] // 2, dims=-1)
        if states.dtype == self.cosine.dtype:
            return states.mul_(self.cosine).addcmul_(rolled, self.sine)
        # Not in place, which would round in between.
        return states.copy_(torch.addcmul(states * self.cosine, rolled, self.sine))

    def of(self, tokens: Tensor) -> _Turns:
        return _Turns(self.cosine[tokens], self.sine[tokens])


def _normed(module: nn.Module, hidden: Tensor) -> Tensor:
    norm: Any = module
    weight = norm.weight.to(hidden.dtype)
    if hidden.dtype != torch.float32:
        return rms_norm(hidden, weight.shape, weight, norm.variance_epsilon)
    # Two passes over the memory, where torch's takes four on a CPU.
    length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    scale = length.square_().div_(len(weight)).add_(norm.variance_epsilon).rsqrt_()
    return (hidden * scale).mul_(weight)


def _behind_attention(module: nn.Module, hidden: Tensor, attended: Tensor) -> Tensor:
    """`hidden` is written over."""
    layer: Any = module
    hidden = _added(hidden, layer.self_attn.o_proj(attended))
    normed = _normed(layer.post_attention_layernorm, hidden)
    mlp = layer.mlp
    gates = silu(mlp.gate_proj(normed), inplace=True).mul_(mlp.up_proj(normed))
    return _added(hidden, mlp.down_proj(gates))


def _added(hidden: Tensor, more: Tensor) -> Tensor:
    """In place, where the sum has the same type: new memory costs a CPU more than the sum."""
    return hidden.add_(more) if hidden.dtype == more.dtype else hidden + more


def packed_pass(model: PreTrainedModel) -> PackedPass | None:
    """The model's, as long as its weights stay as they are; None where it takes none."""
    base, text = without_adapter(model), model.config.get_text_config()
    # On accelerators kernels, not products, take the time of few tokens, and none has run it.
    on_cpu = base.device.type == "cpu" and base.config._attn_implementation == "sdpa"
    known = {*getattr(text, "layer_types", ())} == {"full_attention"} and text.hidden_act == "silu"
    if not on_cpu or not known:
        return None
    # FSDP gathers the parts of a layer's weights in its forward, which a packed pass does not call.
    if any(isinstance(weight, DTensor) for weight in base.parameters()):
        return None
    return PackedPass(base) if _is_known(type(base), base.device) else None


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
