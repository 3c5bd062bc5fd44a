"""Operators that torch runs as several kernels, as one each on CUDA: norms with the sum before
them, gated activations, rotary embeddings, and the sum of two parts of an attention.

`torch.ops.medreason` runs `triton_kernels` on CUDA and plain torch elsewhere; without values
(`FakeTensorMode`) they are counted as one kernel. All compute in float32 and round what they write.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import linear, pad

_operators: Any = torch.ops.medreason


def are_available(device: torch.device) -> bool:
    """Whether the operators run on the device. On CUDA a C compiler builds what launches them."""
    return device.type != "cuda" or _builds_kernels()


@functools.cache
def _builds_kernels() -> bool:
    try:
        import triton  # noqa: F401  # torch for CUDA brings it along
    except ImportError:
        return False
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def norm(hidden: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """RMSNorm, with a `bias` LayerNorm, in the type of the products that read it."""
    return _Norm.apply(hidden, weight, bias, epsilon, _of_products(hidden))  # pyright: ignore


def add_norm(
    residual: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(residual + delta, its `norm`)"""
    return _AddNorm.apply(residual, delta, weight, bias, epsilon, _of_products(residual))  # pyright: ignore


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up of tensors (..., channels)."""
    return _Gated.apply(gate, up)  # pyright: ignore[reportReturnType]


def quick_gelu(hidden: Tensor) -> Tensor:
    """hidden * sigmoid(1.702 * hidden)"""
    return _QuickGelu.apply(hidden)  # pyright: ignore[reportReturnType]


def turn(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of states (tokens, heads, channels) by angles (tokens, channels): each
    channel turns with the one half a width away. `sine` has a negative sign in the first half of
    its channels."""
    return _Turn.apply(states, cosine, sine)  # pyright: ignore[reportReturnType]


def products(inputs: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """The outputs of linear layers of the same input, of theirs (..., channels), beside each other.

    Of weights in float32 under autocast, which are trained, gradients are added up in float32, as
    TRL's head does it: autocast would round the sums of each backward pass to bfloat16, and read
    and write them three times.
    """
    if not all(type(layer) is nn.Linear for layer in layers):  # adapters
        outputs = [layer(inputs) for layer in layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
    weights: list[Any] = [layer.weight for layer in layers]
    biases: list[Any] = [layer.bias for layer in layers]
    rounded = _of_products(inputs) != weights[0].dtype
    if rounded and torch.is_grad_enabled() and all(w.requires_grad for w in weights):
        return _Products.apply(inputs, _of_products(inputs), len(weights), *weights, *biases)  # pyright: ignore
    if len(weights) == 1:
        return layers[0](inputs)
    bias = None if biases[0] is None else torch.cat(biases)
    return linear(inputs, torch.cat(weights), bias)


def _of_products(hidden: Tensor) -> torch.dtype:
    """The type to which autocast, where it is on, would round the input of a product."""
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else hidden.dtype


class _Saved(Protocol):
    """What a forward pass leaves to the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    settings: tuple[float, bool, torch.dtype | None]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        epsilon: float,
        dtype: torch.dtype,
    ) -> Tensor:
        hidden = hidden.contiguous()
        ctx.save_for_backward(hidden, weight)
        ctx.settings = epsilon, bias is not None, None  # pyright: ignore[reportAttributeAccessIssue]
        return _operators.norm(hidden, weight, bias, epsilon, dtype, 0)

    @staticmethod
    def backward(ctx: _Saved, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, _, *of_weights = _norm_gradients(ctx, gradients[0], None)
        return of_hidden, *of_weights, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        residual: Tensor,
        delta: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        epsilon: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        total, normed = _operators.add_norm(
            residual.contiguous(), delta.contiguous(), weight, bias, epsilon, dtype, 0
        )
        ctx.save_for_backward(total, weight)
        ctx.settings = epsilon, bias is not None, delta.dtype  # pyright: ignore[reportAttributeAccessIssue]
        return total, normed

    @staticmethod
    def backward(ctx: _Saved, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_total, of_normed = gradients
        return *_norm_gradients(ctx, of_normed, of_total), None, None


def _norm_gradients(
    ctx: _Saved, gradient: Tensor, of_total: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Of (hidden states, delta, weight, bias)."""
    hidden, weight = ctx.saved_tensors
    epsilon, centred, delta = ctx.settings
    trained = weight.requires_grad
    of_hidden, of_delta, of_weight, of_bias = _operators.norm_backward(
        *(gradient.contiguous(), None if of_total is None else of_total.contiguous()),
        *(hidden, weight, epsilon, centred, delta or hidden.dtype, trained),
    )
    return (
        of_hidden,
        of_delta if len(of_delta) else of_hidden,
        of_weight.sum(0).to(weight.dtype) if trained else None,
        of_bias.sum(0).to(weight.dtype) if trained and centred else None,
    )


class _Products(torch.autograd.Function):
    """`products` of weights that are rounded to a type of their own."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        inputs: Tensor,
        dtype: torch.dtype,
        count: int,
        *parameters: Tensor | None,
    ) -> Tensor:
        # Autocast would keep these copies for later layers, without a way back to the weights.
        with torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.to(dtype)
            weights, biases = parameters[:count], parameters[count:]
            weight = _rounded(weights, dtype)
            bias = None if biases[0] is None else _rounded(biases, dtype)
            ctx.save_for_backward(inputs, weight, *weights)  # pyright: ignore[reportArgumentType]
            ctx.settings = [None if b is None else b.dtype for b in biases]  # pyright: ignore
            return linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        inputs, weight, *weights = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        parts = gradient.split([len(w) for w in weights], dim=-1)
        rows = inputs.flatten(0, -2)
        of_weights = [_of_weight(w, part, rows) for w, part in zip(weights, parts, strict=True)]
        of_biases = [
            None if dtype is None else part.sum(0, dtype=torch.float32).to(dtype)
            for part, dtype in zip(parts, ctx.settings, strict=True)
        ]
        of_inputs = (gradient @ weight).view(inputs.shape) if ctx.needs_input_grad[0] else None
        return of_inputs, None, None, *of_weights, *of_biases


def _rounded(parameters: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor:
    rounded = [p.to(dtype) for p in parameters if p is not None]
    return rounded[0] if len(rounded) == 1 else torch.cat(rounded)


def _of_weight(weight: Tensor, gradient: Tensor, inputs: Tensor) -> Tensor | None:
    """The gradient of a weight; None where it is added to `weight.grad` here."""
    # DDP waits for autograd to hand it the gradient of every weight.
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if weight.grad is None or weight.grad.dtype != torch.float32 or not alone:
        return _operators.product(gradient.t(), inputs)
    _operators.add_product(weight.grad, gradient.t(), inputs)
    return None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return _operators.gated(gate, up, 0)

    @staticmethod
    def backward(ctx: _Saved, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return _operators.gated_backward(gradients[0].contiguous(), *ctx.saved_tensors)


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor) -> Tensor:
        hidden = hidden.contiguous()
        ctx.save_for_backward(hidden)
        return _operators.quick_gelu(hidden)

    @staticmethod
    def backward(ctx: _Saved, *gradients: Tensor) -> Tensor:
        return _operators.quick_gelu_backward(gradients[0].contiguous(), *ctx.saved_tensors)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _operators.turn(states, cosine, sine, 1)

    @staticmethod
    def backward(ctx: _Saved, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _operators.turn(gradients[0].contiguous(), cosine, sine, -1), None, None


_library = torch.library.Library("medreason", "DEF")
for _schema in (
    "norm(Tensor hidden, Tensor weight, Tensor? bias, float epsilon, ScalarType dtype, int room)"
    " -> Tensor",
    "add_norm(Tensor residual, Tensor delta, Tensor weight, Tensor? bias, float epsilon,"
    " ScalarType dtype, int room) -> (Tensor, Tensor)",
    "norm_backward(Tensor gradient, Tensor? of_total, Tensor hidden, Tensor weight, float epsilon,"
    " bool centred, ScalarType delta, bool trained) -> (Tensor, Tensor, Tensor, Tensor)",
    "gated(Tensor gate, Tensor up, int room) -> Tensor",
    "gated_backward(Tensor gradient, Tensor gate, Tensor up) -> (Tensor, Tensor)",
    "quick_gelu(Tensor hidden) -> Tensor",
    "quick_gelu_backward(Tensor gradient, Tensor hidden) -> Tensor",
    "turn(Tensor states, Tensor cosine, Tensor sine, int direction) -> Tensor",
    "turn_into_cache(Tensor states, Tensor cosine, Tensor sine, Tensor(a!) cache,"
    " Tensor write_position) -> Tensor",
    "product(Tensor a, Tensor b) -> Tensor",
    "block_sums(Tensor scores, Tensor most, int block) -> Tensor",
    "add_product(Tensor(a!) total, Tensor a, Tensor b) -> ()",
    "attend(Tensor queries, Tensor keys, Tensor values, Tensor mask) -> (Tensor, Tensor)",
    "merge(Tensor first, Tensor first_sum, Tensor second, Tensor second_sum, int members, int room,"
    " ScalarType dtype) -> Tensor",
):
    _library.define(_schema)


# Results, without values. `room` is that of further channels behind those that are written.


def _norm_results(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
    room: int,
) -> Tensor:
    return hidden.new_empty(*hidden.shape[:-1], hidden.shape[-1] + room, dtype=dtype)


def _add_norm_results(
    residual: Tensor,
    delta: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
    room: int,
) -> tuple[Tensor, Tensor]:
    normed = _norm_results(residual, weight, bias, epsilon, dtype, room)
    return torch.empty_like(residual), normed


def _norm_gradient_results(
    gradient: Tensor,
    of_total: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    epsilon: float,
    centred: bool,
    delta: torch.dtype,
    trained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights' gradients are sums over the rows of each program, to be added up."""
    of_delta = hidden.new_empty(0, dtype=delta)
    if delta != hidden.dtype:
        of_delta = torch.empty_like(hidden, dtype=delta)
    programs = min(hidden[..., 0].numel(), NORM_PROGRAMS) if trained else 0
    of_weight = hidden.new_empty(programs, len(weight), dtype=torch.float32)
    of_bias = torch.empty_like(of_weight) if centred else of_weight[:0].clone()
    return torch.empty_like(hidden), of_delta, of_weight, of_bias


def _gated_results(gate: Tensor, up: Tensor, room: int) -> Tensor:
    return gate.new_empty(*gate.shape[:-1], gate.shape[-1] + room)


def _gated_gradient_results(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(up)


def _turned_results(states: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    return states.new_empty(states.shape)


def _queries_of(
    states: Tensor, cosine: Tensor, sine: Tensor, cache: Tensor, write_position: Tensor
) -> Tensor:
    """(rows, heads of a key head, key heads, width) of states (rows, heads, width), which are
    queries ordered by key head, keys and values."""
    (rows, heads, width), keys = states.shape, cache.shape[2]
    return states.new_empty(rows, heads // keys - 2, keys, width)


def _attended_results(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    rows, heads, asked, width = queries.shape
    parts = -(-keys.shape[2] // _keys_of_a_part(queries, keys))
    attended = queries.new_empty(parts, rows, asked, heads, width, dtype=torch.float32)
    return attended, attended.new_empty(parts, rows, heads, asked)


def _keys_of_a_part(queries: Tensor, keys: Tensor) -> int:
    """So many that `ATTENTION_PROGRAMS` run at once, whole blocks."""
    rows, heads, tokens, _ = keys.shape
    blocks = -(-tokens // KEY_BLOCK)
    parts = max(1, min(blocks, ATTENTION_PROGRAMS // (rows * heads)))
    return -(-blocks // parts) * KEY_BLOCK


def _merged_results(
    first: Tensor,
    first_sum: Tensor,
    second: Tensor,
    second_sum: Tensor,
    members: int,
    room: int,
    dtype: torch.dtype,
) -> Tensor:
    _, rows, further, keys, width = second.shape
    return second.new_empty(rows, further * keys * width + room, dtype=dtype)


def _product_results(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1], dtype=torch.float32)


def _sums_of_blocks(scores: Tensor, most: Tensor, block: int) -> Tensor:
    rows, columns = scores.shape
    return scores.new_empty(rows, -(-columns // block), dtype=torch.float64)


NORM_PROGRAMS = 264
"""Of a norm's backward pass, each of which adds up the gradients of the weights over its rows: two
for each multiprocessor of an H100."""

ATTENTION_PROGRAMS = 264
"""Of a decoding step's attention: the keys of few rows are cut into parts."""

KEY_BLOCK = 64
"""Keys that one of them reads at once."""


# In plain torch.


def _norm_of(total: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    values = total.float()
    if bias is not None:
        values = values - values.mean(-1, keepdim=True)
    normed = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)
    normed = normed * weight.float()
    return normed if bias is None else normed + bias.float()


def _norm(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
    room: int,
) -> Tensor:
    normed = _norm_results(hidden, weight, bias, epsilon, dtype, room)
    normed[..., : hidden.shape[-1]] = _norm_of(hidden, weight, bias, epsilon)
    return normed


def _add_norm(
    residual: Tensor,
    delta: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
    room: int,
) -> tuple[Tensor, Tensor]:
    total = (residual + delta).to(residual.dtype)
    return total, _norm(total, weight, bias, epsilon, dtype, room)


def _norm_backward(
    gradient: Tensor,
    of_total: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    epsilon: float,
    centred: bool,
    delta: torch.dtype,
    trained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, received = hidden.float(), gradient.float()
    if centred:
        values = values - values.mean(-1, keepdim=True)
    scale = torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)
    unit, scaled = values * scale, received * weight.float()
    result = scaled - unit * (scaled * unit).mean(-1, keepdim=True)
    if centred:
        result = result - scaled.mean(-1, keepdim=True)
    result = result * scale
    if of_total is not None:
        result = result + of_total
    none = result.new_empty(0, result.shape[-1])
    return (
        result.to(hidden.dtype),
        result.to(delta) if delta != hidden.dtype else none[:, 0].to(delta),
        (received * unit).flatten(0, -2).sum(0, keepdim=True) if trained else none,
        received.flatten(0, -2).sum(0, keepdim=True) if trained and centred else none.clone(),
    )


def _gated(gate: Tensor, up: Tensor, room: int) -> Tensor:
    out, gates = _gated_results(gate, up, room), gate.float()
    out[..., : gate.shape[-1]] = gates * gates.sigmoid() * up.float()
    return out


def _gated_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    received, gates, share = gradient.float(), gate.float(), gate.float().sigmoid()
    of_gate = received * up.float() * share * (1 + gates * (1 - share))
    return of_gate.to(gate.dtype), (received * gates * share).to(up.dtype)


def _quick_gelu(hidden: Tensor) -> Tensor:
    values = hidden.float()
    return (values * (1.702 * values).sigmoid()).to(hidden.dtype)


def _quick_gelu_backward(gradient: Tensor, hidden: Tensor) -> Tensor:
    values = hidden.float()
    share = (1.702 * values).sigmoid()
    slope = share * (1 + 1.702 * values * (1 - share))
    return (gradient.float() * slope).to(hidden.dtype)


def _turned(states: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    values = states.float()
    rolled = values.roll(states.shape[-1] // 2, dims=-1)
    turned = values * cosine[:, None].float() + direction * (rolled * sine[:, None].float())
    return turned.to(states.dtype)


def _turned_into_cache(
    states: Tensor, cosine: Tensor, sine: Tensor, cache: Tensor, write_position: Tensor
) -> Tensor:
    keys = cache.shape[2]
    queries = states.shape[1] - 2 * keys
    turned = _turned(states[:, :-keys], cosine, sine, 1)
    written = torch.stack([turned[:, queries:], states[:, -keys:]])
    cache.index_copy_(3, write_position, written.unsqueeze(3).to(cache.dtype))
    return turned[:, :queries].unflatten(1, (keys, -1)).transpose(1, 2).contiguous()


def _attended(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of queries (rows, heads, queries, width) over parts of keys and values (rows,
    heads, tokens, width) with a mask (rows, 1, 1, tokens) added to the scores.

    Gives (attention (parts, rows, queries, heads, width), logarithms of the sums of exponentials
    (parts, rows, heads, queries)), both in float32, for `merge`.
    """
    scores = queries.float() @ keys.float().transpose(2, 3) * queries.shape[-1] ** -0.5 + mask
    size = _keys_of_a_part(queries, keys)
    parts = list(zip(scores.split(size, dim=3), values.float().split(size, dim=2), strict=True))
    attended = torch.stack([own.softmax(-1) @ seen for own, seen in parts])
    return attended.transpose(2, 3), torch.stack([own.logsumexp(-1) for own, _ in parts])


def _merged(
    first: Tensor,
    first_sum: Tensor,
    second: Tensor,
    second_sum: Tensor,
    members: int,
    room: int,
    dtype: torch.dtype,
) -> Tensor:
    """The attention of which `first` (parts, groups, members x heads of a key head, key heads,
    width) and `second` (parts, rows, heads of a key head, key heads, width) are parts over keys of
    their own, in `dtype`.

    The others are the logarithms of their sums of exponentials: (parts, groups, key heads, members
    x heads), (parts, rows, key heads, heads).
    """
    further, keys, width = second.shape[2:]
    sums = first_sum.unflatten(3, (members, further)).permute(0, 1, 3, 2, 4).flatten(1, 2)
    shares = torch.cat([sums, second_sum]).softmax(0).transpose(2, 3)[..., None]
    parts = torch.cat([first.reshape(-1, *second.shape[1:]), second])
    out = _merged_results(first, first_sum, second, second_sum, members, room, dtype)
    out[:, : further * keys * width] = (shares * parts).sum(0).flatten(1)
    return out


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In float32, of tensors of another type."""
    return a.float() @ b.float()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    total.addmm_(a.float(), b.float())


def _block_sums(scores: Tensor, most: Tensor, block: int) -> Tensor:
    """(rows, blocks) of scores (rows, columns): sums of exponentials, less `most` (rows, 1)."""
    exponentials = (scores.float() - most).exp_()
    if missing := -scores.shape[1] % block:
        exponentials = pad(exponentials, (0, missing))
    # In float64 a block would be copied first; of so few numbers float32 loses nothing that counts.
    return exponentials.unflatten(1, (-1, block)).sum(-1).double()


# On CUDA.


def _block_sums_on_cuda(scores: Tensor, most: Tensor, block: int) -> Tensor:
    out = _sums_of_blocks(scores, most, block)
    _kernels().block_sums(scores.contiguous(), most, out, block)
    return out


def _product_on_cuda(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b, out_dtype=torch.float32)


def _add_product_on_cuda(total: Tensor, a: Tensor, b: Tensor) -> None:
    torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


def _norm_on_cuda(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
    room: int,
) -> Tensor:
    normed = _norm_results(hidden, weight, bias, epsilon, dtype, room)
    _kernels().norm(hidden, None, weight, bias, epsilon, None, normed)
    return normed


def _add_norm_on_cuda(
    residual: Tensor,
    delta: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
    room: int,
) -> tuple[Tensor, Tensor]:
    total, normed = _add_norm_results(residual, delta, weight, bias, epsilon, dtype, room)
    _kernels().norm(residual, delta, weight, bias, epsilon, total, normed)
    return total, normed


def _norm_backward_on_cuda(
    gradient: Tensor,
    of_total: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    epsilon: float,
    centred: bool,
    delta: torch.dtype,
    trained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    results = _norm_gradient_results(
        gradient, of_total, hidden, weight, epsilon, centred, delta, trained
    )
    _kernels().norm_backward(gradient, of_total, hidden, weight, epsilon, *results, centred=centred)
    return results


def _gated_on_cuda(gate: Tensor, up: Tensor, room: int) -> Tensor:
    out = _gated_results(gate, up, room)
    _kernels().gated(gate, up, out)
    return out


def _gated_backward_on_cuda(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    results = _gated_gradient_results(gradient, gate, up)
    _kernels().gated_backward(gradient, gate, up, *results)
    return results


def _quick_gelu_on_cuda(hidden: Tensor) -> Tensor:
    out = torch.empty_like(hidden)
    _kernels().quick_gelu(hidden, None, out)
    return out


def _quick_gelu_backward_on_cuda(gradient: Tensor, hidden: Tensor) -> Tensor:
    out = torch.empty_like(hidden)
    _kernels().quick_gelu(hidden, gradient, out)
    return out


def _turned_on_cuda(states: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    out = _turned_results(states, cosine, sine, direction)
    _kernels().turn(states, cosine, sine, direction, out)
    return out


def _turned_into_cache_on_cuda(
    states: Tensor, cosine: Tensor, sine: Tensor, cache: Tensor, write_position: Tensor
) -> Tensor:
    queries = _queries_of(states, cosine, sine, cache, write_position)
    _kernels().turn_into_cache(states, cosine, sine, cache, write_position, queries)
    return queries


def _attended_on_cuda(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    results = _attended_results(queries, keys, values, mask)
    _kernels().attend(queries, keys, values, mask, *results, KEY_BLOCK)
    return results


def _merged_on_cuda(
    first: Tensor,
    first_sum: Tensor,
    second: Tensor,
    second_sum: Tensor,
    members: int,
    room: int,
    dtype: torch.dtype,
) -> Tensor:
    out = _merged_results(first, first_sum, second, second_sum, members, room, dtype)
    _kernels().merge(first, first_sum, second, second_sum, members, out)
    return out


def _kernels() -> ModuleType:
    from medreason.generation import triton_kernels  # Triton is installed with torch for CUDA alone

    return triton_kernels


_IMPLEMENTATIONS = (
    ("norm", _norm, _norm_on_cuda, _norm_results),
    ("add_norm", _add_norm, _add_norm_on_cuda, _add_norm_results),
    ("norm_backward", _norm_backward, _norm_backward_on_cuda, _norm_gradient_results),
    ("gated", _gated, _gated_on_cuda, _gated_results),
    ("gated_backward", _gated_backward, _gated_backward_on_cuda, _gated_gradient_results),
    ("quick_gelu", _quick_gelu, _quick_gelu_on_cuda, torch.empty_like),
    (
        "quick_gelu_backward",
        _quick_gelu_backward,
        _quick_gelu_backward_on_cuda,
        lambda gradient, hidden: torch.empty_like(hidden),
    ),
    ("turn", _turned, _turned_on_cuda, _turned_results),
    ("turn_into_cache", _turned_into_cache, _turned_into_cache_on_cuda, _queries_of),
    ("block_sums", _block_sums, _block_sums_on_cuda, _sums_of_blocks),
    ("product", _product, _product_on_cuda, _product_results),
    ("add_product", _add_product, _add_product_on_cuda, lambda total, a, b: None),
    ("attend", _attended, _attended_on_cuda, _attended_results),
    ("merge", _merged, _merged_on_cuda, _merged_results),
)
for _name, _plain, _on_cuda, _results in _IMPLEMENTATIONS:
    _library.impl(_name, _plain, "CPU")
    _library.impl(_name, _on_cuda, "CUDA")
    torch.library.register_fake(f"medreason::{_name}", _results, lib=_library)


def implementations(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(plain torch, CUDA) of an operator."""
    return next((plain, cuda) for known, plain, cuda, _ in _IMPLEMENTATIONS if known == name)
