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

from medreason.generation import fused_operators  # noqa: F401  # defines torch.ops.medreason

_BLOCK = 64
"""Tokens whose probabilities are added up before those of others."""

_TRUNCATING = (TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


@dataclass(frozen=True)
class CompletionTokens:
    """One completion."""

    ids: list[int]
    """The end token included, where there is one."""
    logps: list[float]
    """Log-probability of each sampled token, as the update of GRPO computes it: at the temperature,
    among all tokens, whether top-k, top-p, min-p or a ban kept them or not. None of greedy ones."""


class TokenChoice:
    """Chooses tokens as `generate` does with the same settings."""

    def __init__(self, settings: GenerationConfig, device: torch.device) -> None:
        self._processors = logits_processors(settings, device)
        self._truncates = any(isinstance(each, _TRUNCATING) for each in self._processors)
        self._temperature = settings.temperature or 1.0
        self._banned = torch.tensor(settings.suppress_tokens or [], dtype=torch.long, device=device)

    def __call__(self, logits: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(tokens, their log-probabilities) of logits (rows, vocabulary) and numbers (rows) from
        [0, 1).

        The token into whose part of the cumulated probabilities a number falls; without numbers the
        likeliest one. Log-probabilities: see `CompletionTokens.logps`.
        """
        if numbers is None:
            # Not argmax, for which a CPU takes twice as long.
            return self._scores(logits.float()).max(-1).indices, None
        # In the type that they have, unless a temperature would round them.
        scaled = logits if self._temperature == 1.0 else logits.float() / self._temperature
        most = scaled.amax(-1, keepdim=True).float()
        sums = torch.ops.medreason.block_sums(scaled, most, _BLOCK)
        total = sums.sum(-1)  # of all tokens, those that are banned among them
        if self._truncates:
            scores = self._scores(logits.float())
            highest = scores.amax(-1, keepdim=True)
            kept = torch.ops.medreason.block_sums(scores, highest, _BLOCK)
            tokens = _at_heights(scores, highest, kept, numbers, self._banned[:0])
        else:
            of_banned = (scaled.index_select(1, self._banned).float() - most).exp().double()
            kept = sums.index_add(1, self._banned // _BLOCK, -of_banned).clamp(min=0.0)
            tokens = _at_heights(scaled, most, kept, numbers, self._banned)
        chosen = scaled.gather(1, tokens[:, None]).float() - most
        return tokens, chosen[:, 0] - total.log().float()

    def _scores(self, logits: Tensor) -> Tensor:
        return self._processors(None, logits)  # pyright: ignore[reportArgumentType]


def _at_heights(
    scores: Tensor, most: Tensor, sums: Tensor, numbers: Tensor, banned: Tensor
) -> Tensor:
    """The token of each row into whose part of the cumulated probabilities the number falls.

    `sums` (rows, blocks) of exponentials of `scores` (rows, vocabulary) less `most` (rows, 1),
    without those of `banned` tokens.
    """
    # The inverse of the distribution function in place of torch.multinomial, which takes its
    # numbers from a generator that all rows share. Sums of blocks first, so that float64 is not
    # added up over the whole vocabulary, nor probabilities written for all of it.
    vocabulary = scores.shape[1]
    sums = sums.cumsum(-1)
    heights = (numbers * sums[:, -1])[:, None]
    blocks = torch.searchsorted(sums, heights, right=True).clamp(max=sums.shape[1] - 1)
    below = nn.functional.pad(sums, (1, 0)).gather(1, blocks)
    columns = blocks * _BLOCK + torch.arange(_BLOCK, device=scores.device)
    block = (scores.gather(1, columns.clamp(max=vocabulary - 1)).float() - most).exp()
    hidden = (columns[..., None] == banned).any(-1) | (columns >= vocabulary)
    cumulated = block.masked_fill(hidden, 0.0).cumsum(-1, dtype=torch.float64)
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
