"""Decoding: completions token by token from prefilled prompts, as transformers' `generate` decodes,
for the rollouts of training and for the greedy answers of evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from medreason.generation.cuda_graph import CudaGraphStep, EagerStep
from medreason.generation.drafts import RowDrafts
from medreason.generation.fused_step import takes_fused_steps
from medreason.generation.kept_graphs import DecodingGraphs, KeptGraphStep
from medreason.generation.prefill import Prefill
from medreason.generation.row_decoder import RowDecoder
from medreason.generation.token_choice import CompletionTokens, TokenChoice
from medreason.models.load import without_adapter


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prefill: Prefill,
    settings: GenerationConfig,
    numbers: Tensor | None,
    *,
    total_over_ranks: Callable[[int], int] = int,
    graphs: DecodingGraphs | None = None,
    drafts: RowDrafts | None = None,
) -> list[CompletionTokens]:
    """A completion of each prefilled row.

    `numbers` (steps, rows) from [0, 1) sample the tokens; None takes the likeliest. `graphs` run
    the decoding steps, and are kept for later calls where the model's layers are known.
    `total_over_ranks` sums the active rows over the ranks that run the model's layers together
    (FSDP), so that none stops before the others. `drafts` of the rows, where the model takes them
    (`draft_step.takes_drafts`), save passes through the model and change no token; `graphs` are
    then without effect.
    """
    if drafts is not None:
        decoder = RowDecoder(model, settings, numbers, drafts)
        decoder.begin(range(len(prefill.logits)), prefill)
        while total_over_ranks(len(decoder.active)):
            decoder.advance()
        return [tokens for _, tokens in sorted(decoder.take_ended().items())]
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
    choose = TokenChoice(settings, logits.device)
    decoding_step: _Step | None = None
    counts: deque[Callable[[], int]] = deque()
    remaining = len(rows)

    for step in range(limit):
        tokens, token_logps = choose(logits, None if numbers is None else numbers[step, rows])
        ids[rows, step] = tokens
        if token_logps is not None:
            logps[rows, step] = token_logps
        ended = active & torch.isin(tokens, end_ids)
        lengths[rows] = torch.where(ended, step + 1, lengths[rows])
        active = active & ~ended
        counts.append(_sent_to_host(active.sum()))
        # Where steps are graphs, the host launches one before it reads how many rows the last one
        # left, so that the device never waits for it; at the end that is a step in vain.
        if len(counts) > (isinstance(decoding_step, KeptGraphStep) and _STEPS_AHEAD):
            remaining = counts.popleft()()
        if step + 1 == limit or not total_over_ranks(remaining):
            break
        if decoding_step is None:
            # Not before: a completion of one token needs no KV cache of its own.
            decoding_step = _decoding_step(model, prefill, limit, graphs)
        kept = decoding_step.drop_rows(active, remaining)
        if kept is not None:
            rows, tokens, position = rows[kept], tokens[kept], position[:, kept]
            active = active[kept]
        position = position + 1
        logits = decoding_step(tokens, position)

    return [
        CompletionTokens(row[:length], [] if numbers is None else values[:length])
        for row, values, length in zip(ids.tolist(), logps.tolist(), lengths.tolist(), strict=True)
    ]


_STEPS_AHEAD = 1


def _sent_to_host(count: Tensor) -> Callable[[], int]:
    """Begins to copy a number from the device; the result waits for it."""
    if count.device.type != "cuda":
        return lambda: int(count)
    host = torch.empty((), dtype=count.dtype, pin_memory=True)
    host.copy_(count, non_blocking=True)
    sent = torch.cuda.Event()
    sent.record()

    def read() -> int:
        sent.synchronize()
        return int(host)

    return read


_Step = EagerStep | CudaGraphStep | KeptGraphStep


def _decoding_step(
    model: PreTrainedModel, prefill: Prefill, limit: int, graphs: DecodingGraphs | None
) -> _Step:
    if graphs is None:
        return EagerStep(model, prefill.cache(), prefill.mask)
    base: Any = without_adapter(model)
    if takes_fused_steps(base):
        return graphs.begin(base, prefill, limit)
    return CudaGraphStep(model, prefill.cache(), prefill.mask, limit)
