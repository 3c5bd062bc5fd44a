"""Token by token from prompts that have been read, as `generate` decodes: for training's draws
and for evaluation's greedy answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class Drawn:
    """One completion."""

    ids: list[int]
    """The end token included, where there is one."""
    logps: list[float]
    """Log-probability of each token in the distribution it was drawn from."""


@dataclass(frozen=True)
class Prompted:
    """Rows whose prompts have been read."""

    logits: Tensor
    """(rows, vocabulary), of the first token to come."""
    position: Tensor
    """(3, rows, 1): mRoPE position of each prompt's last token."""
    mask: Tensor
    """(rows, tokens): 0 where the cache holds padding."""
    cache: Callable[[], DynamicCache]
    """Keys and values of the rows; asked for once a second token is to be decoded."""


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompted: Prompted,
    settings: GenerationConfig,
    draws: Tensor | None,
    everywhere: Callable[[int], int] = int,
) -> list[Drawn]:
    """A completion of each row. `draws` (steps, rows) from [0, 1) choose the tokens; without them
    the likeliest is taken. Rows that have ended leave the batch.

    `everywhere` makes of the rows left here those left in all processes that run the model's layers
    together: none stops before the others.
    """
    assert settings.max_new_tokens is not None
    logits, position = prompted.logits, prompted.position
    # Without padding no mask is needed, and attention is faster for it.
    mask = None if bool(prompted.mask.all()) else prompted.mask
    ends = torch.as_tensor(settings.eos_token_id, device=logits.device).view(-1)
    shape = (len(logits), settings.max_new_tokens)
    ids, logps = logits.new_zeros(shape, dtype=torch.long), logits.new_zeros(shape).float()
    lengths = torch.full((len(logits),), settings.max_new_tokens, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)  # those in the batch
    going = torch.ones_like(rows, dtype=torch.bool)
    filters = _filters(settings, logits.device)
    cache = DynamicCache()

    for step in range(settings.max_new_tokens):
        drawn = draws[step, rows] if draws is not None else None
        tokens, ids_logps = choose(filters(None, logits.float()), drawn)  # pyright: ignore[reportArgumentType]
        ids[rows[going], step] = tokens[going]
        logps[rows[going], step] = ids_logps[going]
        ended = going & torch.isin(tokens, ends)
        lengths[rows[ended]] = step + 1
        going = going & ~ended
        left = int(going.sum())
        if step + 1 == settings.max_new_tokens or not everywhere(left):
            break
        if step == 0:
            cache = prompted.cache()
        if 0 < left <= 0.9 * len(rows):  # each drop copies the cache, so not for every row
            cache.batch_select_indices(going.nonzero()[:, 0])
            rows, tokens, position = rows[going], tokens[going], position[:, going]
            mask = mask[going] if mask is not None else None
            going = going[going]
        position = position + 1
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]

    return [
        Drawn(row[:length], values[:length])
        for row, values, length in zip(ids.tolist(), logps.tolist(), lengths.tolist(), strict=True)
    ]


def choose(scores: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
    """(tokens, log-probabilities) of scores (rows, vocabulary) and draws (rows) from [0, 1).

    A draw falls into the cumulated probabilities; without draws the likeliest token is taken.
    """
    logps = scores.log_softmax(-1)
    if drawn is None:
        tokens = scores.argmax(-1)
    else:
        heights = logps.double().exp().cumsum(-1)
        heights = torch.searchsorted(heights, (drawn * heights[:, -1])[:, None], right=True)
        tokens = heights[:, 0].clamp(max=scores.shape[-1] - 1)
    return tokens, logps.gather(1, tokens[:, None])[:, 0]


def repeated(cache: DynamicCache, entries: Tensor, room: int) -> DynamicCache:
    """The cache with its entry `entries[i]` as row i, and with room for so many tokens more."""
    rows = DynamicCache()
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        rows.layers.append(_Roomy(layer.keys, layer.values, entries, room))
    return rows


def _filters(settings: GenerationConfig, device: torch.device) -> LogitsProcessorList:
    """transformers' own, in the order of `generate`."""
    filters = LogitsProcessorList()
    if settings.suppress_tokens is not None:
        filters.append(SuppressTokensLogitsProcessor(settings.suppress_tokens, str(device)))
    if not settings.do_sample:
        return filters
    if settings.temperature is not None and settings.temperature != 1.0:
        filters.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        filters.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p is not None and settings.top_p < 1.0:
        filters.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p is not None:
        filters.append(MinPLogitsWarper(settings.min_p))
    return filters


class _Roomy(DynamicLayer):
    """Keys and values in a buffer with room for the reply: a step copies its own token alone."""

    def __init__(self, keys: Tensor, values: Tensor, entries: Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        _, heads, length, width = keys.shape
        self._buffers = keys.new_empty(2, len(entries), heads, length + room, width)
        self._buffers[0, :, :, :length] = keys[entries]
        self._buffers[1, :, :, :length] = values[entries]
        self._length = length
        self._shown()

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[-2]
        self._buffers[0, :, :, self._length : end] = key_states
        self._buffers[1, :, :, self._length : end] = value_states
        self._length = end
        return self._shown()

    def batch_select_indices(self, indices: Tensor) -> None:
        self._buffers = self._buffers[:, indices]
        self._shown()

    def _shown(self) -> tuple[Tensor, Tensor]:
        keys, values = self._buffers[:, :, :, : self._length].unbind(0)
        self.keys, self.values = keys, values
        return keys, values
