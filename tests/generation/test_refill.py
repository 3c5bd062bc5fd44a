"""Rows that take the places of rows that ended get the tokens of rows decoded on their own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiniest import ENDS, SAMPLING, VOCABULARY, corrupted, tiniest
from torch import nn
from transformers import GenerationConfig

from medreason.generation.decoding import decode
from medreason.generation.drafts import DraftHistory
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.prefill import Prefill
from medreason.generation.row_decoder import decode_refilled

Ids = list[list[int]]


def prefilled(
    prompts: Sequence[Sequence[int]], limit: int, drafts: Sequence[Sequence[int]] = ()
) -> Prefill:
    drafted = [len(draft) for draft in drafts] or [0] * len(prompts)
    rows = [[*p, *d] for p, d in zip(prompts, drafts or [()] * len(prompts), strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    with torch.no_grad():
        outputs = tiniest()(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True
        )
    return Prefill(
        logits=torch.cat([row[-1 - n :] for row, n in zip(outputs.logits, drafted, strict=True)]),
        position=positions[:, :, -1:] - torch.tensor(drafted)[:, None],
        mask=mask,
        drafted=drafted,
        cache=lambda: repeat_kv_cache(outputs.past_key_values, torch.arange(len(ids)), limit),
    )


def both_ways(
    prompts: Ids, limit: int, sampling: dict[str, Any], size: int, history: DraftHistory | None
) -> tuple[Ids, Ids, list[int]]:
    """(completions all at once, completions refilled, rows of each prefill)"""
    config = GenerationConfig(max_new_tokens=limit, eos_token_id=ENDS, **sampling)
    numbers = None
    if config.do_sample:
        stream = torch.Generator().manual_seed(len(prompts))
        numbers = torch.rand(limit, len(prompts), generator=stream, dtype=torch.float64)
    together = decode(tiniest(), prefilled(prompts, limit), config, numbers)
    rows_of_prefills: list[int] = []

    def prefill(rows: Sequence[int], drafts: Sequence[Sequence[int]]) -> Prefill:
        rows_of_prefills.append(len(rows))
        return prefilled([prompts[row] for row in rows], limit, drafts)

    refilled: dict[int, list[int]] = {}
    questions = [str(prompt) for prompt in prompts]
    names = [["original", "blank_image"][row % 2] for row in range(len(prompts))]
    for ended in decode_refilled(
        tiniest(),
        prefill,
        config,
        numbers,
        range(len(prompts)),
        size=size,
        drafts=history.of_rows(questions, names) if history else None,
    ):
        assert not refilled.keys() & ended.keys()
        refilled |= {row: tokens.ids for row, tokens in ended.items()}
    return [r.ids for r in together], [refilled[i] for i in range(len(prompts))], rows_of_prefills


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.lists(st.integers(7, 47), min_size=1, max_size=9), min_size=1, max_size=14),
    limit=st.integers(1, 12),
    sampling=SAMPLING,
    size=st.integers(1, 15),
    most=st.sampled_from([0, None, 1, 4]),
    rate=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_refilled_rows_get_the_tokens_of_a_single_batch(
    prompts: Ids, limit: int, sampling: dict[str, Any], size: int, most: int | None, rate: float
) -> None:
    history = None if most == 0 else DraftHistory(most)
    if history:
        expected, _, _ = both_ways(prompts, limit, sampling, size, None)
        rng = random.Random(size)
        for prompt, ids in zip(prompts, expected, strict=True):
            history.add(str(prompt), [corrupted(ids, rate, rng)], row="original")
    together, refilled, rows_of_prefills = both_ways(prompts, limit, sampling, size, history)
    assert refilled == together
    assert sum(rows_of_prefills) == len(prompts)
    assert max(rows_of_prefills) <= size


def test_replies_that_are_said_again_end_with_their_prompts() -> None:
    prompts = [[7 + row, 8] for row in range(20)]
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0}
    expected, _, _ = both_ways(prompts, 12, sampling, 20, None)
    history = DraftHistory(16)
    for row, prompt in enumerate(prompts):
        name = ["original", "blank_image"][row % 2]
        history.add(str(prompt), [expected[row]], row=name)
        history.add(str(prompt), [[*reversed(expected[row])]], row="another")
    passes = 0

    def count(_module: nn.Module, _inputs: tuple, given: dict[str, Any]) -> None:
        nonlocal passes
        passes += "draft_layout" in given

    hook = tiniest().register_forward_pre_hook(count, with_kwargs=True)
    _, refilled, _ = both_ways(prompts, 12, sampling, 4, history)
    hook.remove()
    assert refilled == expected
    assert passes == 0
    assert history.counts.passes == len(prompts)  # the one over its prompt, of each row


@pytest.mark.parametrize("drafts", [False, True])
def test_waiting_rows_save_passes(drafts: bool) -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(7, VOCABULARY) for _ in range(rng.randint(1, 9))] for _ in range(64)]
    sampling = {"do_sample": True, "temperature": 2.0, "top_k": 0}
    together, _, _ = both_ways(prompts, 40, sampling, 64, None)
    passes = 0

    def count(_module: nn.Module, _inputs: tuple, given: dict[str, Any]) -> None:
        nonlocal passes
        passes += "draft_layout" in given

    hook = tiniest().register_forward_pre_hook(count, with_kwargs=True)
    history = DraftHistory() if drafts else None
    _, refilled, rows_of_prefills = both_ways(prompts, 40, sampling, 8, history)
    hook.remove()
    assert refilled == together
    assert len(rows_of_prefills) > 8  # of half a batch and more
    batch_by_batch = sum(max(map(len, together[i : i + 8])) - 1 for i in range(0, 64, 8))
    assert passes < 0.8 * batch_by_batch
