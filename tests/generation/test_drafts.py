"""Decoding with drafts gives the tokens of plain decoding, whatever the drafts are."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from medreason.config import Hardware, Model
from medreason.generation.decoding import CompletionTokens, decode
from medreason.generation.draft_step import takes_drafts
from medreason.generation.drafts import DraftHistory, SuffixTable, draft_history
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.prefill import Prefill
from medreason.models import model_folder
from medreason.models.load import load_model

VOCABULARY = 48
ENDS = [5, 6]
PROMPTS = ([7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17])
Rows = list[CompletionTokens]


@functools.cache
def tiniest() -> PreTrainedModel:
    """Random weights whose next tokens are neither certain nor equally likely."""
    config = AutoConfig.from_pretrained(model_folder.resolve("tiny"))
    text = config.get_text_config()
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 32, 32, 2
    text.num_attention_heads, text.num_key_value_heads, text.vocab_size = 4, 2, VOCABULARY
    text.layer_types = text.layer_types[:2]
    text.rope_parameters["mrope_section"] = [1, 1, 2]
    text.bos_token_id = text.eos_token_id = text.pad_token_id = config.pad_token_id = None
    config.vision_config.hidden_size = text.hidden_size
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.25)
    assert takes_drafts(model)
    return model


def decoded(
    model: PreTrainedModel,
    *,
    completions: int = 2,
    limit: int = 12,
    history: DraftHistory | None = None,
    of_rows: bool = True,
    numbers_from: int = 0,
    total_over_ranks: Callable[[int], int] = int,
    **sampling: Any,
) -> Rows:
    """Rows of three padded prompts. With `of_rows` each row is a question of its own to the
    history, else each prompt."""
    ids = torch.tensor([[0] * (5 - len(row)) + row for row in PROMPTS])
    mask = torch.tensor([[0] * (5 - len(row)) + [1] * len(row) for row in PROMPTS])
    positions = (mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
    rows = torch.arange(len(PROMPTS)).repeat_interleave(completions)
    prefill = Prefill(
        logits=outputs.logits[rows, -1],
        position=positions[:, rows, -1:],
        mask=mask[rows],
        cache=lambda: repeat_kv_cache(outputs.past_key_values, rows, limit),
    )
    config = GenerationConfig(max_new_tokens=limit, **{"eos_token_id": ENDS} | sampling)
    numbers = None
    if config.do_sample:
        stream = torch.Generator().manual_seed(numbers_from)
        numbers = torch.rand(limit, len(rows), generator=stream, dtype=torch.float64)
    names = [str(i) if of_rows else str(int(row)) for i, row in enumerate(rows)]
    drafts = history.of_rows(names) if history else None
    with torch.inference_mode():
        return decode(
            model, prefill, config, numbers, drafts=drafts, total_over_ranks=total_over_ranks
        )


def corrupted(row: Sequence[int], rate: float, rng: random.Random) -> list[int]:
    """With wrong tokens at this rate, and going on behind the end."""
    tokens = [rng.randrange(VOCABULARY) if rng.random() < rate else token for token in row]
    return [*tokens, *(rng.randrange(VOCABULARY) for _ in range(3))]


SAMPLING = st.one_of(
    st.just({"do_sample": False}),
    st.fixed_dictionaries(
        {
            "do_sample": st.just(True),
            "temperature": st.sampled_from([0.5, 1.0, 2.0]),
            "top_k": st.sampled_from([0, 1, 5]),
            "top_p": st.sampled_from([1.0, 0.7]),
            "min_p": st.sampled_from([None, 0.1]),
        }
    ),
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
        drafted = decoded(tiniest(), history=history, of_rows=of_rows, **arguments)
        assert [row.ids for row in drafted] == [row.ids for row in plain]
        for row, expected in zip(drafted, plain, strict=True):
            assert row.logps == pytest.approx(expected.logps, abs=1e-4)


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


def test_adapters_take_drafts() -> None:
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
    assert [r.ids for r in decoded(adapted, history=history, do_sample=True)] == [
        r.ids for r in plain
    ]
    assert history.counts.metrics()["tokens_per_pass"] > 2


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16"])
def test_in_bfloat16_a_row_differs_first_at_a_near_tie(autocast: bool) -> None:
    precision = "float32" if autocast else "bfloat16"
    hardware = Hardware("cpu", "cpu", 1, "1", 1, precision)
    model = load_model(Model(name="tiny", path="tiny"), hardware).eval()
    assert takes_drafts(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = decoded(model, limit=20)
        history = DraftHistory(4)
        for i, row in enumerate(plain):
            history.add(str(i), [row.ids])
        drafted = decoded(model, limit=20, history=history)
    for row, expected in zip(drafted, plain, strict=True):
        pairs = zip(row.ids, expected.ids, row.logps, expected.logps, strict=False)
        first = next(((a, b) for x, y, a, b in pairs if x != y), None)
        # The likeliest of either way, each by its own rounding: bfloat16 has 8 bits.
        assert first is None or first[0] == pytest.approx(first[1], abs=0.05)


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


def test_history_is_bounded() -> None:
    history = DraftHistory(contexts=100, reply_tokens=50)
    for i in range(40):
        history.add(str(i), [[i, 3 * j + i, j] for j in range(6)])
        drafts = history.of_rows(["x"])
        drafts.observe(0, [*range(i, i + 9)], drafted=0)
        drafts.finish()
    assert sum(len(reply) for replies in history._replies.values() for reply in replies) <= 50
    assert len(history.table._entries) + len(history.table._older) <= 2 * (100 + 3 * 9)


def test_table_gives_the_token_that_followed_most_often() -> None:
    table = SuffixTable((1, 2), 1000)
    for token in (7, 8, 7, 7):
        table.add([3, 4, token], 1)
    drafts = DraftHistory(3).of_rows(["q"])
    assert table.lookup((4).to_bytes(4, "little")) == (7, 2)
    assert table.lookup((9).to_bytes(4, "little")) is None
    assert drafts.propose({0: 5}, 100.0, frozenset()) == {0: []}


def test_settings_choose_whether_there_are_drafts() -> None:
    assert draft_history("0", "cpu") is None
    assert draft_history("auto", "cuda") is None
    automatic, fixed = draft_history("auto", "cpu"), draft_history("4", "cuda")
    assert automatic is not None
    assert automatic.most is None
    assert fixed is not None
    assert fixed.most == 4
