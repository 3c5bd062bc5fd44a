"""Graphs of decoding steps are kept over calls, on the addresses that they were captured with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from medreason.config import Hardware, Model
from medreason.generation import cuda_graph, kept_graphs
from medreason.generation.decoding import CompletionTokens, decode
from medreason.generation.kept_graphs import DecodingGraphs
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.prefill import Prefill, PromptCache
from medreason.models.load import load_model
from medreason.training.adapter import LoraLinear

LIMIT = 24
ENDS = [*range(100, 140)]
PROMPTS = ((5, 6, 7, 8, 9), (10, 11, 12), (13, 14, 15, 16))


class Replayed:
    """In place of a CUDA graph: it runs again what it captured, on the tensors of that time."""

    count = 0

    def __init__(self, run: Callable[[], None]) -> None:
        self.replay = run
        Replayed.count += 1


@pytest.fixture(autouse=True)
def captures(monkeypatch: pytest.MonkeyPatch) -> None:
    Replayed.count = 0
    monkeypatch.setattr(cuda_graph, "captures_on", lambda _: True)
    monkeypatch.setattr(cuda_graph, "captured", lambda run, pool=None: Replayed(run))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(kept_graphs, "WINDOW", 7)


@pytest.fixture
def model() -> PreTrainedModel:
    hardware = Hardware("cpu", "cpu", 1, "1", 1, "float32")
    return load_model(Model(name="tiny", path="tiny"), hardware).eval()


@torch.no_grad()
def prefilled(
    model: nn.Module, prompts: Sequence[Sequence[int]], completions: int, *, shared: bool
) -> Prefill:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    outputs = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
    entries = torch.arange(len(prompts)).repeat_interleave(completions)
    return Prefill(
        logits=outputs.logits[entries, -1],
        position=positions[:, entries, -1:],
        mask=mask[entries],
        cache=lambda: repeat_kv_cache(outputs.past_key_values, entries, LIMIT),
        prompts=PromptCache(outputs.past_key_values, mask) if shared else None,
    )


def decoded(
    model: PreTrainedModel,
    graphs: DecodingGraphs | None,
    *,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    completions: int = 4,
    shared: bool = True,
) -> list[CompletionTokens]:
    prefill = prefilled(model, prompts, completions, shared=shared)
    settings = GenerationConfig(
        do_sample=True, temperature=3.0, max_new_tokens=LIMIT, eos_token_id=ENDS
    )
    stream = torch.Generator().manual_seed(0)
    rows = len(prompts) * completions
    numbers = torch.rand(LIMIT, rows, generator=stream, dtype=torch.float64)
    return decode(model, prefill, settings, numbers, graphs=graphs)


def expect_same(completions: list[CompletionTokens], expected: list[CompletionTokens]) -> None:
    assert [row.ids for row in completions] == [row.ids for row in expected]
    for row, other in zip(completions, expected, strict=True):
        assert row.logps == pytest.approx(other.logps, abs=1e-4)


@pytest.mark.parametrize("shared", [True, False], ids=["shared prompts", "prompts in rows"])
@pytest.mark.parametrize("completions", [2, 3, 8])
def test_calls_of_the_same_shapes_share_their_graphs(
    model: PreTrainedModel, shared: bool, completions: int
) -> None:
    graphs = DecodingGraphs()
    lengths: list[list[int]] = []
    for prompts in (PROMPTS, PROMPTS[::-1], PROMPTS):
        case = {"prompts": prompts, "completions": completions, "shared": shared}
        completions_ = decoded(model, graphs, **case)
        expect_same(completions_, decoded(model, None, **case))
        lengths.append([len(row.ids) for row in completions_])
        captures = Replayed.count
    assert len({*itertools.chain(*lengths)}) > 1  # rows have left
    decoded(model, graphs, prompts=PROMPTS, completions=completions, shared=shared)
    assert Replayed.count == captures > 1


def test_kept_graphs_see_weights_that_were_changed_in_place(model: PreTrainedModel) -> None:
    graphs = DecodingGraphs()
    before = decoded(model, graphs)
    captures = Replayed.count
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.add_(0.1 * parameter.std(correction=0) * noise)
    after = decoded(model, graphs)
    expect_same(after, decoded(model, None))
    assert [row.ids for row in after] != [row.ids for row in before]
    assert Replayed.count <= captures + 4  # of shapes to which other rows have left
    assert [key for key in graphs._graphs if key[0].rows == 12]  # pyright: ignore


def test_another_precision_model_or_adapter_is_captured_anew(model: PreTrainedModel) -> None:
    graphs = DecodingGraphs()
    decoded(model, graphs)
    step = graphs._step
    with torch.autocast("cpu", torch.bfloat16):
        decoded(model, graphs)
        assert graphs._step is not step
    expect_same(decoded(model, graphs), decoded(model, None))
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    settings._register_custom_module({nn.Linear: LoraLinear})
    adapted: Any = get_peft_model(model, settings).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    step = graphs._step
    first = decoded(adapted, graphs)
    assert graphs._step is not step
    expect_same(first, decoded(adapted, None))
    captures = Replayed.count
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.mul_(1.5)
    expect_same(decoded(adapted, graphs), decoded(adapted, None))
    assert Replayed.count <= captures + 4


def test_longer_prompts_and_more_rows_get_larger_tensors(model: PreTrainedModel) -> None:
    graphs = DecodingGraphs()
    long = ([*range(40, 140)], [*range(50, 80)])
    for prompts, completions in ((PROMPTS, 4), (long, 4), (PROMPTS, 4), (PROMPTS, 8)):
        for shared in (True, False):
            case = {"prompts": prompts, "completions": completions, "shared": shared}
            expect_same(decoded(model, graphs, **case), decoded(model, None, **case))


def test_graphs_are_bounded_and_all_memory_is_freed(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_graphs, "_GRAPHS", 2)
    graphs = DecodingGraphs()
    expect_same(decoded(model, graphs), decoded(model, None))
    assert len(graphs._graphs) == 2
    assert graphs.kept_bytes > 0
    graphs.release()
    assert graphs.kept_bytes == 0
    assert not graphs._graphs
    captures = Replayed.count
    expect_same(decoded(model, graphs), decoded(model, None))
    assert Replayed.count > captures


def test_rows_that_stay_are_in_groups_of_a_power_of_two(model: PreTrainedModel) -> None:
    prefill = prefilled(model, PROMPTS, 6, shared=True)
    step = DecodingGraphs().begin(model, prefill, LIMIT)
    active = torch.zeros(18, dtype=torch.bool)
    active[[1, 13, 15, 17]] = True
    kept = step.drop_rows(active, 4)
    # Of two questions up to four rows each; those that are active among them.
    assert isinstance(kept, Tensor)
    assert kept.tolist() == [0, 1, 2, 3, 12, 13, 15, 17]
    assert step.drop_rows(active[kept], 4) is None
