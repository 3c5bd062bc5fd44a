"""The KV cache of a prompt, repeated for its completions, with room for their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer in a buffer that has room for the completions.

    transformers' own layer appends by concatenation, which copies the whole cache in every decoding
    step; here a step copies the keys and values of its own token alone.
    """

    def __init__(self, keys: Tensor, values: Tensor, entries: Tensor, room: int) -> None:
        """Of keys and values (entries, heads, tokens, width); row i repeats `entries[i]`."""
        super().__init__()
        _, heads, length, width = keys.shape
        dtype = _stored_dtype(keys)
        self.lazy_initialization(*[keys.new_empty(0, dtype=dtype)] * 2)
        self._buffers = keys.new_empty(2, len(entries), heads, length + room, width, dtype=dtype)
        # Not uninitialized memory: what a mask hides is still multiplied by a weight of 0, and 0
        # times NaN is NaN.
        self._buffers[:, :, :, length:] = 0
        self._buffers[0, :, :, :length] = keys[entries]
        self._buffers[1, :, :, :length] = values[entries]
        self._write_position: Tensor | None = None
        self._places: tuple[Tensor, Tensor] | None = None
        self._expose(length)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        if self._places is not None:
            rows, slots = self._places
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[rows, :, slots] = states[0].transpose(0, 1).to(buffer.dtype)
            return self.keys, self.values  # pyright: ignore[reportReturnType]
        if self._write_position is not None:
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                # Autocast makes keys of float32 and values of bfloat16; see `_stored_dtype`.
                buffer.index_copy_(2, self._write_position, states.to(buffer.dtype))
            return self.keys, self.values  # pyright: ignore[reportReturnType]
        end = self._length + key_states.shape[-2]
        self._buffers[0, :, :, self._length : end] = key_states
        self._buffers[1, :, :, self._length : end] = value_states
        return self._expose(end)

    def fix_shape(self, write_position: Tensor, length: int) -> None:
        """From now on each token is written at `write_position` (1), a tensor that the caller
        advances, and attention sees `length` tokens, written or not."""
        self._write_position = write_position
        self._expose(length)

    def write_at(self, rows: Tensor, slots: Tensor, length: int) -> None:
        """The next tokens come as one sequence: token i is written at `slots[i]` of row `rows[i]`.
        Attention sees `length` tokens of each row, written or not."""
        self._places = rows, slots
        self._expose(length)

    def write(self, states: Tensor, write_position: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (rows, 2, heads, width) of one token at `write_position` (1);
        returns what attention sees."""
        self._buffers.index_copy_(3, write_position, states.transpose(0, 1).unsqueeze(3))
        return self.keys, self.values  # pyright: ignore[reportReturnType]

    def write_tokens(
        self, states: Tensor, rows: Tensor, slots: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values (tokens, 2, heads, width) of token i at `slots[i]` of row
        `rows[i]`; returns the first `length` of each row, which attention sees."""
        self._buffers[:, rows, :, slots] = states.to(self._buffers.dtype)
        return self._expose(length)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._buffers = self._buffers[:, indices]
        self._expose(self._length)

    def take_rows(self, other: PreallocatedLayer, places: Sequence[int]) -> None:
        """Take in the rows of another layer, with their own room, over those at `places` and then
        behind those that are here."""
        slots = max(self._buffers.shape[3], other._buffers.shape[3])
        self._buffers, others = (
            _with_room(buffers, slots) for buffers in (self._buffers, other._buffers)
        )
        self._buffers[:, [*places]] = others[:, : len(places)]
        if len(places) < others.shape[1]:
            self._buffers = torch.cat([self._buffers, others[:, len(places) :]], dim=1)
        self._expose(self._length)

    def _expose(self, length: int) -> tuple[Tensor, Tensor]:
        """Let attention see the first `length` tokens: views of the buffer, no copies."""
        self._length = length
        keys, values = self._buffers[:, :, :, :length].unbind(0)
        self.keys, self.values = keys, values
        return keys, values


def _with_room(buffers: Tensor, slots: int) -> Tensor:
    more = slots - buffers.shape[3]
    return nn.functional.pad(buffers, (0, 0, 0, more)) if more else buffers  # pad always copies


def _stored_dtype(keys: Tensor) -> torch.dtype:
    """That in which attention reads them. Under autocast, rotation leaves keys in float32 and
    attention rounds them in each step: rounded once, they take half the memory."""
    device = keys.device.type
    autocast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else keys.dtype


def repeat_kv_cache(
    cache: DynamicCache, entries: Tensor, room: int, *, first: int = 0
) -> DynamicCache:
    """The KV cache from slot `first` on, with its entry `entries[i]` as row i, and with room for
    `room` more tokens."""
    repeated = DynamicCache()
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        keys, values = layer.keys[:, :, first:], layer.values[:, :, first:]
        repeated.layers.append(PreallocatedLayer(keys, values, entries, room))
    return repeated


def empty_kv_cache(like: Tensor, layers: int, shape: tuple[int, int, int, int]) -> DynamicCache:
    """A KV cache of `shape` (rows, heads, room, width) in type and place of `like`."""
    rows, heads, room, width = shape
    nothing = like.new_empty(1, heads, 0, width)
    entries = torch.zeros(rows, dtype=torch.long, device=like.device)
    cache = DynamicCache()
    for _ in range(layers):
        cache.layers.append(PreallocatedLayer(nothing, nothing, entries, room))
    return cache
