"""The KV cache of a prompt, repeated for its completions, with room for their tokens."""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Keys and values in a buffer with room for the reply: a step copies its own token alone."""

    def __init__(self, keys: Tensor, values: Tensor, entries: Tensor, room: int) -> None:
        """Of caches (entries, heads, tokens, width); row i is `entries[i]`."""
        super().__init__()
        self.lazy_initialization(keys, values)
        _, heads, length, width = keys.shape
        # Zeros, since what is masked still takes part: 0 times whatever lies there.
        self._buffers = keys.new_zeros(2, len(entries), heads, length + room, width)
        self._buffers[0, :, :, :length] = keys[entries]
        self._buffers[1, :, :, :length] = values[entries]
        self._place: Tensor | None = None
        self._show(length)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        if self._place is not None:
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                # Autocast makes keys of float32 and values of bfloat16.
                buffer.index_copy_(2, self._place, states.to(buffer.dtype))
            return self.keys, self.values  # pyright: ignore[reportReturnType]
        end = self._length + key_states.shape[-2]
        self._buffers[0, :, :, self._length : end] = key_states
        self._buffers[1, :, :, self._length : end] = value_states
        return self._show(end)

    def fix(self, place: Tensor, length: int) -> None:
        """From now on a token is written at `place` (1), and so many are shown, written or not."""
        self._place = place
        self._show(length)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._buffers = self._buffers[:, indices]
        self._show(self._length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self._length = length
        keys, values = self._buffers[:, :, :, :length].unbind(0)
        self.keys, self.values = keys, values
        return keys, values


def repeat_kv_cache(cache: DynamicCache, entries: Tensor, room: int) -> DynamicCache:
    """The cache with its entry `entries[i]` as row i, and with room for so many tokens more."""
    rows = DynamicCache()
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        rows.layers.append(PreallocatedLayer(layer.keys, layer.values, entries, room))
    return rows
