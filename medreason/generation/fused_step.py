"""One token of each row through the language model of Qwen2-VL or Qwen2.5-VL in few kernels.

In a decoding step of a few rows each kernel takes microseconds, whatever it computes: transformers'
layer is 50 to 60 of them, this one 9, or 12 where rows share their prompts (16 with an adapter).
Products of the same input are one product, an adapter is part of it; queries, keys and values turn
together and are written into the KV cache by one kernel. The keys of a prompt that several rows
have in common are read once for all of them (arXiv:2402.05099).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention
from transformers import DynamicCache, PreTrainedModel

from medreason.generation import fused_operators
from medreason.generation.packing import additive_mask
from medreason.generation.small_models import are_as_in_transformers
from medreason.generation.tolerance import computed_in
from medreason.models import merging
from medreason.models.merging import MergedLinear

_operators: Any = torch.ops.medreason


@dataclass(frozen=True)
class _Product:
    """A linear layer, or several of the same input; with adapters `[W | R] [x ; P x]`."""

    weight: Tensor
    """(outputs, inputs + ranks)"""
    bias: Tensor | None = None
    projection: Tensor | None = None
    """(ranks, inputs)"""

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.weight, self.bias, self.projection) if t is not None]

    @property
    def ranks(self) -> int:
        return 0 if self.projection is None else len(self.projection)

    def __call__(self, inputs: Tensor, out: Tensor | None = None) -> Tensor:
        """Of inputs (rows, inputs + ranks), the last of which are written here."""
        if self.projection is not None:
            width = self.projection.shape[1]
            torch.mm(inputs[:, :width], self.projection.t(), out=inputs[:, width:])
        if out is None:
            return linear(inputs, self.weight, self.bias)
        if self.bias is None:
            return torch.mm(inputs, self.weight.t(), out=out)
        return torch.addmm(self.bias, inputs, self.weight.t(), out=out)


@dataclass(frozen=True)
class _Layer:
    attention_norm: Tensor
    queries_keys_values: _Product
    output: _Product
    mlp_norm: Tensor
    gate_up: _Product
    down: _Product

    def tensors(self) -> list[Tensor]:
        products = (self.queries_keys_values, self.output, self.gate_up, self.down)
        of_products = itertools.chain.from_iterable(product.tensors() for product in products)
        return [self.attention_norm, self.mlp_norm, *of_products]


@dataclass(frozen=True)
class StepCache:
    """The KV cache of a decoding step: each row's own keys and values, and those of prompts that
    several rows have in common."""

    own: Tensor
    """(layers, 2, rows, key heads, slots, width): keys and values."""
    mask: Tensor
    """(rows, 1, 1, slots), added to the scores: see `FusedStep.mask`."""
    write_position: Tensor
    """(1): the slot of the step's token."""
    prompts: Tensor | None = None
    """(layers, 2, prompts, key heads, tokens, width); prompt i is that of the i-th group of rows,
    groups of one size."""
    prompt_mask: Tensor | None = None
    """(prompts, 1, 1, tokens)"""

    @property
    def members(self) -> int:
        """Rows of a prompt."""
        return 1 if self.prompts is None else self.own.shape[2] // self.prompts.shape[2]


class FusedStep:
    """The language model with its weights as decoding takes them: copies of those that are
    trained, in the type of the products; of frozen ones almost all are the model's own."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` is one that `takes_fused_steps`."""
        torch.clear_autocast_cache()  # copies of weights for the prefill, before those made here
        text, self._model = model.config.get_text_config(), cast(Any, model)
        self.dtype = computed_in(model)
        self.layers, self.key_heads = text.num_hidden_layers, text.num_key_value_heads
        self.width = text.hidden_size // text.num_attention_heads
        self.vocabulary = text.vocab_size
        self._query_heads = text.num_attention_heads
        self._epsilon = text.rms_norm_eps
        self._embedding = self._model.get_input_embeddings()
        language_model = self._model.model.language_model
        with torch.inference_mode(mode=False), torch.no_grad():
            self._layers = [self._layer(layer) for layer in language_model.layers]
            self._norm = language_model.norm.weight
            (self._head,) = _products([self._model.get_output_embeddings()], self.dtype)
            self._axes, self._frequencies = self._turns(language_model.rotary_emb)

    @property
    def copied_bytes(self) -> int:
        """Of weights that are not the model's own tensors."""
        own = {p.untyped_storage().data_ptr() for p in self._model.parameters()}
        held = [t for layer in self._layers for t in layer.tensors()]
        held += self._head.tensors()
        copies = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        return sum(size for place, size in copies.items() if place not in own)

    def refresh(self) -> None:
        """Take the weights as the model has them now, into the tensors that captured kernels read.
        The model is the same in all else, see `signature`."""
        torch.clear_autocast_cache()
        with torch.inference_mode(mode=False), torch.no_grad():
            layers = self._model.model.language_model.layers
            for layer, module in zip(self._layers, layers, strict=True):
                _copy(self._layer(module).tensors(), layer.tensors())
            (head,) = _products([self._model.get_output_embeddings()], self.dtype)
            _copy(head.tensors(), self._head.tensors())

    def _layer(self, module: nn.Module) -> _Layer:
        layer: Any = module
        attention, mlp = layer.self_attn, layer.mlp
        (output,) = _products([attention.o_proj], self.dtype)
        (down,) = _products([mlp.down_proj], self.dtype)
        return _Layer(
            attention_norm=layer.input_layernorm.weight,
            queries_keys_values=_joined(
                [attention.q_proj, attention.k_proj, attention.v_proj], self.dtype
            ),
            output=self._of_attended_heads(output),
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=_joined([mlp.gate_proj, mlp.up_proj], self.dtype),
            down=down,
        )

    def _of_attended_heads(self, output: _Product) -> _Product:
        """The product with its inputs in the order in which attention leaves the heads: first those
        that read other keys. In the other order each layer would copy them."""
        heads = torch.arange(self._query_heads * self.width, device=output.weight.device)
        order = heads.view(self.key_heads, -1, self.width).transpose(0, 1).flatten()
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
        # sign in the first half.
        frequencies = torch.cat([-rotary.inv_freq, rotary.inv_freq]).float()
        return torch.cat(sections * 2), frequencies

    def mask(self, visible: Tensor) -> Tensor:
        """The mask of `visible` (rows, tokens), bool, as `StepCache` takes it."""
        return additive_mask(visible[:, None, None], self.dtype)

    def __call__(
        self,
        tokens: Tensor,
        position: Tensor,
        cache: StepCache,
        length: int,
        out: Tensor | None = None,
    ) -> Tensor:
        """Logits (rows, vocabulary) behind tokens (rows) at mRoPE positions (3, rows, 1), written
        into `out` where it is given. Attention sees the first `length` slots."""
        with torch.autocast(tokens.device.type, enabled=False):
            hidden = self._embedding(tokens)
            turns = position[..., 0].t().index_select(1, self._axes) * self._frequencies
            angles = turns.cos(), turns.sin()  # (rows, channels), float32
            delta: Tensor | None = None
            for i, layer in enumerate(self._layers):
                qkv, output = layer.queries_keys_values, layer.output
                hidden, normed = self._normed(hidden, delta, layer.attention_norm, qkv.ranks)
                states = qkv(normed).view(len(tokens), -1, self.width)
                queries = _operators.turn_into_cache(
                    states, *angles, cache.own[i], cache.write_position
                )
                delta = output(_attended(queries, cache, i, length, output.ranks))
                hidden, normed = self._normed(hidden, delta, layer.mlp_norm, layer.gate_up.ranks)
                gate, up = layer.gate_up(normed).chunk(2, dim=-1)
                delta = layer.down(_operators.gated(gate, up, layer.down.ranks))
            _, normed = self._normed(hidden, delta, self._norm, self._head.ranks)
            return self._head(normed, out)

    def _normed(
        self, hidden: Tensor, delta: Tensor | None, weight: Tensor, room: int
    ) -> tuple[Tensor, Tensor]:
        """(hidden states with what the last product adds, their norm with room behind it)"""
        settings = (weight, None, self._epsilon, self.dtype, room)
        if delta is None:
            return hidden, _operators.norm(hidden, *settings)
        return _operators.add_norm(hidden, delta, *settings)


def _attended(queries: Tensor, cache: StepCache, layer: int, length: int, room: int) -> Tensor:
    """(rows, heads x width and room) of queries (rows, heads of a key head, key heads, width):
    query heads that read the same keys are further queries of one head."""
    keys, values = cache.own[layer, :, :, :, :length].unbind(0)
    mask, own = cache.mask[..., :length], queries.transpose(1, 2)
    if cache.prompts is None:
        attended = scaled_dot_product_attention(own, keys, values, attn_mask=mask)
        attended = attended.transpose(1, 2).flatten(1)
        return attended if not room else pad(attended, (0, room))
    assert cache.prompt_mask is not None
    # The rows of a prompt are further queries, too: its keys are read once for all of them.
    of_prompts = queries.view(cache.prompts.shape[2], -1, *queries.shape[2:]).transpose(1, 2)
    prompt_keys, prompt_values = cache.prompts[layer].unbind(0)
    first, first_sum = _operators.attend(of_prompts, prompt_keys, prompt_values, cache.prompt_mask)
    second, second_sum = _operators.attend(own, keys, values, mask)
    members = cache.members
    return _operators.merge(first, first_sum, second, second_sum, members, room, queries.dtype)


def _copy(new: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """Copy what is not the model's own tensor in both."""
    for target, source in zip(kept, new, strict=True):
        if not target.is_set_to(source):
            target.copy_(source)


def signature(model: PreTrainedModel) -> tuple[object, ...]:
    """Equal for a model whose weights are where and of the shape that they were."""
    parameters = [(n, p.data_ptr(), p.dtype, p.shape) for n, p in model.named_parameters()]
    return id(model), computed_in(model), *parameters


def takes_fused_steps(model: PreTrainedModel) -> bool:
    """Whether the model's layers are ones that `FusedStep` knows and computes as transformers."""
    text, whole = model.config.get_text_config(), cast(Any, model)
    if not fused_operators.are_available(model.device):
        return False
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
    """Largest difference of logits from transformers', relative to the largest of those: of four
    rows with the prompt in each, and of the same in pairs that share theirs."""
    device = small.device
    with torch.autocast(device.type, enabled=False):
        ids = torch.tensor([[3, 5, 7, 11], [3, 5, 7, 2], [2, 9, 4, 6], [2, 9, 4, 8]], device=device)
        axes = torch.tensor([[[1]], [[2]], [[3]]], device=device)
        positions = axes * torch.arange(4, device=device).expand(3, 4, -1)
        expected = small(input_ids=ids, position_ids=positions).logits[:, -1]
        prefill = small(input_ids=ids[:, :3], position_ids=positions[..., :3], use_cache=True)
        step = FusedStep(small)
        differences = [
            (step(ids[:, 3], positions[..., 3:], cache, length) - expected).abs().max()
            for cache, length in _small_caches(step, prefill.past_key_values)
        ]
    return (torch.stack(differences).max() / expected.abs().max()).item()


def _small_caches(step: FusedStep, prompts: DynamicCache) -> Iterator[tuple[StepCache, int]]:
    """(cache, length that attention sees) for `_difference`."""
    layers: list[Any] = prompts.layers
    states = torch.stack([torch.stack([layer.keys, layer.values]) for layer in layers])
    rows = states.shape[2]

    def mask(rows: int, tokens: int) -> Tensor:
        return step.mask(torch.ones(rows, tokens, dtype=torch.bool, device=states.device))

    own = pad(states, (0, 0, 0, 13)).contiguous()
    last = torch.tensor([3], device=states.device)
    yield StepCache(own, mask(rows, 16), last), 4
    own, first = torch.zeros_like(own), torch.zeros_like(last)
    common = states[:, :, ::2].contiguous()
    yield StepCache(own, mask(rows, 16), first, common, mask(rows // 2, 3)), 1


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
    merged = all(isinstance(module, MergedLinear) for module in modules)
    if merged and all(p.is_set_to(projections[0]) for p in projections):  # by an earlier call
        return _Product(_joined_weight(modules, [p.weight for p in products]), bias, projections[0])
    # Each adapter's columns have rows of zeros for the other layers.
    inputs = projections[0].shape[1]
    ranks = torch.block_diag(*(p.weight[:, inputs:] for p in products))
    weights = torch.cat([p.weight[:, :inputs] for p in products])
    joined = _Product(torch.cat([weights, ranks], dim=1), bias, torch.cat(projections))
    if merged:  # as in `_joined_weight`
        sizes = [len(p.weight) for p in products]
        for module, part in zip(modules, joined.weight.split(sizes), strict=True):
            layer: Any = module
            layer.weight.data, layer.projection.data = part, joined.projection
    return joined


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
