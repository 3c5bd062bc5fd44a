"""From logits to tokens, as transformers' `generate` chooses them, by given random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from medreason.generation import fused_operators  # noqa: F401  # defines torch.ops.medreason

_BLOCK = 64
"""Tokens whose probabilities are added up before those of others."""


@dataclass(frozen=True)
class CompletionTokens:
    """One completion."""

    ids: list[int]
    """The end token included, where there is one."""
    logps: list[float]
    """Log-probability of each token in the distribution it was sampled from."""


def choose_tokens(scores: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
    """(tokens, log-probabilities) of scores (rows, vocabulary) and numbers (rows) from [0, 1).

    The token into whose part of the cumulated probabilities a number falls; without numbers the
    likeliest one.
    """
    if numbers is None:
        tokens = scores.argmax(-1)
        logps = scores.gather(1, tokens[:, None])[:, 0].float() - scores.float().logsumexp(-1)
        return tokens, logps
    most = scores.amax(-1, keepdim=True).float()
    tokens, total = _at_heights(scores, most, numbers)
    logits = scores.gather(1, tokens[:, None]).float() - most
    return tokens, logits[:, 0] - total.log().float()


def scores_of(logits: Tensor, process: LogitsProcessorList) -> Tensor:
    """The scores that tokens are chosen by: in float32, or as they are where that loses nothing,
    since a copy of them is a pass over rows x vocabulary."""
    exact = all(isinstance(each, _SuppressTokens) for each in process)
    return process(None, logits if exact else logits.float())  # pyright: ignore[reportArgumentType]


def _at_heights(scores: Tensor, most: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """(the token of each row into whose part of the cumulated probabilities the number falls, the
    sum of exponentials of scores, less the `most` of their row)"""
    # The inverse of the distribution function in place of torch.multinomial, which takes its
    # numbers from a generator that all rows share. Sums of blocks first, so that float64 is not
    # added up over the whole vocabulary, nor probabilities written for all of it.
    vocabulary = scores.shape[1]
    sums = torch.ops.medreason.block_sums(scores, most, _BLOCK).cumsum(-1)
    total = sums[:, -1]
    heights = (numbers * total)[:, None]
    blocks = torch.searchsorted(sums, heights, right=True).clamp(max=sums.shape[1] - 1)
    below = nn.functional.pad(sums, (1, 0)).gather(1, blocks)
    columns = blocks * _BLOCK + torch.arange(_BLOCK, device=scores.device)
    block = (scores.gather(1, columns.clamp(max=vocabulary - 1)).float() - most).exp()
    if vocabulary % _BLOCK:
        block = block.masked_fill(columns >= vocabulary, 0.0)
    cumulated = block.cumsum(-1, dtype=torch.float64)
    # Added up in another order, the block may end a little below its sum: never behind its end.
    last = torch.nextafter(cumulated[:, -1:], torch.zeros_like(heights))
    places = torch.searchsorted(cumulated, torch.minimum(heights - below, last), right=True)
    tokens = (blocks * _BLOCK + places)[:, 0]
    return tokens.clamp(max=vocabulary - 1), total  # NaN of weights that diverged lies behind all


class _SuppressTokens(LogitsProcessor):
    """transformers' own without a pass over the whole vocabulary; scores change in place."""

    def __init__(self, tokens: list[int], device: torch.device) -> None:
        self._tokens = torch.tensor(tokens, dtype=torch.long, device=device)

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:  # pyright: ignore
        return scores.index_fill_(-1, self._tokens, -torch.inf)


def logits_processors(settings: GenerationConfig, device: torch.device) -> LogitsProcessorList:
    """transformers' own, in the order of `generate`, which changes what top-k and top-p keep."""
    processors = LogitsProcessorList()
    if settings.suppress_tokens is not None:
        processors.append(_SuppressTokens(settings.suppress_tokens, device))
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
