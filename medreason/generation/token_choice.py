"""From logits to tokens, as transformers' `generate` chooses them, by given random numbers."""

from __future__ import annotations

import math
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

_BLOCK = 64
"""Tokens whose probabilities are added up before those of others."""

_TRUNCATING = (TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


@dataclass(frozen=True)
class CompletionTokens:
    """One completion."""

    ids: list[int]
    """The end token included, where there is one."""
    logps: list[float]
    """Log-probability of each token, as the update of GRPO computes it: at the temperature, among
    all tokens, whether top-k, top-p, min-p or a ban kept them or not."""


class TokenChoice:
    """Chooses tokens as `generate` does with the same settings."""

    def __init__(self, settings: GenerationConfig, device: torch.device) -> None:
        self._processors = logits_processors(settings, device)
        self._truncates = any(isinstance(each, _TRUNCATING) for each in self._processors)
        self._temperature = settings.temperature or 1.0
        self._banned = torch.tensor(settings.suppress_tokens or [], dtype=torch.long, device=device)

    def __call__(self, logits: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
        """(tokens, their log-probabilities) of logits (rows, vocabulary) and numbers (rows) from
        [0, 1).

        The token into whose part of the cumulated probabilities a number falls; without numbers the
        likeliest one. Log-probabilities: see `CompletionTokens.logps`.
        """
        logits = logits.float()
        if numbers is None:
            tokens = self._scores(logits).argmax(-1)
            return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        scaled = logits if self._temperature == 1.0 else logits / self._temperature
        probabilities = scaled.softmax(-1)
        if self._truncates:
            drawn_from = self._scores(logits).softmax(-1)
        else:
            # The same softmax gives both, as it costs as much as all else here; heights are scaled
            # to what is left.
            drawn_from = probabilities.index_fill_(1, self._banned, 0.0)
        tokens = _at_heights(drawn_from, numbers)
        return tokens, probabilities.gather(1, tokens[:, None])[:, 0].log()

    def _scores(self, logits: Tensor) -> Tensor:
        return self._processors(None, logits)  # pyright: ignore[reportArgumentType]


def _at_heights(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """The token of each row into whose part of the cumulated probabilities the number falls."""
    # The inverse of the distribution function in place of torch.multinomial, which takes its
    # numbers from a generator that all rows share. Sums of blocks first, so that float64 is not
    # added up over the whole vocabulary.
    rows, vocabulary = probabilities.shape
    if vocabulary % _BLOCK:
        probabilities = nn.functional.pad(probabilities, (0, -vocabulary % _BLOCK))
    by_block = probabilities.view(rows, -1, _BLOCK)
    sums = by_block.sum(-1, dtype=torch.float64).cumsum(-1)
    # Rounding lets the sum end a little beside 1: the numbers are scaled to where it ends.
    heights = (numbers * sums[:, -1])[:, None]
    blocks = torch.searchsorted(sums, heights, right=True).clamp(max=sums.shape[1] - 1)
    below = nn.functional.pad(sums, (1, 0)).gather(1, blocks)
    block = by_block.gather(1, blocks[:, :, None].expand(-1, -1, _BLOCK))[:, 0]
    cumulated = block.cumsum(-1, dtype=torch.float64)
    # Added up in another order, the block may end a little below its sum: never behind its end.
    last = torch.nextafter(cumulated[:, -1:], torch.zeros_like(heights))
    places = torch.searchsorted(cumulated, torch.minimum(heights - below, last), right=True)
    tokens = (blocks * _BLOCK + places)[:, 0]
    return tokens.clamp(max=vocabulary - 1)  # NaN of weights that diverged lies behind all


class _Suppress(LogitsProcessor):
    """transformers' `SuppressTokensLogitsProcessor`, which looks for them in the whole vocabulary
    at each token."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens

    def __call__(self, input_ids: torch.LongTensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, self._tokens, -math.inf)


def logits_processors(settings: GenerationConfig, device: torch.device) -> LogitsProcessorList:
    """As transformers' own, in the order of `generate`, which changes what top-k and top-p keep."""
    processors = LogitsProcessorList()
    if settings.suppress_tokens is not None:
        processors.append(_Suppress(torch.tensor(settings.suppress_tokens, device=device)))
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
