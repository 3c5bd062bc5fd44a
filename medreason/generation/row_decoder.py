"""Rows decoded side by side, each at a place of its own.

A pass gives a row its next token and, while its draft holds what is decoded, the tokens behind it.
Where rows have ended, others may begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from medreason.generation.cuda_graph import KEPT_SHARE
from medreason.generation.draft_step import DraftStep
from medreason.generation.drafts import FIRST_LIMIT, RowDrafts
from medreason.generation.prefill import Prefill
from medreason.generation.token_choice import CompletionTokens, TokenChoice

_SCORES_AT_ONCE = 2**26
"""Rows x vocabulary, from which tokens are chosen: the probabilities of 512 MB."""

_REFILLED_SHARE = 0.25
"""Of a batch: so many rows have ended when others take their places. Each prefill is passes through
the model, too; but on a CPU one of 16 rows takes less time a row than one of 64, whose activations
do not fit into the cache."""


@torch.no_grad()
def decode_refilled(
    model: PreTrainedModel,
    prefill: Callable[[Sequence[int], Sequence[Sequence[int]]], Prefill],
    settings: GenerationConfig,
    numbers: Tensor | None,
    waiting: Sequence[int],
    *,
    size: int,
    drafts: RowDrafts | None = None,
) -> Iterator[dict[int, CompletionTokens]]:
    """The completions of the `waiting` rows, by row, as they end.

    At most `size` rows are decoded at once. Where some have ended, `prefill` is asked for the next
    ones, with a draft of each that is read with its prompt. `numbers` and `drafts`: see `decode`.
    The model's attention has to follow a `DraftLayout`.
    """
    decoder = RowDecoder(model, settings, numbers, drafts)
    while waiting or decoder.active:
        free = size - len(decoder.active)
        if waiting and free >= _REFILLED_SHARE * size:
            if ended := decoder.take_ended():
                yield ended
            rows, waiting = waiting[:free], waiting[free:]
            first = decoder.first_drafts(rows)
            decoder.begin(rows, prefill(rows, [*first.values()]), first)
        else:
            decoder.advance(refilled=bool(waiting))
    yield decoder.take_ended()


class RowDecoder:
    """Completions of rows that are prefilled in one call of `begin` or in several."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: GenerationConfig,
        numbers: Tensor | None,
        drafts: RowDrafts | None,
    ) -> None:
        """`numbers` (steps, rows) of all rows: see `decode`."""
        assert settings.max_new_tokens is not None
        self._numbers, self._drafts = numbers, drafts
        self._limit: int = settings.max_new_tokens
        self._ends = frozenset(torch.as_tensor(settings.eos_token_id).view(-1).tolist())
        self._choice = TokenChoice(settings, model.device)
        self._step = DraftStep(model)
        self._begun: list[tuple[Sequence[int], Prefill]] = []
        """Rows that are not yet in the KV cache: a completion of one token needs none."""
        self._tokens: dict[int, CompletionTokens] = {}
        """Of the rows that `take_ended` has not given."""
        self.active: list[int] = []
        """Rows that have not ended."""

    def first_drafts(self, rows: Sequence[int]) -> dict[int, list[int]]:
        """Of rows that are to begin: drafts that are read with their prompts."""
        if not self._drafts:
            return {row: [] for row in rows}
        room = dict.fromkeys(rows, self._limit - 1)
        return self._drafts.propose(
            room, self._step.positions_of_pass, self._ends, longest=FIRST_LIMIT
        )

    def begin(
        self,
        rows: Sequence[int],
        prefill: Prefill,
        drafts: Mapping[int, list[int]] | None = None,
    ) -> None:
        """Begin the completions of prefilled rows, whose prompts were read with `drafts`."""
        self._tokens |= {row: CompletionTokens([], []) for row in rows}
        self._take(prefill.logits, drafts or {row: [] for row in rows})
        going = [place for place, row in enumerate(rows) if not self._has_ended(row)]
        if drafts and len(going) <= KEPT_SHARE * len(rows):
            # Many end with their prompts: others begin before a pass, and caches would pile up.
            if not going:
                return
            rows, prefill = [rows[place] for place in going], prefill.of_rows(going)
        self._begun.append((rows, prefill))

    def advance(self, *, refilled: bool = False) -> None:
        """One pass through the model. `refilled`: others will take the places of rows that have
        ended, which so keep them for a while."""
        active = {*self.active}
        for rows, prefill in self._begun:
            ended = [row for row in self._step.rows if row not in active]
            self._step.add_rows(rows, prefill, self._limit, ended=ended)
        self._begun.clear()
        rows = self._step.rows
        kept = [row for row in rows if row in active]
        # Where all rows have ended, one is left for passes in vain.
        if active and not refilled and len(kept) <= KEPT_SHARE * len(rows):
            self._step.keep_rows(kept)
        drafts: Mapping[int, list[int]] = {row: [] for row in self.active}
        if self._drafts:
            room = {row: self._limit - len(self._tokens[row].ids) - 1 for row in self.active}
            drafts = self._drafts.propose(room, self._step.positions_of_pass, self._ends)
        # Where all rows of this rank have ended and another rank's have not: one, in vain.
        passed = drafts or {self._step.rows[0]: []}
        logits = self._step(
            {row: [self._tokens[row].ids[-1], *draft] for row, draft in passed.items()},
            {row: len(self._tokens[row].ids) - 1 for row in passed},
        )
        if drafts:
            self._take(logits, drafts)

    def take_ended(self) -> dict[int, CompletionTokens]:
        """The completions that have ended since the last call."""
        ended = {row: tokens for row, tokens in self._tokens.items() if self._has_ended(row)}
        for row in ended:
            del self._tokens[row]
        return ended

    def _take(self, logits: Tensor, drafts: Mapping[int, list[int]]) -> None:
        """The tokens of a pass with logits (tokens of all rows, vocabulary), row after row: each
        row's next one, and one behind each drafted token that was decoded, too."""
        ids, logps = self._choose(logits, {row: 1 + len(draft) for row, draft in drafts.items()})
        begin = 0
        for row, draft in drafts.items():
            end = begin
            for token in draft:
                if ids[end] != token or token in self._ends:
                    break
                end += 1
            decoded = ids[begin : end + 1]
            self._tokens[row].ids.extend(decoded)
            self._tokens[row].logps.extend(logps[begin : end + 1])
            begin += 1 + len(draft)
            if self._drafts:
                self._drafts.observe(row, decoded, drafted=len(draft))
                if self._has_ended(row):
                    self._drafts.finish(row)
        self.active = [row for row in self._tokens if not self._has_ended(row)]

    def _choose(self, logits: Tensor, lengths: Mapping[int, int]) -> tuple[list[int], list[float]]:
        """The token that plain decoding would choose at each of the next `lengths` places of each
        row, if all before it were decoded, with its log-probability."""
        numbers = None
        if self._numbers is not None:
            places = [
                (len(self._tokens[row].ids) + place, row)
                for row, length in lengths.items()
                for place in range(length)
            ]
            steps, rows = torch.tensor(places, device=logits.device).T
            numbers = self._numbers[steps, rows]
        ids: list[int] = []
        logps: list[float] = []
        at_once = max(_SCORES_AT_ONCE // logits.shape[-1], 1)
        for begin in range(0, len(logits), at_once):
            part = slice(begin, begin + at_once)
            chosen = self._choice(logits[part], None if numbers is None else numbers[part])
            ids += chosen[0].tolist()
            logps += [] if chosen[1] is None else chosen[1].tolist()
        return ids, logps

    def _has_ended(self, row: int) -> bool:
        ids = self._tokens[row].ids
        return ids[-1] in self._ends or len(ids) == self._limit
