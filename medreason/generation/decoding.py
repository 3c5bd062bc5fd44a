"""Decoding: completions token by token from prefilled prompts, as transformers' `generate` decodes,
for the rollouts of training and for the greedy answers of evaluation."""

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
    """Log-probability of each token in the distribution it was sampled from."""


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prefill: Prefill,
    settings: GenerationConfig,
    numbers: Tensor | None,
    *,
    total_over_ranks: Callable[[int], int] = int,
    graphs: bool = False,
) -> list[CompletionTokens]:
    """A completion of each prefilled row.

    `numbers` (steps, rows) from [0, 1) sample the tokens; None takes the likeliest. `graphs` runs
    the decoding steps as `CudaGraphStep`. `total_over_ranks` sums the active rows over the ranks
    that run the model's layers together (FSDP), so that none stops before the others.
    """
    limit = settings.max_new_tokens
    assert limit is not None
    logits, position = prefill.logits, prefill.position
    end_ids = torch.as_tensor(settings.eos_token_id, device=logits.device).view(-1)
    shape = (len(logits), limit)
    ids, logps = logits.new_zeros(shape, dtype=torch.long), logits.new_zeros(shape).float()
    lengths = torch.full((len(logits),), limit, device=logits.device)
    # Completions that have ended leave the batch. `rows` says which of all rows are still in it;
    # `active` which of those have not ended, since leaving copies the KV cache and is put off.
    rows = torch.arange(len(logits), device=logits.device)
    active = torch.ones_like(rows, dtype=torch.bool)
    process = _logits_processors(settings, logits.device)
    decoding_step: EagerStep | CudaGraphStep | None = None

    for step in range(limit):
        scores = process(None, logits.float())  # pyright: ignore[reportArgumentType]
        tokens, token_logps = choose_tokens(
            scores, None if numbers is None else numbers[step, rows]
        )
        ids[rows, step], logps[rows, step] = tokens, token_logps
        ended = active & torch.isin(tokens, end_ids)
        lengths[rows] = torch.where(ended, step + 1, lengths[rows])
        active = active & ~ended
        remaining = int(active.sum())
        if step + 1 == limit or not total_over_ranks(remaining):
            break
        if decoding_step is None:
            # Not before: a completion of one token needs no KV cache of its own.
            decoding_step = _decoding_step(model, prefill, limit, graphs=graphs)
        if decoding_step.should_drop_rows(remaining, len(rows)):
            decoding_step.keep_rows(active.nonzero()[:, 0])
            rows, tokens, position = rows[active], tokens[active], position[:, active]
            active = active[active]
        position = position + 1
        logits = decoding_step(tokens, position)

    return [
        CompletionTokens(row[:length], values[:length])
        for row, values, length in zip(ids.tolist(), logps.tolist(), lengths.tolist(), strict=True)
    ]


def _decoding_step(
    model: PreTrainedModel, prefill: Prefill, limit: int, *, graphs: bool
) -> EagerStep | CudaGraphStep:
    cache = prefill.cache()
    if graphs:
        return CudaGraphStep(model, cache, prefill.mask, limit)
    return EagerStep(model, cache, prefill.mask)


def choose_tokens(scores: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
    """(tokens, log-probabilities) of scores (rows, vocabulary) and numbers (rows) from [0, 1).

    The token into whose part of the cumulated probabilities a number falls; without numbers the
    likeliest one.
    """
    logps = scores.log_softmax(-1)
    if numbers is None:
        tokens = scores.argmax(-1)
    else:
        # The inverse of the distribution function in place of torch.multinomial, which takes its
        # numbers from a generator that all rows share.
        cumulated = logps.double().exp().cumsum(-1)
        # Rounding lets the sum end a little beside 1: the numbers are scaled to where it ends.
        heights = (numbers * cumulated[:, -1])[:, None]
        tokens = torch.searchsorted(cumulated, heights, right=True)[:, 0]
        tokens = tokens.clamp(max=scores.shape[-1] - 1)
    return tokens, logps.gather(1, tokens[:, None])[:, 0]


def _logits_processors(settings: GenerationConfig, device: torch.device) -> LogitsProcessorList:
    """transformers' own, in the order of `generate`, which changes what top-k and top-p keep."""
    processors = LogitsProcessorList()
    if settings.suppress_tokens is not None:
        processors.append(SuppressTokensLogitsProcessor(settings.suppress_tokens, str(device)))
    if not settings.do_sample:
        return processors
    if settings.temperature is not None and settings.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p is not None and settings.top_p < 1.0:
        processors.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p is not None:
        processors.append(MinPLogitsWarper(settings.min_p))
    return processors
