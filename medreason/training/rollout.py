"""Completions of questions, sampled as `generate` samples them: image and prompt once a question.

The prompt is read once and its keys and values are repeated for its completions. Each question
draws from a stream of its own, so its completions depend neither on the batch it came in nor on
the number of processes nor on a resume (save where rounding moves a token across a draw).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
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

_HONOURED = {
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "suppress_tokens",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "disable_compile",
    "transformers_version",
}


@dataclass(frozen=True)
class Drawn:
    """One completion."""

    ids: list[int]
    """The end token included, where there is one."""
    logps: list[float]
    """Log-probability of each token in the distribution it was drawn from."""


def not_honoured(settings: GenerationConfig) -> dict[str, Any]:
    """What these settings ask of `generate` that `rollout` does not do."""
    asked = {k: v for k, v in settings.to_diff_dict().items() if k not in _HONOURED}
    if asked.get("repetition_penalty") == 1.0:
        del asked["repetition_penalty"]
    return asked


@torch.no_grad()
def rollout(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    completions: int,
    settings: GenerationConfig,
    seeds: Sequence[str],
) -> list[list[Drawn]]:
    """`completions` of each question, in the order of the questions.

    `inputs` are what the model's forward takes for the questions, each once: input_ids and
    attention_mask padded on the left, mm_token_type_ids, image_grid_thw, and either pixel_values
    or mm_encoder_outputs. Without `settings.do_sample` the likeliest token is taken. The model is
    run as it stands; `eval()` is the caller's.
    """
    assert settings.max_new_tokens is not None
    position_ids = prompt_positions(model, inputs)
    mask = inputs["attention_mask"]  # (questions, prompt tokens)
    outputs = model(
        **{k: v for k, v in inputs.items() if k != "mm_token_type_ids"},
        position_ids=position_ids,
        use_cache=True,
        logits_to_keep=1,
    )
    logits = outputs.logits[:, -1].repeat_interleave(completions, dim=0)  # (rows, vocabulary)
    position = position_ids[:, :, -1:].repeat_interleave(completions, dim=1)  # (3, rows, 1)
    # Without padding no mask is needed, and attention is faster for it.
    mask = None if bool(mask.all()) else mask.repeat_interleave(completions, dim=0)
    draws = _draws(seeds, completions, settings.max_new_tokens).to(logits.device)
    ends = torch.as_tensor(settings.eos_token_id, device=logits.device).view(-1)
    shape = (len(logits), settings.max_new_tokens)
    ids, logps = logits.new_zeros(shape, dtype=torch.long), logits.new_zeros(shape).float()
    lengths = torch.full((len(logits),), settings.max_new_tokens, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)  # those in the batch
    going = torch.ones_like(rows, dtype=torch.bool)
    filters = _filters(settings, logits.device)
    cache = DynamicCache()

    for step in range(settings.max_new_tokens):
        drawn = draws[step, rows] if settings.do_sample else None
        tokens, ids_logps = choose(filters(None, logits.float()), drawn)  # pyright: ignore[reportArgumentType]
        ids[rows[going], step] = tokens[going]
        logps[rows[going], step] = ids_logps[going]
        ended = going & torch.isin(tokens, ends)
        lengths[rows[ended]] = step + 1
        going = going & ~ended
        left = int(going.sum())
        if not left or step + 1 == settings.max_new_tokens:
            break
        if step == 0:
            cache = _repeated(outputs.past_key_values, completions, settings.max_new_tokens)
        if left <= 0.9 * len(rows):  # each drop copies the cache, so not for every row
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

    found = [
        Drawn(row[:length], values[:length])
        for row, values, length in zip(ids.tolist(), logps.tolist(), lengths.tolist(), strict=True)
    ]
    return [found[i : i + completions] for i in range(0, len(found), completions)]


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


def prompt_positions(model: PreTrainedModel | PeftModel, inputs: Mapping[str, Any]) -> Tensor:
    """mRoPE positions (3, questions, prompt tokens) by the model's own rule."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    found, _ = base.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return found


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


def _draws(seeds: Sequence[str], completions: int, steps: int) -> Tensor:
    """Uniform draws (steps, rows), made on the CPU: the same on every device."""
    streams = []
    for seed in seeds:
        digest = hashlib.sha256(seed.encode()).digest()
        stream = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        streams.append(torch.rand(steps, completions, generator=stream, dtype=torch.float64))
    return torch.cat(streams, dim=1)


class _Roomy(DynamicLayer):
    """Keys and values in a buffer with room for the reply: a step copies its own token alone."""

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        rows, heads, length, width = keys.shape
        self._buffers = keys.new_empty(2, rows, heads, length + room, width)
        self._length = 0
        self.update(keys, values)

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


def _repeated(prompts: DynamicCache, times: int, room: int) -> DynamicCache:
    """The cache of the prompts, each `times`, with room for so many tokens more."""
    cache = DynamicCache()
    for layer in prompts.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        keys = layer.keys.repeat_interleave(times, dim=0)
        cache.layers.append(_Roomy(keys, layer.values.repeat_interleave(times, dim=0), room))
    return cache
