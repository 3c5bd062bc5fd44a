"""Decoding with drafts gives the tokens of plain decoding, whatever the drafts are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiniest import ENDS, SAMPLING, VOCABULARY, corrupted, tiniest
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from medreason.config import Hardware, Model
from medreason.generation.decoding import decode
from medreason.generation.draft_step import takes_drafts
from medreason.generation.drafts import DraftHistory, SuffixTable, as_bytes, draft_history
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.packed_pass import packed_pass
from medreason.generation.prefill import Prefill
from medreason.generation.token_choice import (
    CompletionTokens,
    TokenChoice,
)
from medreason.models.load import load_model

PROMPTS = ([7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17])
Rows = list[CompletionTokens]


def uniform(steps: int, rows: int, seed: int) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.rand(steps, rows, generator=stream, dtype=torch.float64)


def decoded(
    model: PreTrainedModel,
    *,
    completions: int = 2,
    limit: int = 12,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    history: DraftHistory | None = None,
    of_rows: bool = True,
    packed: bool = False,
    numbers_from: int = 0,
    total_over_ranks: Callable[[int], int] = int,
    **sampling: Any,
) -> Rows:
    """Rows of padded prompts. With `of_rows` each row is a question of its own to the
    history, else each prompt. `packed`: in packed passes, else in those of transformers."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + [*row] for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    passes = packed_pass(model) if packed else None
    assert bool(passes) == packed
    with torch.no_grad():
        if passes:
            cache = passes.empty_cache(*ids.shape)
            logits = passes.of_prompts(ids, mask, positions, cache)
        else:
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            outputs = model(**inputs, use_cache=True)
            logits, cache = outputs.logits[:, -1], outputs.past_key_values
    rows = torch.arange(len(prompts)).repeat_interleave(completions)
    prefill = Prefill(
        logits=logits[rows],
        position=positions[:, rows, -1:],
        mask=mask[rows],
        cache=lambda: repeat_kv_cache(cache, rows, limit),
        passes=passes,
    )
    config = GenerationConfig(max_new_tokens=limit, **{"eos_token_id": ENDS} | sampling)
    numbers = None
    if config.do_sample:
        numbers = uniform(limit, len(rows), numbers_from)
    names = [str(i) if of_rows else str(int(row)) for i, row in enumerate(rows)]
    drafts = history.of_rows(names) if history else None
    with torch.inference_mode():
        return decode(
            model, prefill, config, numbers, drafts=drafts, total_over_ranks=total_over_ranks
        )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    sampling=SAMPLING,
    completions=st.integers(1, 4),
    limit=st.integers(1, 14),
    most=st.sampled_from([None, 1, 2, 5, 13]),
    rate=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    suppressed=st.sampled_from([None, [20, 21]]),
    seed=st.integers(0, 99),
    of_rows=st.booleans(),
    packed=st.booleans(),
)
def test_drafts_of_any_quality_give_the_tokens_of_plain_decoding(
    sampling: dict[str, Any],
    completions: int,
    limit: int,
    most: int | None,
    rate: float,
    suppressed: list[int] | None,
    seed: int,
    of_rows: bool,
    packed: bool,
) -> None:
    arguments = sampling | {
        "completions": completions,
        "limit": limit,
        "suppress_tokens": suppressed,
        "numbers_from": seed,
    }
    plain = decoded(tiniest(), **arguments)
    history, rng = DraftHistory(most), random.Random(seed)
    for i, row in enumerate(plain):
        name = str(i) if of_rows else str(i // completions)
        history.add(name, [corrupted(row.ids, rate, rng)])
    for _ in range(2):  # the second time with what the first one added to the history
        drafted = decoded(tiniest(), history=history, of_rows=of_rows, packed=packed, **arguments)
        assert [row.ids for row in drafted] == [row.ids for row in plain]
        for row, expected in zip(drafted, plain, strict=True):
            assert row.logps == pytest.approx(expected.logps, abs=1e-4)


MIXED = [
    {"do_sample": False},
    {"do_sample": True, "top_k": 0},
    {"do_sample": True, "top_k": 0, "temperature": 0.6},
    {"do_sample": True, "top_k": 0, "temperature": 1.4},
    {"do_sample": True, "top_k": 20},
    {"do_sample": True, "top_k": 0, "top_p": 0.9},
    {"do_sample": True, "top_k": 0, "min_p": 0.05},
    {"do_sample": True, "top_k": 50, "temperature": 1.2, "top_p": 0.95, "min_p": 0.01},
]


def choices_around(
    model: PreTrainedModel, ids: Sequence[int], number: float, sampling: dict[str, Any]
) -> list[int]:
    """The tokens behind `ids` that numbers 1e-5 below and above this one choose: the lowest and the
    highest that it could choose with other rounding."""
    choose = TokenChoice(GenerationConfig(**sampling), model.device)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[:, -1]
    numbers = torch.tensor([number - 1e-5, number + 1e-5], dtype=torch.float64).clamp(0, 1)
    tokens, _ = choose(logits.expand(2, -1), numbers)
    return tokens.tolist()


@pytest.mark.parametrize(
    "draws", [pytest.param(20_000, marks=pytest.mark.slow), 2_000], ids="{:,}".format
)
def test_draws_of_mixed_settings_are_those_of_plain_decoding(draws: int) -> None:
    """The embedded model, in float32; drafts are the completions with a fifth of wrong tokens.

    Passes of other shapes round logits otherwise, so a number within 1e-5 of where the part of one
    token ends and that of the next begins may choose either.
    """
    model = load_model(
        Model(name="tiny", path="tiny"), Hardware("cpu", "cpu", 1, "1", 1, "float32")
    )
    assert takes_drafts(model.eval())
    drawn, rng, seed, near_borders = 0, random.Random(0), 0, 0
    while drawn < draws:
        sampling = MIXED[seed % len(MIXED)]
        arguments = sampling | {"completions": 16, "limit": 24, "eos_token_id": []}
        plain = decoded(model, numbers_from=seed, **arguments)
        history = DraftHistory([None, 1, 4, 7][seed % 4])
        for i, row in enumerate(plain):
            history.add(str(i), [corrupted(row.ids, 0.2, rng)])
        drafted = decoded(
            model, numbers_from=seed, history=history, packed=seed % 3 > 0, **arguments
        )
        assert history.counts.accepted
        for i, (row, expected) in enumerate(zip(drafted, plain, strict=True)):
            pairs = enumerate(zip(row.ids, expected.ids, strict=True))
            first = next((at for at, (token, other) in pairs if token != other), None)
            if first is None:
                continue
            near_borders += 1
            number = uniform(24, len(plain), seed)[first, i].item()
            prefix = [*PROMPTS[i // 16], *expected.ids[:first]]
            lowest, highest = choices_around(model, prefix, number, sampling)
            assert lowest <= row.ids[first] <= highest
            assert lowest <= expected.ids[first] <= highest
            assert lowest < highest
        drawn, seed = drawn + sum(len(row.ids) for row in plain), seed + 1
    assert near_borders <= draws / 10_000


def test_perfect_drafts_save_passes_and_the_first_wrong_token_ends_a_draft() -> None:
    plain = decoded(tiniest(), limit=13, eos_token_id=[])
    history = DraftHistory(4)
    for i, row in enumerate(plain):
        history.add(str(i), [row.ids])
    decoded(tiniest(), limit=13, eos_token_id=[], history=history)
    # The prefill gives one token, a pass five: 1 + 5 + 5 + 2 for each of six rows.
    assert history.counts.tokens == 6 * 13
    assert history.counts.passes == 6 * 4
    wrong = DraftHistory(4)
    for i, row in enumerate(plain):
        wrong.add(str(i), [[*row.ids[:3], 47 - row.ids[3], *row.ids[4:]]])
    assert [r.ids for r in decoded(tiniest(), limit=13, eos_token_id=[], history=wrong)] == [
        r.ids for r in plain
    ]
    assert 0 < wrong.counts.accepted < wrong.counts.drafted


def test_rows_end_with_an_end_token_in_the_middle_of_a_draft() -> None:
    sampling = {"do_sample": True, "completions": 8, "eos_token_id": [*range(16)]}
    plain = decoded(tiniest(), **sampling)
    assert len({len(row.ids) for row in plain}) > 3
    history = DraftHistory(8)
    for i, row in enumerate(plain):
        history.add(str(i), [[*row.ids, 30, 31, 32]])
    assert [r.ids for r in decoded(tiniest(), history=history, **sampling)] == [
        r.ids for r in plain
    ]


def test_ranks_go_on_together_until_the_last_row_of_any_rank_ends() -> None:
    passes = []

    def others_take_twenty(active: int) -> int:
        passes.append(active)
        return max(active, 20 - len(passes))

    history = DraftHistory(3)
    arguments = {"do_sample": True, "eos_token_id": [*range(16)]}
    rows = decoded(tiniest(), history=history, total_over_ranks=others_take_twenty, **arguments)
    assert passes[-2:] == [0, 0]
    assert len(passes) == 20
    assert [row.ids for row in rows] == [row.ids for row in decoded(tiniest(), **arguments)]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "transformers"])
def test_adapters_take_drafts(packed: bool) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = load_model(
        Model(name="tiny", path="tiny"), Hardware("cpu", "cpu", 1, "1", 1, "float32")
    )
    adapted: Any = get_peft_model(model, adapter).eval()
    assert takes_drafts(adapted)
    plain = decoded(adapted, do_sample=True)
    history = DraftHistory(4)
    for i, row in enumerate(plain):
        history.add(str(i), [row.ids])
    assert [r.ids for r in decoded(adapted, history=history, do_sample=True, packed=packed)] == [
        r.ids for r in plain
    ]
    assert history.counts.metrics()["tokens_per_pass"] > 2


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "transformers"])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16"])
def test_in_bfloat16_a_row_differs_first_at_a_near_tie(autocast: bool, packed: bool) -> None:
    precision = "float32" if autocast else "bfloat16"
    hardware = Hardware("cpu", "cpu", 1, "1", 1, precision)
    model = load_model(Model(name="tiny", path="tiny"), hardware).eval()
    assert takes_drafts(model)
    rng = random.Random(0)
    prompts = [[rng.randrange(7, 1600) for _ in range(rng.randint(3, 9))] for _ in range(64)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = decoded(model, prompts=prompts, completions=1, limit=20)
        history = DraftHistory(4)
        for i, row in enumerate(plain):
            history.add(str(i), [row.ids])
        drafted = decoded(
            model, prompts=prompts, completions=1, limit=20, history=history, packed=packed
        )
        different = 0
        for prompt, row, expected in zip(prompts, drafted, plain, strict=True):
            pairs = enumerate(zip(row.ids, expected.ids, strict=False))
            first = next((i for i, (token, other) in pairs if token != other), None)
            if first is None:
                assert row.ids == expected.ids
                continue
            different += 1
            ids = torch.tensor([[*prompt, *expected.ids[:first]]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, -1].float()
            gap = (logits[row.ids[first]] - logits[expected.ids[first]]).abs()
            # bfloat16 has 8 bits: neighbours of a logit are 2 ** -7 of it apart or less. The layers
            # before the logits round, too.
            assert gap <= 4 * 2**-7 * logits.abs().max()
    assert history.counts.accepted > 2 * history.counts.passes
    assert different <= len(prompts) / 4


def test_guesses_that_fail_are_no_longer_drafted() -> None:
    history = DraftHistory()
    rng = random.Random(0)
    for seed in range(4):
        for i in range(6):
            history.add(str(i), [[rng.randrange(VOCABULARY) for _ in range(30)]])
        history.take_counts()
        noise = {"do_sample": True, "temperature": 9.0, "top_k": 0, "eos_token_id": []}
        decoded(tiniest(), history=history, limit=30, numbers_from=seed, **noise)
    assert history.counts.tokens == 6 * 30
    assert history.counts.drafted < 0.1 * history.counts.tokens


def test_rows_that_no_guess_helps_are_decoded_without_and_tried_again_later() -> None:
    history = DraftHistory()
    drafts = history.of_rows(["q"] * 64)
    for row in range(64):
        drafts.observe(row, [row], drafted=0)
    tried = []
    for count in range(110):
        drafts.propose(dict.fromkeys(range(64), 5), 100.0, frozenset())
        tried.append(bool(drafts._guesses))
        for row in range(64):
            drafts.observe(row, [1000 * count + row], drafted=0)  # never what came before
    # Two passes tell; each time in vain twice as many go without a guess.
    assert [i for i, guessed in enumerate(tried) if guessed] == [0, 1, 33, 34, 98, 99]
    assert len(drafts._texts[5]) == 2 + 110


def test_history_is_bounded() -> None:
    history = DraftHistory(contexts=100, reply_tokens=50)
    for i in range(40):
        history.add(str(i), [[i, 3 * j + i, j] for j in range(6)])
        drafts = history.of_rows(["x"])
        drafts.observe(0, [*range(i, i + 9)], drafted=0)
        drafts.finish(0)
    assert sum(len(said) for replies in history._replies.values() for _, said in replies) <= 50
    assert len(history.table._entries) + len(history.table._older) <= 2 * (100 + 3 * 9)


def test_a_history_that_is_read_back_drafts_the_same(tmp_path: Path) -> None:
    history, restored = DraftHistory(), DraftHistory()
    for round_ in range(3):
        rows = history.of_rows(["which", "where"], ["original", "blank_image"])
        for token in (5, 7, 9, 5 + round_, 7, 2):
            rows.propose({0: 9, 1: 9}, 20.0, frozenset([2]))
            rows.observe(0, [token], drafted=0)
            rows.observe(1, [token + round_], drafted=0)
        rows.finish(0)
        rows.finish(1)
    torch.save(history.state_dict(), tmp_path / "drafts.pt")
    restored.load_state_dict(torch.load(tmp_path / "drafts.pt", weights_only=True))
    questions, names = ["which", "new"], ["original", "original"]
    drafts = [
        each.of_rows(questions, names).propose({0: 9, 1: 9}, 5.0, frozenset([2]), longest=32)
        for each in (history, restored)
    ]
    assert drafts[0] == drafts[1]
    assert drafts[0][0]
    assert restored.rates == history.rates
    assert restored.take_counts() == history.take_counts()
    first = (restored._tokens, restored.table.lookup(as_bytes([5, 7])), restored.rests())
    assert first == (history._tokens, history.table.lookup(as_bytes([5, 7])), history.rests())


def test_a_state_of_another_version_changes_nothing() -> None:
    history = DraftHistory()
    history.add("which", [[5, 7, 2]])
    with pytest.raises(KeyError):
        history.load_state_dict({**DraftHistory().state_dict(), "table": {}})
    assert history._tokens == 3


def test_table_gives_the_token_that_followed_most_often() -> None:
    table = SuffixTable((1, 2), 1000)
    for token in (7, 8, 7, 7):
        table.add([3, 4, token], 1)
    drafts = DraftHistory(3).of_rows(["q"])
    assert table.lookup((4).to_bytes(4, "little")) == 4 * 7 + 2
    assert table.lookup((9).to_bytes(4, "little")) == 0
    assert drafts.propose({0: 5}, 100.0, frozenset()) == {0: []}


def test_the_last_reply_to_a_row_is_guessed_before_others_to_its_question() -> None:
    history = DraftHistory(6)
    for reply in ([5, 6, 1, 2], [5, 6, 7, 8]):
        history.add("q", [reply], row="original")
    history.add("q", [[5, 6, 3, 4], [5, 6, 3, 9]], row="blank_image")
    for _ in range(9):
        history.table.add([-1, 5, 6, 0, 0], 1)
    drafts = history.of_rows(["q"] * 3, ["original", "blank_image", "no_image"])
    found = drafts.propose(dict.fromkeys(range(3), 4), 100.0, frozenset())
    assert found == {0: [5, 6, 7, 8], 1: [5, 6, 3, 9], 2: found[2]}
    assert found[2][:2] == [5, 6]


def test_a_reply_is_drafted_to_its_end_and_gone_on_with_behind_a_token_that_differs() -> None:
    history, reply = DraftHistory(9), [5, 6, 7, 8, 9, 8, 7]
    history.add("q", [reply], row="original")
    drafts = history.of_rows(["q", "q"], ["original", "blank_image"])
    drafts.observe(0, reply[:2], drafted=0)
    assert drafts.propose({0: 9}, 100.0, frozenset()) == {0: reply[2:]}
    assert not drafts._own  # no table is made for a reply that is said again
    drafts.observe(0, [7, 1, 7], drafted=5)
    assert drafts.propose({0: 3, 1: 3}, 100.0, frozenset())[0] == [8, 9, 8]
    drafts.observe(0, [2, 3], drafted=3)
    # The other row is told what this one says, before and after there is a table.
    drafts.observe(1, [5, 6, 7, 1, 7], drafted=0)
    assert drafts.propose({1: 2}, 100.0, frozenset()) == {1: [2, 3]}


def test_a_row_without_a_reply_is_drafted_from_texts() -> None:
    history = DraftHistory(4)
    history.add("q", [[1, 2, 3]], row="original")
    history.add_texts([[5, 6, 7, 8]])
    drafts = history.of_rows(["p", "q"], ["original", "blank_image"])
    assert drafts.propose({1: 4}, 100.0, frozenset()) == {1: [1, 2, 3]}
    drafts.observe(0, [5], drafted=0)
    assert drafts.propose({0: 4}, 100.0, frozenset()) == {0: [6, 7, 8]}


def test_first_drafts_may_be_whole_replies() -> None:
    history, reply = DraftHistory(), [*range(10, 35)]
    for i in range(300):
        history.add(str(i), [reply], row="original")
    questions = [str(i) for i in range(300)]
    drafts = history.of_rows(questions, ["original"] * 300)
    for row in range(299):
        drafts.propose({row: 40}, 100.0, frozenset(), longest=32)
        drafts.observe(row, reply, drafted=24)
    assert drafts.propose({299: 40}, 100.0, frozenset(), longest=32) == {299: reply}
    assert drafts.propose({299: 40}, 100.0, frozenset()) == {299: reply[:7]}


def test_settings_choose_whether_there_are_drafts() -> None:
    assert draft_history("0", "cpu") is None
    assert draft_history("auto", "cuda") is None
    automatic, fixed = draft_history("auto", "cpu"), draft_history("4", "cuda")
    assert automatic is not None
    assert automatic.most is None
    assert fixed is not None
    assert fixed.most == 4
