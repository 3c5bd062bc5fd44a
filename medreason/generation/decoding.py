"""Token by token from prompts that have been read, as `generate` decodes: for training's draws
and for evaluation's greedy answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from medreason.generation.cuda_graph import CudaGraphStep, EagerStep
from medreason.generation.prefill import Prefill


@dataclass(frozen=True)
class CompletionTokens:
    """One completion."""

    ids: list[int]
    """The end token included, where there is one."""
    logps: list[float]
    """Log-probability of each token in the distribution it was drawn from."""


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prefill: Prefill,
    settings: GenerationConfig,
    draws: Tensor | None,
    everywhere: Callable[[int], int] = int,
    *,
    graphs: bool = False,
) -> list[CompletionTokens]:
    """A completion of each row. `draws` (steps, rows) from [0, 1) choose the tokens; without them
    the likeliest is taken. Rows that have ended leave the batch.

    `everywhere` makes of the rows left here those left in all processes that run the model's layers
    together: none stops before the others. `graphs`: see `replay.Replayed`.
    """
    limit = settings.max_new_tokens
    assert limit is not None
    logits, position = prefill.logits, prefill.position
    ends = torch.as_tensor(settings.eos_token_id, device=logits.device).view(-1)
    shape = (len(logits), limit)
    ids, logps = logits.new_zeros(shape, dtype=torch.long), logits.new_zeros(shape).float()
    lengths = torch.full((len(logits),), limit, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)  # those in the batch
    going = torch.ones_like(rows, dtype=torch.bool)
    filters = _filters(settings, logits.device)
    advance: EagerStep | CudaGraphStep | None = None

    for step in range(limit):
        drawn = draws[step, rows] if draws is not None else None
        tokens, ids_logps = choose(filters(None, logits.float()), drawn)  # pyright: ignore[reportArgumentType]
        ids[rows, step], logps[rows, step] = tokens, ids_logps
        ended = going & torch.isin(tokens, ends)
        lengths[rows] = torch.where(ended, step + 1, lengths[rows])
        going = going & ~ended
        left = int(going.sum())
        if step + 1 == limit or not everywhere(left):
            break
        if advance is None:
            cache = prefill.cache()
            advance = (
                CudaGraphStep(model, cache, prefill.mask, limit)
                if graphs
                else EagerStep(model, cache, prefill.mask)
            )
        if advance.drops(left, len(rows)):
            advance.keep(going.nonzero()[:, 0])
            rows, tokens, position = rows[going], tokens[going], position[:, going]
            going = going[going]
        position = position + 1
        logits = advance(tokens, position)

    return [
        CompletionTokens(row[:length], values[:length])
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
