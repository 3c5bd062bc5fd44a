"""One token of each row through the language model of Qwen2-VL or Qwen2.5-VL in few kernels.

In a decoding step of a few rows each kernel takes microseconds, whatever it computes: transformers'
layer is 50 to 60 of them, this one 13 (17 where the residual is float32 beside bfloat16 products).
Products of the same input are one product, an adapter is part of it; queries, keys and values turn
together and are written into the KV cache by one kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from transformers import DynamicCache, PreTrainedModel

from medreason.generation.kv_cache import PreallocatedLayer, repeat_kv_cache
from medreason.generation.packing import additive_mask
from medreason.generation.small_models import are_as_in_transformers
from medreason.generation.tolerance import computed_in
from medreason.models import merging
from medreason.models.merging import MergedLinear


@dataclass(frozen=True)
class _Product:
    """A linear layer, or several of the same input; with adapters `[W | R] [x ; P x]`."""

    weight: Tensor
    """(outputs, inputs + ranks)"""
    bias: Tensor | None = None
    projection: Tensor | None = None
    """(ranks, inputs)"""

    def __call__(self, inputs: Tensor) -> Tensor:
        return linear(self._with_ranks(inputs), self.weight, self.bias)

    def add_to(self, residual: Tensor, inputs: Tensor) -> None:
        if residual.dtype == self.weight.dtype and self.bias is None:
            residual.addmm_(self._with_ranks(inputs), self.weight.t())
        else:
            residual.add_(self(inputs))

    def _with_ranks(self, inputs: Tensor) -> Tensor:
        if self.projection is None:
            return inputs
        return torch.cat([inputs, linear(inputs, self.projection)], dim=-1)


@dataclass(frozen=True)
class _Layer:
    attention_norm: Tensor
    queries_keys_values: _Product
    output: _Product
    mlp_norm: Tensor
    gate_up: Sequence[_Product]
    """Both in one product, but where adapters would need copies of their weights."""
    down: _Product


class FusedStep:
    """The language model with its weights as one decoding takes them: copies of those that are
    trained, in the type of the products; of frozen ones almost all are the model's own."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` is one that `takes_fused_steps`."""
        torch.clear_autocast_cache()  # copies of weights for the prefill, before those made here
        text, whole = model.config.get_text_config(), cast(Any, model)
        language_model = whole.model.language_model
        self._embedding = whole.get_input_embeddings()
        self._dtype = computed_in(model)
        residual = self._embedding.weight.dtype
        self._query_heads, self._key_heads = text.num_attention_heads, text.num_key_value_heads
        self._width = text.hidden_size // text.num_attention_heads
        self._epsilon = text.rms_norm_eps
        with torch.inference_mode(mode=False), torch.no_grad():
            self._layers = [self._layer(layer, residual) for layer in language_model.layers]
            self._norm = language_model.norm.weight.to(residual)
            (self._head,) = _products([whole.get_output_embeddings()], self._dtype)
            self._axes, self._frequencies = self._turns(language_model.rotary_emb)

    def _layer(self, module: nn.Module, residual: torch.dtype) -> _Layer:
        layer: Any = module
        attention, mlp = layer.self_attn, layer.mlp
        (output,) = _products([attention.o_proj], self._dtype)
        gate_up = [mlp.gate_proj, mlp.up_proj]
        adapted = any(type(module) is not nn.Linear for module in gate_up)
        return _Layer(
            attention_norm=layer.input_layernorm.weight.to(residual),
            queries_keys_values=_joined(
                [attention.q_proj, attention.k_proj, attention.v_proj], self._dtype
            ),
            output=self._of_attended_heads(output),
            mlp_norm=layer.post_attention_layernorm.weight.to(residual),
            gate_up=_products(gate_up, self._dtype) if adapted else [_joined(gate_up, self._dtype)],
            down=_products([mlp.down_proj], self._dtype)[0],
        )

    def _of_attended_heads(self, output: _Product) -> _Product:
        """The product with its inputs in the order in which attention leaves the heads: first those
        that read other keys. In the other order each layer would copy them."""
        heads = torch.arange(self._query_heads * self._width, device=output.weight.device)
        order = heads.view(self._key_heads, -1, self._width).transpose(0, 1).flatten()
        ranks = torch.arange(len(order), output.weight.shape[1], device=order.device)
        projection = output.projection
        return _Product(
            output.weight[:, torch.cat([order, ranks])],
            output.bias,
            None if projection is None else projection[:, order],
        )

    def _turns(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """(axis of mRoPE positions for each channel, frequency (heads, channels))."""
        rotary: Any = module
        sections = [
            torch.full((size,), i % 3, device=rotary.inv_freq.device)
            for i, size in enumerate(rotary.mrope_section)
        ]
        # A channel turns with the one half a width away. Negative frequencies give the sine its
        # sign in the first half; values, which come along with queries and keys, do not turn.
        frequencies = torch.cat([-rotary.inv_freq, rotary.inv_freq]).float()
        turning = self._query_heads + self._key_heads
        table = frequencies.new_zeros(turning + self._key_heads, self._width)
        table[:turning] = frequencies
        return torch.cat(sections * 2), table

    def mask(self, visible: Tensor) -> Tensor:
        """The mask of `visible` (rows, tokens), bool, as `__call__` takes it."""
        return additive_mask(visible[:, None, None], self._dtype)

    def __call__(
        self,
        tokens: Tensor,
        position: Tensor,
        mask: Tensor,
        cache: DynamicCache,
        write_position: Tensor,
    ) -> Tensor:
        """Logits (rows, vocabulary) behind tokens (rows) at mRoPE positions (3, rows, 1).

        `mask` (rows, 1, 1, tokens) is added to the scores. Keys and values are written at
        `write_position` (1) of the KV cache, whose layers are of fixed shape.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            hidden = self._embedding(tokens)
            turns = position.index_select(0, self._axes).permute(1, 2, 0) * self._frequencies
            cosine, sine = turns.cos(), turns.sin()  # (rows, heads, channels), float32
            for layer, cached in zip(self._layers, cache.layers, strict=True):
                assert isinstance(cached, PreallocatedLayer)
                normed = self._normed(hidden, layer.attention_norm)
                states = layer.queries_keys_values(normed).view(*turns.shape)
                turned = torch.empty_like(states)
                rolled = states.roll(self._width // 2, dims=-1)
                torch.addcmul(states * cosine, rolled, sine, out=turned)
                keys, values = cached.write(
                    turned[:, self._query_heads :].unflatten(1, (2, -1)), write_position
                )
                # Query heads that read the same keys are further queries of one head.
                attended = scaled_dot_product_attention(
                    turned[:, : self._query_heads].unflatten(1, (self._key_heads, -1)),
                    *(keys, values),
                    attn_mask=mask,
                )
                layer.output.add_to(hidden, attended.transpose(1, 2).flatten(1))
                normed = self._normed(hidden, layer.mlp_norm)
                products = [product(normed) for product in layer.gate_up]
                gate, up = products if len(products) == 2 else products[0].chunk(2, dim=-1)
                layer.down.add_to(hidden, silu(gate).mul_(up))
            return self._head(self._normed(hidden, self._norm))

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(hidden, weight.shape, weight, self._epsilon).to(self._dtype)


def takes_fused_steps(model: PreTrainedModel) -> bool:
    """Whether the model's layers are ones that `FusedStep` knows and computes as transformers."""
    text, whole = model.config.get_text_config(), cast(Any, model)
    if not _is_known(type(model), model.device) or {*text.layer_types} != {"full_attention"}:
        return False
    decoder = whole.model.language_model
    names = decoder.layers.named_modules()
    products = [module for name, module in names if name.endswith("_proj")]
    plain = text.hidden_act == "silu" and decoder.rotary_emb.rope_type == "default"
    return plain and all(map(_is_product, [*products, whole.get_output_embeddings()]))


@functools.cache
def _is_known(kind: type[PreTrainedModel], device: torch.device) -> bool:
    """Whether the step computes what transformers' layers do, tried on a small model."""
    return are_as_in_transformers("decoding steps", kind, device, _difference)


@torch.no_grad()
def _difference(small: PreTrainedModel) -> float:
    """Largest difference of logits from transformers', relative to the largest of those."""
    device = small.device
    with torch.autocast(device.type, enabled=False):
        ids = torch.tensor([[3, 5, 7, 11], [2, 9, 4, 6]], device=device)
        axes = torch.tensor([[[1]], [[2]], [[3]]], device=device)
        positions = axes * torch.arange(4, device=device).expand(3, 2, -1)
        expected = small(input_ids=ids, position_ids=positions).logits[:, -1]
        prefill = small(input_ids=ids[:, :3], position_ids=positions[..., :3], use_cache=True)
        rows, last = torch.arange(2, device=device), torch.tensor([3], device=device)
        cache = repeat_kv_cache(prefill.past_key_values, rows, 1)
        for layer in cache.layers:
            assert isinstance(layer, PreallocatedLayer)
            layer.fix_shape(last, 4)
        step = FusedStep(small)
        mask = step.mask(torch.ones(2, 4, dtype=torch.bool, device=device))
        logits = step(ids[:, 3], positions[..., 3:], mask, cache, last)
    return ((logits - expected).abs().max() / expected.abs().max()).item()


def _is_product(module: nn.Module) -> bool:
    """Whether `_products` knows the layer: not one in 4 bits, nor one with DoRA."""
    if isinstance(module, LoraLayer):
        plain = type(module.get_base_layer()) is nn.Linear and merging.is_low_rank(module)
        return plain and not (module.merged or module.disable_adapters)
    return type(module) is nn.Linear or (
        isinstance(module, MergedLinear) and module.projection is not None
    )


def _products(modules: Sequence[nn.Module], dtype: torch.dtype) -> list[_Product]:
    products = []
    for module in modules:
        merged: Any = merging.low_rank(module, dtype) if isinstance(module, LoraLayer) else module
        bias, projection = merged.bias, getattr(merged, "projection", None)
        products.append(
            _Product(
                merged.weight.detach().to(dtype),
                None if bias is None else bias.detach().to(dtype),
                None if projection is None else projection.detach(),
            )
        )
    return products


def _joined(modules: Sequence[nn.Module], dtype: torch.dtype) -> _Product:
    """One product of layers that take the same input."""
    products = _products(modules, dtype)
    biases = [p.bias for p in products if p.bias is not None]
    if biases:
        biases = [p.weight.new_zeros(len(p.weight)) if p.bias is None else p.bias for p in products]
    bias = torch.cat(biases) if biases else None
    projections = [p.projection for p in products if p.projection is not None]
    if not projections:
        return _Product(_joined_weight(modules, [p.weight for p in products]), bias)
    # Each adapter's columns have rows of zeros for the other layers.
    inputs = projections[0].shape[1]
    ranks = torch.block_diag(*(p.weight[:, inputs:] for p in products))
    weights = torch.cat([p.weight[:, :inputs] for p in products])
    return _Product(torch.cat([weights, ranks], dim=1), bias, torch.cat(projections))


def _joined_weight(modules: Sequence[nn.Module], weights: Sequence[Tensor]) -> Tensor:
    """The rows of all weights in one tensor; of frozen layers in place of their own."""
    first, sizes = weights[0], [len(w) for w in weights]
    width = first.shape[1]
    numbers = first.storage_offset() + sum(sizes) * width
    if numbers * first.element_size() <= first.untyped_storage().nbytes():
        joined = first.as_strided((sum(sizes), width), (width, 1))
        parts = zip(joined.split(sizes), weights, strict=True)
        if all(part.is_set_to(weight) for part, weight in parts):  # by an earlier call
            return joined
    joined = torch.cat([*weights])
    own: list[Any] = [module.weight for module in modules]
    if all(not w.requires_grad and w.dtype == joined.dtype for w in own):
        # Two copies of a 7B's layers would not fit beside each other on a card that takes one.
        for weight, part in zip(own, joined.split(sizes), strict=True):
            weight.data = part
    return joined
