"""Decoding steps as CUDA graphs that are kept: for all windows of a completion, all batches of an
evaluation, and all steps of a training, whose weights change in place.

A graph reads and writes the same addresses each time, so what it works on lies in tensors that
stay: weights, KV cache, mask, token, position and logits. There is a graph for each shape of the
rows and each window, and shapes are few: prompts are padded to multiples of `_PROMPT`, rows leave
where a power of two of them is enough.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from medreason.generation import cuda_graph
from medreason.generation.fused_step import FusedStep, StepCache, signature
from medreason.generation.prefill import Prefill

WINDOW = 64
"""Tokens that one graph decodes; the next one attends to as many more slots."""
_PROMPT = 64
_GRAPHS = 48
"""Kept at most; those not used for longest go first."""


@dataclass(frozen=True)
class _Shape:
    """Of the rows of a decoding step."""

    groups: int
    members: int
    """Rows of a group; one where rows have no prompt in common."""
    prompt: int
    """Tokens of a group's prompt; 0 where each row has its own among its slots."""
    slots: int
    """Of each row."""

    @property
    def rows(self) -> int:
        return self.groups * self.members


@dataclass(frozen=True)
class _Fixed:
    """The tensors that a step works on."""

    cache: StepCache
    tokens: Tensor
    """(rows)"""
    position: Tensor
    """(3, rows, 1)"""
    logits: Tensor
    """(rows, vocabulary)"""

    def run(self, step: FusedStep, length: int) -> None:
        """The step; nothing in it waits for the device."""
        self.cache.mask.index_fill_(3, self.cache.write_position, 0.0)
        step(self.tokens, self.position, self.cache, length, self.logits)
        # In place and as the last kernel, so that each replay writes one place further.
        self.cache.write_position.add_(1)


class DecodingGraphs:
    """The graphs, and the tensors that they work on. Elsewhere than on CUDA the same steps run
    eagerly, which is how tests compare them."""

    def __init__(self) -> None:
        self._signature: tuple[object, ...] = ()
        self._step: FusedStep | None = None
        self._storages: dict[str, Tensor] = {}
        self._graphs: OrderedDict[object, torch.cuda.CUDAGraph] = OrderedDict()
        self._warm_up_steps: dict[object, int] = {}
        self._pool: Any = None
        self._captures = False

    def begin(self, model: PreTrainedModel, prefill: Prefill, room: int) -> KeptGraphStep:
        """The step for prefilled rows, each with `room` for tokens, and the weights as they are
        now; `model` is one that `takes_fused_steps`."""
        new = signature(model)
        if self._step is None or new != self._signature:
            self.release()
            self._step = FusedStep(model)
            self._signature = signature(model)  # frozen layers may have been joined
            self._captures = cuda_graph.captures_on(model.device)
        else:
            self._step.refresh()
        return KeptGraphStep(self, self._step, prefill, room)

    def release(self) -> None:
        """Free all that is kept."""
        self._step, self._pool, self._signature = None, None, ()
        self._graphs.clear()
        self._warm_up_steps.clear()
        self._storages.clear()

    @property
    def kept_bytes(self) -> int:
        """Of the KV cache and copies of weights."""
        held = sum(t.numel() * t.element_size() for t in self._storages.values())
        return held + (self._step.copied_bytes if self._step else 0)

    def tensor(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """A tensor at the address of all of that name; the graphs end where it needs a larger one.
        What it holds is left from before."""
        numbers = torch.Size(shape).numel()
        held = self._storages.get(name)
        if held is None or len(held) < numbers or held.dtype != dtype:
            # A graph has the addresses that it was captured with, which are about to be freed.
            self._graphs.clear()
            # Of the KV cache, two would not fit beside each other.
            self._storages.pop(name, None)
            held = None
            held = torch.zeros(numbers, dtype=dtype, device=device)
            self._storages[name] = held
        return held[:numbers].view(shape)

    def run(self, key: object, kernels: Callable[[], None]) -> None:
        """Run the kernels, by the graph of this key as soon as that is captured."""
        graph = self._graphs.get(key)
        count = self._warm_up_steps.get(key, 0)
        # Eager at first: libraries choose algorithms and allocate then, which no capture allows.
        if graph is None and self._captures and count >= cuda_graph.WARM_UP_STEPS:
            graph = self._capture(key, kernels)
        if graph is None:
            self._warm_up_steps[key] = count + 1
            kernels()
            return
        self._graphs.move_to_end(key)
        graph.replay()

    def _capture(self, key: object, kernels: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        # One pool for all: a graph's own memory is free again when it has run.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = cuda_graph.captured(kernels, self._pool)
        self._captures = graph is not None
        if graph is not None:
            self._graphs[key] = graph
            while len(self._graphs) > _GRAPHS:
                self._graphs.popitem(last=False)
        return graph


class KeptGraphStep:
    """The decoding step of some rows. Attention sees slots up to the end of a window, a mask hides
    those that are not written."""

    def __init__(
        self, graphs: DecodingGraphs, step: FusedStep, prefill: Prefill, room: int
    ) -> None:
        self._graphs, self._step = graphs, step
        self._device, rows = prefill.mask.device, len(prefill.mask)
        if prefill.prompts:
            mask = prefill.prompts.mask
            prompt = _up_to(mask.shape[1], _PROMPT)
            self._shape = _Shape(len(mask), rows // len(mask), prompt, _up_to(room, WINDOW))
            self._length = 0
            self._allocate()
            self._fill_prompts(prefill.prompts.cache, mask.bool())
        else:
            self._length = _up_to(prefill.mask.shape[1], _PROMPT)
            self._shape = _Shape(rows, 1, 0, self._length + _up_to(room, WINDOW))
            self._allocate()
            self._fill_rows(prefill.cache(), prefill.mask.bool())
        self._fixed.cache.write_position.fill_(self._length)
        self._window_end = self._length

    def _allocate(self) -> None:
        shape, step = self._shape, self._step
        heads = (step.key_heads, step.width)
        dtype = step.dtype

        def tensor(name: str, *sizes: int, dtype: torch.dtype = dtype) -> Tensor:
            return self._graphs.tensor(name, sizes, dtype, self._device)

        def states(name: str, rows: int, tokens: int) -> Tensor:
            return tensor(name, step.layers, 2, rows, heads[0], tokens, heads[1])

        prompt = shape.prompt
        cache = StepCache(
            own=states("own", shape.rows, shape.slots),
            mask=tensor("mask", shape.rows, 1, 1, shape.slots),
            write_position=tensor("write_position", 1, dtype=torch.long),
            prompts=states("prompts", shape.groups, prompt) if prompt else None,
            prompt_mask=tensor("prompt_mask", shape.groups, 1, 1, prompt) if prompt else None,
        )
        self._fixed = _Fixed(
            cache,
            tokens=tensor("tokens", shape.rows, dtype=torch.long),
            position=tensor("position", 3, shape.rows, 1, dtype=torch.long),
            logits=tensor("logits", shape.rows, step.vocabulary),
        )

    def _fill_prompts(self, cache: DynamicCache, visible: Tensor) -> None:
        """With the prompts behind padding, and rows that have no tokens yet."""
        kept = self._fixed.cache
        assert kept.prompts is not None
        assert kept.prompt_mask is not None
        self._fill(kept.prompts, cache)
        self._fill_mask(kept.prompt_mask, visible)
        # What a mask hides is multiplied by 0, which makes NaN of what another call may have left.
        kept.own.zero_()
        kept.mask.fill_(torch.finfo(self._step.dtype).min)

    def _fill_rows(self, cache: DynamicCache, visible: Tensor) -> None:
        """With each row's prompt behind padding, and room for its tokens."""
        kept = self._fixed.cache
        self._fill(kept.own[..., : self._length, :], cache, visible.shape[1])
        kept.own[..., self._length :, :] = 0
        kept.mask.fill_(torch.finfo(self._step.dtype).min)
        self._fill_mask(kept.mask[..., : self._length], visible)

    def _fill(self, states: Tensor, cache: DynamicCache, tokens: int | None = None) -> None:
        layers: list[Any] = cache.layers
        for kept, layer in zip(states, layers, strict=True):
            for part, new in zip(kept, (layer.keys, layer.values), strict=True):
                held = new[:, :, :tokens]
                behind = part.shape[2] - held.shape[2]
                part[:, :, :behind] = 0
                part[:, :, behind:] = held

    def _fill_mask(self, mask: Tensor, visible: Tensor) -> None:
        mask.fill_(torch.finfo(mask.dtype).min)
        behind = mask.shape[-1] - visible.shape[1]
        mask[:, 0, 0, behind:].masked_fill_(visible, 0)

    def drop_rows(self, active: Tensor, remaining: int) -> Tensor | None:
        """The rows that stay, where some of those that are not `active` leave: between two windows,
        and to shapes that come again. Groups stay of equal size, so some that have ended stay."""
        shape = self._shape
        if self._length != self._window_end or not 0 < remaining < shape.rows:
            return None
        by_group = active.view(shape.groups, shape.members)
        counts = by_group.sum(1)
        if not counts.any():  # `remaining` is of an earlier step
            return None
        # Powers of two, since each shape is a graph more.
        groups = _power_of_two(int((counts > 0).sum()), shape.groups)
        members = _power_of_two(int(counts.max()), shape.members)
        if groups * members == shape.rows:
            return None
        kept = counts.sign().argsort(descending=True, stable=True)[:groups].sort().values
        places = by_group.long().argsort(dim=1, descending=True, stable=True)
        places = places[kept, :members].sort(dim=1).values
        rows = (kept[:, None] * shape.members + places).flatten()
        self._keep(kept, rows, replace(shape, groups=groups, members=members))
        return rows

    def _keep(self, groups: Tensor, rows: Tensor, shape: _Shape) -> None:
        before, self._shape = self._fixed.cache, shape
        self._allocate()
        after = self._fixed.cache
        # Layer by layer: what is kept moves to the front of the same memory.
        for place in range(self._step.layers):
            after.own[place] = before.own[place][:, rows].clone()
        after.mask.copy_(before.mask[rows].clone())
        if before.prompts is None:
            return
        assert after.prompts is not None
        assert before.prompt_mask is not None
        assert after.prompt_mask is not None
        for place in range(self._step.layers):
            after.prompts[place] = before.prompts[place][:, groups].clone()
        after.prompt_mask.copy_(before.prompt_mask[groups].clone())

    def __call__(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Logits (rows, vocabulary), overwritten by the next call, behind tokens (rows) at mRoPE
        positions (3, rows, 1)."""
        self.skip(0)
        self._fixed.tokens.copy_(tokens)
        self._fixed.position.copy_(position)
        self._length += 1
        self._graphs.run((self._shape, self._window_end), self.kernels)
        return self._fixed.logits

    @property
    def kernels(self) -> Callable[[], None]:
        """What a graph captures."""
        return functools.partial(self._fixed.run, self._step, self._window_end)

    def skip(self, tokens: int) -> None:
        """Take so many as decoded, and open the window of the next one."""
        self._length += tokens
        while self._length >= self._window_end:
            self._window_end += WINDOW


def _up_to(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _power_of_two(number: int, most: int) -> int:
    """The least that is no less than `number`, at most `most`."""
    return min(1 << (number - 1).bit_length(), most)
