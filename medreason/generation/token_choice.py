"""From logits to tokens, as transformers' `generate` chooses them, by given random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


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
    logps = scores.log_softmax(-1)
    if numbers is None:
        tokens = scores.argmax(-1)
    else:
        # The inverse of the distribution function in place of torch.multinomial, which takes its
        # numbers from a generator that all rows share.
        cumulated = logps.exp().cumsum(-1, dtype=torch.float64)
        # Rounding lets the sum end a little beside 1: the numbers are scaled to where it ends.
        heights = (numbers * cumulated[:, -1])[:, None]
        tokens = torch.searchsorted(cumulated, heights, right=True)[:, 0]
        tokens = tokens.clamp(max=scores.shape[-1] - 1)
    return tokens, logps.gather(1, tokens[:, None])[:, 0]


def logits_processors(settings: GenerationConfig, device: torch.device) -> LogitsProcessorList:
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
