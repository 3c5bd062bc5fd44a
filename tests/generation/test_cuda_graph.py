"""A decoding step with fixed shapes gives what the eager one gives, and can be captured."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
)

from medreason.config import Hardware, Model
from medreason.generation import cuda_graph, decoding, fused_step, kept_graphs, kv_cache
from medreason.generation.cuda_graph import CudaGraphStep
from medreason.generation.decoding import decode
from medreason.generation.kept_graphs import DecodingGraphs
from medreason.generation.kv_cache import PreallocatedLayer, repeat_kv_cache
from medreason.generation.prefill import Prefill
from medreason.generation.token_choice import CompletionTokens
from medreason.models import model_folder
from medreason.models.load import load_model

ENDS = list(range(100, 140))  # often sampled: rows end at different steps
LIMIT = 14
PROMPTS = ((5, 6, 7, 8, 9), (10, 11, 12), (13, 14, 15, 16))
ROWS = 4
"""Of each prompt."""


def tiny(device: str = "cpu", precision: str = "float32") -> PreTrainedModel:
    hardware = Hardware("cpu", device, 1, "1", 1, precision)
    return load_model(Model(name="tiny", path="tiny"), hardware).to(device).eval()  # pyright: ignore


def decoded(
    model: PreTrainedModel, *, graphs: bool, prompts: tuple = PROMPTS, temperature: float = 3.0
) -> list[CompletionTokens]:
    rows = [row for row in prompts for _ in range(ROWS)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
    entries = torch.arange(len(rows), device=model.device)
    prefill = Prefill(
        logits=outputs.logits[:, -1],
        position=positions[:, :, -1:],
        mask=mask,
        cache=lambda: repeat_kv_cache(outputs.past_key_values, entries, LIMIT),
    )
    settings = GenerationConfig(
        do_sample=True, temperature=temperature, max_new_tokens=LIMIT, eos_token_id=ENDS
    )
    stream = torch.Generator().manual_seed(0)
    numbers = torch.rand(LIMIT, len(rows), generator=stream, dtype=torch.float64)
    kept = DecodingGraphs() if graphs else None
    return decode(model, prefill, settings, numbers.to(model.device), graphs=kept)


def share_of_equal_tokens(
    eager: list[CompletionTokens], graphed: list[CompletionTokens], rounding: float
) -> float:
    """The share of tokens before each row's first difference; log-probabilities there are equal."""
    equal_tokens = 0
    for expected, completion in zip(eager, graphed, strict=True):
        pairs = zip(completion.ids, expected.ids, strict=False)
        begins = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        assert completion.logps[:begins] == pytest.approx(expected.logps[:begins], abs=rounding)
        equal_tokens += begins
    return equal_tokens / sum(len(row.ids) for row in eager)


@pytest.mark.parametrize("window", [1, 3, 128])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "without padding"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "of transformers"])
def test_steps_of_fixed_shapes_decode_what_eager_steps_decode(
    window: int, prompts: tuple, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph, "WINDOW", window)
    monkeypatch.setattr(kept_graphs, "WINDOW", window)
    if not fused:
        monkeypatch.setattr(decoding, "takes_fused_steps", lambda _: False)
    model = tiny()
    eager = decoded(model, graphs=False, prompts=prompts)
    assert len({len(row.ids) for row in eager}) > 1
    graphed = decoded(model, graphs=True, prompts=prompts)
    assert share_of_equal_tokens(eager, graphed, rounding=1e-4) == 1


CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("computed", ["autocast", "bfloat16", "float32"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "of transformers"])
def test_captured_steps_decode_what_eager_steps_decode(
    device: str,
    computed: str,
    fused: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cuda_graph, "WINDOW", 6)  # captured, dropped and captured again
    monkeypatch.setattr(kept_graphs, "WINDOW", 6)
    if not fused:
        monkeypatch.setattr(decoding, "takes_fused_steps", lambda _: False)
    model = tiny(device, "bfloat16" if computed == "bfloat16" else "float32")
    with torch.autocast(device, torch.bfloat16, enabled=computed == "autocast"):
        # At 3 the tokens are so close to equally likely that rounding alone decides many.
        temperature = 3.0 if computed == "float32" else 1.0
        graphed = decoded(model, graphs=True, temperature=temperature)
        # Fused steps round bfloat16 otherwise than transformers' (test_fused_layers compares both
        # with float32): those that are captured are compared with those that are not.
        rounds_otherwise = fused and computed == "bfloat16"
        monkeypatch.setattr(cuda_graph, "WARM_UP_STEPS", LIMIT)
        eager = decoded(model, graphs=rounds_otherwise, temperature=temperature)
    assert "without CUDA graphs" not in caplog.text
    if computed == "float32":
        assert share_of_equal_tokens(eager, graphed, rounding=1e-3) == 1
    else:  # a number can fall between two roundings, and the rest is another completion
        exact = decoded(tiny(device), graphs=False, temperature=temperature)
        by_rounding = share_of_equal_tokens(exact, eager, rounding=1.0)
        assert share_of_equal_tokens(eager, graphed, rounding=0.1) >= by_rounding > 0.2


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "of transformers"])
def test_step_reads_nothing_back_from_the_device(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA captures no step that waits for a value; tensors without values cannot give one."""
    monkeypatch.setattr(fused_step, "_is_known", lambda *_: fused)
    config = AutoConfig.from_pretrained(model_folder.resolve("tiny"))
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        model = AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        heads, layers = config.text_config.num_key_value_heads, config.text_config.num_hidden_layers
        width = config.text_config.hidden_size // config.text_config.num_attention_heads
        cache = DynamicCache()
        for layer in range(layers):
            cache.update(torch.zeros(1, heads, 5, width), torch.zeros(1, heads, 5, width), layer)
        rows = repeat_kv_cache(cache, torch.tensor([0, 0]), 4)
        step = CudaGraphStep(model, rows, torch.ones(2, 5, dtype=torch.long), 4)
        logits: Tensor = step.run()
    assert logits.shape == (2, config.text_config.vocab_size)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "of transformers"])
def test_failed_capture_goes_on_in_the_stream_it_began_in(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = ["of the model"]

    class FailingCapture:
        """As torch.cuda.graph, which enters its stream before the capture begins."""

        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> None:
            streams.append("of the capture")
            raise RuntimeError("cannot capture")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", FailingCapture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(cuda_graph, "captures_on", lambda _: True)
    if not fused:
        monkeypatch.setattr(decoding, "takes_fused_steps", lambda _: False)
    model = tiny()
    graphed = decoded(model, graphs=True)
    assert streams == ["of the model", "of the capture", "of the model"]
    monkeypatch.undo()
    assert [row.ids for row in graphed] == [row.ids for row in decoded(model, graphs=False)]


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "fixed shapes"])
def test_kv_cache_under_autocast_is_half_as_large_with_the_same_completions(
    graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    stored: list[torch.dtype] = []
    expose = PreallocatedLayer._expose

    def record(layer: PreallocatedLayer, length: int) -> tuple[Tensor, Tensor]:
        stored.append(layer._buffers.dtype)
        return expose(layer, length)

    monkeypatch.setattr(PreallocatedLayer, "_expose", record)
    completions = []
    # Fused steps take that of autocast alone.
    monkeypatch.setattr(decoding, "takes_fused_steps", lambda _: False)
    for dtype in (torch.bfloat16, torch.float32):
        if dtype == torch.float32:  # that of the keys, without autocast's
            monkeypatch.setattr(kv_cache, "_stored_dtype", lambda keys: keys.dtype)
        with torch.autocast("cpu", torch.bfloat16):
            completions.append(decoded(model, graphs=graphs, temperature=1.0))
        assert set(stored) == {dtype}
        stored.clear()
    assert completions[0] == completions[1]
