"""Decoding: completions token by token from prefilled prompts, as transformers' `generate` decodes,
for the rollouts of training and for the greedy answers of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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

from medreason.generation.cuda_graph import KEPT_SHARE, CudaGraphStep, EagerStep
from medreason.generation.draft_step import DraftStep
from medreason.generation.drafts import RowDrafts
from medreason.generation.prefill import Prefill

_SCORES_AT_ONCE = 2**26
"""Rows x vocabulary, from which tokens are chosen: the probabilities of 512 MB."""


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
    drafts: RowDrafts | None = None,
) -> list[CompletionTokens]:
    """A completion of each prefilled row.

    `numbers` (steps, rows) from [0, 1) sample the tokens; None takes the likeliest. `graphs` runs
    the decoding steps as `CudaGraphStep`. `total_over_ranks` sums the active rows over the ranks
    that run the model's layers together (FSDP), so that none stops before the others. `drafts` of
    the rows, where the model takes them (`draft_step.takes_drafts`), save passes through the model
    and change no token; `graphs` is then without effect.
    """
    if drafts is not None:
        return _DraftedRows(model, prefill, settings, numbers, drafts).decode(total_over_ranks)
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


class _DraftedRows:
    """`decode` with drafts: a pass gives each row its next token and, while its draft holds what is
    decoded, the tokens behind it."""

    def __init__(
        self,
        model: PreTrainedModel,
        prefill: Prefill,
        settings: GenerationConfig,
        numbers: Tensor | None,
        drafts: RowDrafts,
    ) -> None:
        assert settings.max_new_tokens is not None
        self._model, self._prefill, self._numbers = model, prefill, numbers
        self._drafts = drafts
        self._limit = settings.max_new_tokens
        self._ends = frozenset(torch.as_tensor(settings.eos_token_id).view(-1).tolist())
        self._process = _logits_processors(settings, prefill.logits.device)
        self._ids: list[list[int]] = [[] for _ in prefill.logits]
        self._logps: list[list[float]] = [[] for _ in prefill.logits]
        self._active = list(range(len(prefill.logits)))

    def decode(self, total_over_ranks: Callable[[int], int]) -> list[CompletionTokens]:
        step: DraftStep | None = None
        self._take(self._prefill.logits, {row: [] for row in self._active})
        while total_over_ranks(len(self._active)):
            if step is None:
                prefill = self._prefill
                step = DraftStep(
                    self._model, prefill.cache(), prefill.mask, prefill.position, self._limit
                )
            if 0 < len(self._active) <= KEPT_SHARE * len(step.rows):
                step.keep_rows(self._active)
            drafts = self._drafts.propose(
                {row: self._limit - len(self._ids[row]) - 1 for row in self._active},
                step.positions_of_pass,
                self._ends,
            )
            # Where all rows of this rank have ended and another rank's have not: one, in vain.
            tokens = {row: [self._ids[row][-1], *draft] for row, draft in drafts.items()} or {
                step.rows[0]: self._ids[step.rows[0]][-1:]
            }
            logits = step(tokens, {row: len(self._ids[row]) - 1 for row in tokens})
            self._take(logits, drafts)
        self._drafts.finish()
        return [CompletionTokens(*row) for row in zip(self._ids, self._logps, strict=True)]

    def _take(self, logits: Tensor, drafts: Mapping[int, list[int]]) -> None:
        """The tokens of a pass with logits (tokens of all rows, vocabulary), row after row: each
        row's next one, and one behind each drafted token that was decoded, too."""
        lengths = {row: 1 + len(draft) for row, draft in drafts.items()}
        chosen = iter(self._choose(logits, lengths))
        for row, draft in drafts.items():
            before = len(self._ids[row])
            expected = True
            for place in range(lengths[row]):
                token, logp = next(chosen)
                if expected:
                    self._ids[row].append(token)
                    self._logps[row].append(logp)
                    expected = draft[place : place + 1] == [token] and not self._has_ended(row)
            self._drafts.observe(row, self._ids[row][before:], drafted=len(draft))
        self._active = [row for row in self._active if not self._has_ended(row)]

    def _choose(self, logits: Tensor, lengths: Mapping[int, int]) -> Iterator[tuple[int, float]]:
        """The token that plain decoding would choose at each of the next `lengths` places of each
        row, if all before it were decoded, with its log-probability."""
        numbers = None
        if self._numbers is not None:
            places = [
                (len(self._ids[row]) + place, row)
                for row, length in lengths.items()
                for place in range(length)
            ]
            steps, rows = torch.tensor(places, device=logits.device).T
            numbers = self._numbers[steps, rows]
        at_once = max(_SCORES_AT_ONCE // logits.shape[-1], 1)
        for begin in range(0, len(logits), at_once):
            part = slice(begin, begin + at_once)
            scores = self._process(None, logits[part].float())  # pyright: ignore[reportArgumentType]
            tokens, logps = choose_tokens(scores, None if numbers is None else numbers[part])
            yield from zip(tokens.tolist(), logps.tolist(), strict=True)

    def _has_ended(self, row: int) -> bool:
        return self._ids[row][-1] in self._ends or len(self._ids[row]) == self._limit


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
        cumulated = logps.exp().cumsum(-1, dtype=torch.float64)
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
