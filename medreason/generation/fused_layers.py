"""Norms and attention of Qwen2-VL and Qwen2.5-VL in fewer kernels than transformers' own.

An update of a few questions launches more kernels than Python and autograd hand out in the time
that the GPU takes for them; one of many reads and writes activations for longer than products need
without them. Here a norm is one kernel with the sum before it, and its result is rounded once for
all products that read it; queries, keys and values are one product and turn in one kernel, as an
activation and its gate are one; gradients of weights are added up in float32 by their products; the
vision tower attends to images or windows of the same size in one call.

Between layers goes a pair (hidden states, what the last product adds to them), which the next
layer's first norm adds up.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_window_index

from medreason.generation import fused_operators
from medreason.generation.small_models import PATCH_VALUES, are_as_in_transformers

_log = logging.getLogger(__name__)


def fuse(model: PreTrainedModel) -> bool:
    """Give the model's layers these forwards, where its family is known and they compute what
    transformers' do; tells whether they have them now."""
    if model.config._attn_implementation != "sdpa":
        return False
    if not fused_operators.are_available(model.device):
        _log.warning("no C compiler to build CUDA kernels with; going on with transformers' layers")
        return False
    if not _is_known(type(model), model.device) or not _activations_are_known(model):
        return False
    _fuse(model)
    return True


def _activations_are_known(model: PreTrainedModel) -> bool:
    whole: Any = model
    config = whole.config
    gated = hasattr(whole.model.visual.blocks[0].mlp, "gate_proj")
    of_vision = config.vision_config.hidden_act
    of_text = config.get_text_config().hidden_act
    return of_text == "silu" and of_vision == ("silu" if gated else "quick_gelu")


@functools.cache
def _is_known(kind: type[PreTrainedModel], device: torch.device) -> bool:
    return are_as_in_transformers("layers", kind, device, _difference)


def _difference(small: PreTrainedModel) -> float:
    """Largest difference from transformers' logits and gradients, for two images of unequal size
    and a few tokens."""
    device, image = small.device, small.config.image_token_id
    grids = torch.tensor([[1, 6, 10], [1, 4, 4]], device=device)
    with torch.autocast(device.type, enabled=False):
        draw = torch.Generator().manual_seed(0)
        pixels = torch.rand(76, PATCH_VALUES, generator=draw).to(device)
        ids = torch.tensor([[3, *[image] * 15, *[image] * 4, 5, 7, 11]], device=device)
        positions = torch.arange(ids.shape[1], device=device).expand(3, 1, -1)
        axes = torch.tensor([[[1]], [[2]], [[3]]], device=device)

        def computed() -> list[Tensor]:
            logits = small(
                input_ids=ids,
                position_ids=axes * positions,
                pixel_values=pixels,
                image_grid_thw=grids,
            ).logits
            parameters = [p for p in small.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(logits.square().mean(), parameters)
            return [logits, torch.cat([gradient.flatten() for gradient in gradients])]

        with torch.enable_grad():
            expected = computed()
            _fuse(small)
            results = computed()
    pairs = zip(results, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def _fuse(model: PreTrainedModel) -> None:
    whole: Any = model
    decoder, tower = whole.model.language_model, whole.model.visual
    if "forward" in vars(decoder.norm):  # they have them already
        return
    for layer in decoder.layers:
        layer.forward = MethodType(_checkpointed(_text_layer), layer)
        layer.self_attn.forward = MethodType(_text_attention, layer.self_attn)
        layer.mlp.forward = MethodType(_gated_mlp, layer.mlp)
    for block in tower.blocks:
        block.forward = MethodType(_checkpointed(_vision_block), block)
        block.attn.forward = MethodType(_vision_attention, block.attn)
        mlp = _gated_mlp if hasattr(block.mlp, "gate_proj") else _quick_gelu_mlp
        block.mlp.forward = MethodType(mlp, block.mlp)
    for last in (decoder.norm, tower.merger.ln_q):
        last.forward = MethodType(_last_norm, last)
    for rotary in (decoder.rotary_emb, tower.rotary_pos_emb):
        rotary.forward = MethodType(_angles, rotary)
    tower.register_forward_pre_hook(_with_segments, with_kwargs=True)


_States = Tensor | tuple[Tensor, Tensor]
"""Hidden states, or a pair with what is to be added to them."""


def _normed(module: nn.Module, states: _States) -> tuple[Tensor, Tensor]:
    """(hidden states, their norm)"""
    norm: Any = module
    bias = getattr(norm, "bias", None)
    epsilon = norm.variance_epsilon if bias is None else norm.eps
    if isinstance(states, Tensor):
        return states, fused_operators.norm(states, norm.weight, bias, epsilon)
    return fused_operators.add_norm(*states, norm.weight, bias, epsilon)


def _checkpointed(forward: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """As transformers wraps the forward of a layer's class, which one of an object replaces: with
    checkpointing the layer runs again in the backward pass."""

    def checkpointed(
        module: nn.Module, hidden_states: _States, *args: object, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        layer: Any = module
        if not (layer.gradient_checkpointing and layer.training):
            return forward(module, hidden_states, *args, **settings)
        settings = {**settings, "use_cache": False, "past_key_values": None}

        def again(*states: Tensor) -> tuple[Tensor, Tensor]:
            pair: _States = states if len(states) == 2 else states[0]
            return forward(module, pair, *args, **settings)

        # Tensors beside each other: of those in a pair, reentrant checkpoints keep no gradient.
        states = (hidden_states,) if isinstance(hidden_states, Tensor) else hidden_states
        return layer._gradient_checkpointing_func(again, *states)

    return checkpointed


def _last_norm(module: nn.Module, states: _States) -> Tensor:
    return _normed(module, states)[1]


def _text_layer(
    module: nn.Module, hidden_states: _States, *args: object, **settings: Any
) -> tuple[Tensor, Tensor]:
    layer: Any = module
    hidden, normed = _normed(layer.input_layernorm, hidden_states)
    attended, _ = layer.self_attn(normed, *args, **settings)
    hidden, normed = _normed(layer.post_attention_layernorm, (hidden, attended))
    return hidden, layer.mlp(normed)


def _vision_block(
    module: nn.Module, hidden_states: _States, *args: object, **settings: Any
) -> tuple[Tensor, Tensor]:
    block: Any = module
    hidden, normed = _normed(block.norm1, hidden_states)
    attended = block.attn(normed, *args, **settings)
    hidden, normed = _normed(block.norm2, (hidden, attended))
    return hidden, block.mlp(normed)


def _product(layer: nn.Module, inputs: Tensor) -> Tensor:
    return fused_operators.products(inputs, [layer])


def _gated_mlp(module: nn.Module, hidden: Tensor) -> Tensor:
    mlp: Any = module
    gate, up = (_product(layer, hidden) for layer in (mlp.gate_proj, mlp.up_proj))
    return _product(mlp.down_proj, fused_operators.gated(gate, up))


def _quick_gelu_mlp(module: nn.Module, hidden: Tensor) -> Tensor:
    mlp: Any = module
    return _product(mlp.fc2, fused_operators.quick_gelu(_product(mlp.fc1, hidden)))


def _angles(module: nn.Module, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (..., channels) as `fused_operators.turn` takes them."""
    cosine, sine = type(module).forward(module, hidden, position_ids)
    first, second = sine.chunk(2, dim=-1)
    return cosine.contiguous(), torch.cat([-first, second], dim=-1)


def _text_attention(
    module: nn.Module,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    past_key_values: Cache | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    assert position_embeddings is not None
    attention: Any = module
    query, key, value = _turned_states(attention, hidden_states, *position_embeddings)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, attention.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    attended, weights = attend(
        attention,
        *(query, key, value, attention_mask),
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
        sliding_window=attention.sliding_window,
        **settings,
    )
    return _product(attention.o_proj, attended.flatten(2)), weights


def _turned_states(
    module: nn.Module, hidden: Tensor, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, ...]:
    """Queries, keys and values (sequences, heads, tokens, channels)."""
    attention: Any = module
    states = fused_operators.products(
        hidden, (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    states = states.unflatten(2, (-1, attention.head_dim))
    queries, keys = attention.num_heads, attention.num_key_value_heads
    turning, value = states.split([queries + keys, keys], dim=2)
    turned = fused_operators.turn(turning.flatten(0, 1), cosine.flatten(0, 1), sine.flatten(0, 1))
    query, key = turned.view(turning.shape).split([queries, keys], dim=2)
    return tuple(states.transpose(1, 2) for states in (query, key, value))


@dataclass(frozen=True)
class _Segments:
    """Patches that attend to each other: images, or windows of them. Stands in for the tensor of
    their ends, whose values each layer would wait for."""

    groups: tuple[tuple[int, int], ...]
    """(segments, patches of each), of equal size, those of a group behind each other."""
    order: Tensor | None
    """(patches): the place of each patch of the groups; None where it is that of the sequence."""
    back: Tensor | None


def _segments(ends: Sequence[int], device: torch.device) -> _Segments:
    """Of segments that end before `ends`, the first of which is 0."""
    ranges = [range(begin, end) for begin, end in itertools.pairwise(ends) if end > begin]
    by_size = sorted(ranges, key=len)
    groups = tuple((len([*same]), size) for size, same in itertools.groupby(map(len, by_size)))
    if by_size == ranges:
        return _Segments(groups, None, None)
    order = torch.tensor([*itertools.chain.from_iterable(by_size)])
    return _Segments(groups, order.to(device), order.argsort().to(device))


def _with_segments(module: nn.Module, args: tuple, settings: dict) -> tuple[tuple, dict]:
    """Hands the tower its segments in place of the ends that it would compute."""
    tower: Any = module
    grids = args[1] if len(args) > 1 else settings["grid_thw"]
    device, grids = grids.device, grids.cpu()
    added: dict[str, _Segments | Tensor] = {
        "cu_seqlens": _segments(get_vision_cu_seqlens(grids).tolist(), device)
    }
    if hasattr(tower, "window_size"):
        index, ends = get_vision_window_index(
            grids,
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        added["window_index"] = index.to(device)
        added["cu_window_seqlens"] = _segments(ends.tolist(), device)
    return args, {**settings, **added}


def _vision_attention(
    module: nn.Module,
    hidden_states: Tensor,
    cu_seqlens: _Segments,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **_: object,
) -> Tensor:
    """Of hidden states (patches, width)."""
    assert position_embeddings is not None
    attention: Any = module
    states = _product(attention.qkv, hidden_states).view(
        len(hidden_states), 3, attention.num_heads, -1
    )
    turning, value = states.split([2, 1], dim=1)
    turned = fused_operators.turn(turning.flatten(1, 2), *position_embeddings).view(turning.shape)
    segments = cu_seqlens
    if segments.order is not None:
        turned, value = (t.index_select(0, segments.order) for t in (turned, value))
    attended = _attended_in(segments, *turned.unbind(1), value.squeeze(1), attention.scaling)
    if segments.back is not None:
        attended = attended.index_select(0, segments.back)
    return _product(attention.proj, attended)


def _attended_in(
    segments: _Segments, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> Tensor:
    """(patches, width) of states (patches, heads, channels) in the order of the groups."""
    sizes = [count * size for count, size in segments.groups]
    parts = zip(*(states.split(sizes) for states in (query, key, value)), strict=True)
    attended = [
        scaled_dot_product_attention(
            *(part.unflatten(0, group).transpose(1, 2) for part in of_group), scale=scale
        )
        .transpose(1, 2)
        .flatten(0, 1)
        .flatten(1)
        for group, of_group in zip(segments.groups, parts, strict=True)
    ]
    return attended[0] if len(attended) == 1 else torch.cat(attended)
