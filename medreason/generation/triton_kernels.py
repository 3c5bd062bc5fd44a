"""What `fused_operators` computes on CUDA, each in one kernel. Imported where it is first run.

All numbers are computed in float32 and rounded once, where they are written. A program handles a
row, or a block of one. Strides are those between rows; numbers of a row lie behind each other.
"""

# ruff: noqa: ANN001, ANN202, N803
# pyright: reportArgumentType=false

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_ROWS_AT_ONCE = 4096
_BLOCKS = 32
_QUERIES = 64
"""Of a block of attention."""


@triton.jit
def _norm(
    residual, delta, weight, bias, total, normed, width, room, epsilon,
    HAS_DELTA: tl.constexpr, CENTRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    hidden = tl.load(residual + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        hidden += tl.load(delta + row * width + column, mask=inside, other=0.0).to(tl.float32)
        # What follows reads the sum as it is kept.
        rounded = hidden.to(total.dtype.element_ty)
        tl.store(total + row * width + column, rounded, mask=inside)
        hidden = rounded.to(tl.float32)
    if CENTRED:
        hidden = tl.where(inside, hidden - tl.sum(hidden) / width, 0.0)
    scale = tl.rsqrt(tl.sum(hidden * hidden) / width + epsilon)
    result = hidden * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:
        result += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    place = normed + row * (width + room) + column
    tl.store(place, result.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward(
    gradient, of_total, hidden, weight, of_hidden, of_delta, of_weight, of_bias,
    rows, width, epsilon,
    HAS_TOTAL: tl.constexpr, HAS_DELTA: tl.constexpr, WEIGHTS: tl.constexpr,
    CENTRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside = column < width
    scales = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    weight_sum = tl.zeros([BLOCK], dtype=tl.float32)
    bias_sum = tl.zeros([BLOCK], dtype=tl.float32)
    begin, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    for turn in range(tl.cdiv(rows, programs)):
        row = begin + turn * programs
        place, here = row * width + column, inside & (row < rows)
        values = tl.load(hidden + place, mask=here, other=0.0).to(tl.float32)
        received = tl.load(gradient + place, mask=here, other=0.0).to(tl.float32)
        if CENTRED:
            values = tl.where(inside, values - tl.sum(values) / width, 0.0)
        scale = tl.rsqrt(tl.sum(values * values) / width + epsilon)
        unit = values * scale
        scaled = received * scales
        result = scaled - unit * (tl.sum(scaled * unit) / width)
        if CENTRED:
            result -= tl.sum(scaled) / width
        result *= scale
        if HAS_TOTAL:
            result += tl.load(of_total + place, mask=here, other=0.0).to(tl.float32)
        tl.store(of_hidden + place, result.to(of_hidden.dtype.element_ty), mask=here)
        if HAS_DELTA:
            tl.store(of_delta + place, result.to(of_delta.dtype.element_ty), mask=here)
        weight_sum += received * unit
        bias_sum += received
    if WEIGHTS:
        part = tl.program_id(0) * width + column
        tl.store(of_weight + part, weight_sum, mask=inside)
        if CENTRED:
            tl.store(of_bias + part, bias_sum, mask=inside)


@triton.jit
def _gated(gate, up, out, gate_stride, up_stride, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gates = tl.load(gate + row * gate_stride + column, mask=inside).to(tl.float32)
    ups = tl.load(up + row * up_stride + column, mask=inside).to(tl.float32)
    result = gates * tl.sigmoid(gates) * ups
    tl.store(out + row * out_stride + column, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward(gradient, gate, up, of_gate, of_up, numbers, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < numbers
    received = tl.load(gradient + place, mask=inside).to(tl.float32)
    gates = tl.load(gate + place, mask=inside).to(tl.float32)
    ups = tl.load(up + place, mask=inside).to(tl.float32)
    share = tl.sigmoid(gates)
    slope = share * (1.0 + gates * (1.0 - share))
    tl.store(of_gate + place, (received * ups * slope).to(of_gate.dtype.element_ty), mask=inside)
    tl.store(of_up + place, (received * gates * share).to(of_up.dtype.element_ty), mask=inside)


@triton.jit
def _quick_gelu(hidden, gradient, out, numbers, BACKWARD: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < numbers
    values = tl.load(hidden + place, mask=inside).to(tl.float32)
    share = tl.sigmoid(1.702 * values)
    if BACKWARD:
        result = share * (1.0 + 1.702 * values * (1.0 - share))
        result *= tl.load(gradient + place, mask=inside).to(tl.float32)
    else:
        result = values * share
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turn(
    states, cosine, sine, out, cache, write_position,
    row_stride, direction, heads, queries, keys, cache_part, cache_row, cache_head,
    WIDTH: tl.constexpr, HALF: tl.constexpr, INTO_CACHE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    inside = channel < WIDTH
    begin = states + row * row_stride + head * WIDTH
    partner = tl.where(channel < HALF, channel + HALF, channel - HALF)
    own = tl.load(begin + channel, mask=inside).to(tl.float32)
    other = tl.load(begin + partner, mask=inside).to(tl.float32)
    cosines = tl.load(cosine + row * WIDTH + channel, mask=inside).to(tl.float32)
    sines = tl.load(sine + row * WIDTH + channel, mask=inside).to(tl.float32)
    result = own * cosines + direction * other * sines
    if not INTO_CACHE:
        place = out + (row * heads + head) * WIDTH + channel
        tl.store(place, result.to(out.dtype.element_ty), mask=inside)
    elif head < queries:
        # Ordered (further head, key head), as the merge of attentions takes them.
        further = queries // keys
        turned_head = (head % further) * keys + head // further
        place = out + (row * queries + turned_head) * WIDTH + channel
        tl.store(place, result.to(out.dtype.element_ty), mask=inside)
    else:
        is_value = head >= queries + keys
        result = tl.where(is_value, own, result)
        key_head = tl.where(is_value, head - queries - keys, head - queries)
        place = cache + is_value.to(tl.int64) * cache_part + row * cache_row
        place += key_head * cache_head + tl.load(write_position) * WIDTH + channel
        tl.store(place, result.to(cache.dtype.element_ty), mask=inside)


@triton.jit
def _product(a, b, INTERPRETED: tl.constexpr):
    if INTERPRETED:  # Triton's interpreter multiplies the bits of bfloat16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _attend(
    queries, keys, values, mask, out, sums,
    heads, asked, tokens, scale,
    query_row, query_head, query_stride, key_row, key_head, key_stride,
    value_row, value_head, value_stride, mask_row,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ASKED: tl.constexpr, TOKENS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Of one row and head: queries (ASKED, width) over one part of the keys."""
    row, head = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0) % heads
    part, parts = tl.program_id(1), tl.num_programs(1)
    rows = tl.num_programs(0) // heads
    query = tl.program_id(2) * ASKED + tl.arange(0, ASKED)
    channel, token = tl.arange(0, BLOCK), tl.arange(0, TOKENS)
    inside, is_asked = channel < WIDTH, query < asked
    of_query = is_asked[:, None] & inside[None, :]
    place = queries + row * query_row + head * query_head
    place += query[:, None] * query_stride + channel[None, :]
    asking = tl.load(place, mask=of_query, other=0.0)
    most = tl.full([ASKED], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ASKED], dtype=tl.float32)
    attended = tl.zeros([ASKED, BLOCK], dtype=tl.float32)
    key_begin = keys + row * key_row + head * key_head
    value_begin = values + row * value_row + head * value_head
    blocks = tl.cdiv(tl.cdiv(tokens, TOKENS), parts)
    for block in range(part * blocks, (part + 1) * blocks):
        at = block * TOKENS + token
        exists = at < tokens
        of_token = exists[:, None] & inside[None, :]
        key_place = key_begin + at[:, None] * key_stride + channel[None, :]
        key = tl.load(key_place, mask=of_token, other=0.0)
        scores = _product(asking, tl.trans(key), INTERPRETED) * scale
        added = tl.load(mask + row * mask_row + at, mask=exists, other=float("-inf"))
        scores += added.to(tl.float32)[None, :]
        higher = tl.maximum(most, tl.max(scores, axis=1))
        # Where there was no token yet, both are -inf, and their difference no number.
        known = tl.where(higher == float("-inf"), 0.0, higher)
        shares = tl.exp(scores - known[:, None])
        kept = tl.exp(most - known)
        value_place = value_begin + at[:, None] * value_stride + channel[None, :]
        value = tl.load(value_place, mask=of_token, other=0.0)
        attended *= kept[:, None]
        attended += _product(shares.to(value.dtype), value, INTERPRETED)
        total = total * kept + tl.sum(shares, axis=1)
        most = higher
    found = total > 0
    attended /= tl.where(found, total, 1.0)[:, None]
    summed = tl.where(found, most + tl.log(tl.where(found, total, 1.0)), float("-inf"))
    written = ((part * rows + row) * asked + query) * heads + head
    tl.store(out + written[:, None] * WIDTH + channel[None, :], attended, mask=of_query)
    summed_at = ((part * rows + row) * heads + head) * asked + query
    tl.store(sums + summed_at, summed, mask=is_asked)


@triton.jit
def _merge(
    first, first_sum, second, second_sum, out, rows, heads, members, shared, out_stride,
    FIRST: tl.constexpr, SECOND: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    inside = channel < WIDTH
    # Query heads are ordered (further head, key head); sums lie by key head.
    keys = heads // shared
    key_head, further = head % keys, head // keys
    group, member = row // members, row % members
    most = float("-inf")
    total = 0.0
    attended = tl.zeros([BLOCK], dtype=tl.float32)
    place = (row * heads + head) * WIDTH + channel
    for part in tl.static_range(FIRST + SECOND):
        if part < FIRST:
            own = (group * keys + key_head) * members * shared + member * shared + further
            own_sum = tl.load(first_sum + part * rows * heads + own)
            values = tl.load(first + part * rows * heads * WIDTH + place, mask=inside)
        else:
            own = (row * keys + key_head) * shared + further
            own_sum = tl.load(second_sum + (part - FIRST) * rows * heads + own)
            values = tl.load(second + (part - FIRST) * rows * heads * WIDTH + place, mask=inside)
        higher = tl.maximum(most, own_sum)
        known = tl.where(higher == float("-inf"), 0.0, higher)
        kept, share = tl.exp(most - known), tl.exp(own_sum - known)
        attended = attended * kept + share * values.to(tl.float32)
        total = total * kept + share
        most = higher
    place = out + row * out_stride + head * WIDTH + channel
    tl.store(place, (attended / total).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _block_sums(scores, most, out, columns, blocks, WIDTH: tl.constexpr, BLOCKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    column = block[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    values = tl.load(scores + row * columns + column, mask=column < columns, other=float("-inf"))
    exponentials = tl.exp(values.to(tl.float32) - tl.load(most + row).to(tl.float32))
    sums = tl.sum(exponentials.to(tl.float64), axis=1)
    tl.store(out + row * blocks + block, sums, mask=block < blocks)


def block_sums(scores: Tensor, most: Tensor, out: Tensor, block: int) -> None:
    (rows, columns), blocks = scores.shape, out.shape[1]
    grid = (rows, triton.cdiv(blocks, _BLOCKS))
    _block_sums[grid](scores, most, out, columns, blocks, WIDTH=block, BLOCKS=_BLOCKS)


def norm(
    hidden: Tensor,
    delta: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    total: Tensor | None,
    normed: Tensor,
) -> None:
    width = hidden.shape[-1]
    _norm[(hidden.numel() // width,)](
        *(hidden, delta, weight, bias, total, normed, width, normed.shape[-1] - width, epsilon),
        HAS_DELTA=delta is not None,
        CENTRED=bias is not None,
        BLOCK=triton.next_power_of_2(width),
    )


def norm_backward(
    gradient: Tensor,
    of_total: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    epsilon: float,
    of_hidden: Tensor,
    of_delta: Tensor,
    of_weight: Tensor,
    of_bias: Tensor,
    *,
    centred: bool,
) -> None:
    width = hidden.shape[-1]
    rows = hidden.numel() // width
    programs = len(of_weight) or min(rows, _ROWS_AT_ONCE)
    _norm_backward[(programs,)](
        *(gradient, of_total, hidden, weight, of_hidden, of_delta, of_weight, of_bias),
        *(rows, width, epsilon),
        HAS_TOTAL=of_total is not None,
        HAS_DELTA=bool(len(of_delta)),
        WEIGHTS=bool(len(of_weight)),
        CENTRED=centred,
        BLOCK=triton.next_power_of_2(width),
    )


def gated(gate: Tensor, up: Tensor, out: Tensor) -> None:
    width = gate.shape[-1]
    rows = gate.numel() // width
    strides = (gate.stride(-2), up.stride(-2), out.stride(-2))
    _gated[(rows, triton.cdiv(width, _BLOCK))](gate, up, out, *strides, width, BLOCK=_BLOCK)


def gated_backward(
    gradient: Tensor, gate: Tensor, up: Tensor, of_gate: Tensor, of_up: Tensor
) -> None:
    numbers = gate.numel()
    grid = (triton.cdiv(numbers, _BLOCK),)
    _gated_backward[grid](gradient, gate, up, of_gate, of_up, numbers, BLOCK=_BLOCK)


def quick_gelu(hidden: Tensor, gradient: Tensor | None, out: Tensor) -> None:
    numbers = hidden.numel()
    grid = (triton.cdiv(numbers, _BLOCK),)
    _quick_gelu[grid](hidden, gradient, out, numbers, BACKWARD=gradient is not None, BLOCK=_BLOCK)


def turn(states: Tensor, cosine: Tensor, sine: Tensor, direction: int, out: Tensor) -> None:
    rows, heads, width = states.shape
    _turn[(rows, heads)](
        *(states, cosine, sine, out, None, None),
        *(states.stride(0), float(direction), heads, 0, 0, 0, 0, 0),
        WIDTH=width,
        HALF=width // 2,
        INTO_CACHE=False,
        BLOCK=triton.next_power_of_2(width),
    )


def turn_into_cache(
    states: Tensor, cosine: Tensor, sine: Tensor, cache: Tensor, write_position: Tensor, out: Tensor
) -> None:
    rows, heads, width = states.shape
    _turn[(rows, heads)](
        *(states, cosine, sine, out, cache, write_position),
        *(states.stride(0), 1.0, heads, heads - 2 * cache.shape[2], cache.shape[2]),
        *cache.stride()[:3],
        WIDTH=width,
        HALF=width // 2,
        INTO_CACHE=True,
        BLOCK=triton.next_power_of_2(width),
    )


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    out: Tensor,
    sums: Tensor,
    key_block: int,
) -> None:
    rows, heads, asked, width = queries.shape
    at_once = min(max(16, triton.next_power_of_2(asked)), _QUERIES)
    strides = (*queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3], mask.stride(0))
    _attend[(rows * heads, len(out), triton.cdiv(asked, at_once))](
        *(queries, keys, values, mask, out, sums, heads, asked, keys.shape[2], width**-0.5),
        *strides,
        WIDTH=width,
        BLOCK=max(16, triton.next_power_of_2(width)),
        ASKED=at_once,
        TOKENS=key_block,
        INTERPRETED=os.environ.get("TRITON_INTERPRET") == "1",
        num_stages=1 if queries.dtype == torch.float32 else 2,  # pyright: ignore  # small cards
    )


def merge(
    first: Tensor, first_sum: Tensor, second: Tensor, second_sum: Tensor, members: int, out: Tensor
) -> None:
    _, rows, further, keys, width = second.shape
    _merge[(rows, further * keys)](
        *(first, first_sum, second, second_sum, out, rows, further * keys, members, further),
        out.stride(0),
        FIRST=len(first),
        SECOND=len(second),
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
    )
