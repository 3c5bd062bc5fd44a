"""Rollouts sample what `generate` samples, and a question's random stream is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from medreason.config import Hardware, Model
from medreason.generation.sampling import sample_completions, unsupported_settings
from medreason.generation.token_choice import CompletionTokens
from medreason.models.load import END_TOKENS, VISION_TOKENS, load_model, load_processor

TINY = Model(name="tiny", path="tiny")
PROCESSOR = load_processor(TINY)
ENDS = PROCESSOR.tokenizer.convert_tokens_to_ids(END_TOKENS)
BANNED = PROCESSOR.tokenizer.convert_tokens_to_ids(VISION_TOKENS)
TURN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
QUESTIONS = ("Which? A)x, B)y", "What does the image show? A)cyst, B)mass, C)nothing", "Where?")


def model(precision: str = "float32") -> PreTrainedModel:
    return load_model(TINY, Hardware("cpu", "cpu", 1, "1", 1, precision)).eval()


def prompts(order: list[int]) -> dict[str, Tensor]:
    sizes = ((112, 112), (84, 140), (56, 112))
    return PROCESSOR(
        text=[TURN.format(QUESTIONS[i]) + "<|im_start|>assistant\n" for i in order],
        images=[Image.new("RGB", sizes[i], (90 * i, 60, 200)) for i in order],
        padding=True,
        return_tensors="pt",
    )


def settings(**more: Any) -> GenerationConfig:
    return GenerationConfig(
        **{
            "do_sample": True,
            "max_new_tokens": 12,
            "eos_token_id": ENDS,
            "pad_token_id": PROCESSOR.tokenizer.pad_token_id,
            "suppress_tokens": BANNED,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
        }
        | more
    )


def sampled(model: PreTrainedModel, order: list[int], **more: Any) -> list[list[CompletionTokens]]:
    seeds = [f"0:0:{i}" for i in order]
    completions = more.pop("completions", 4)
    return sample_completions(
        model, prompts(order), completions=completions, settings=settings(**more), seeds=seeds
    )


def test_greedy_completions_are_those_of_generate() -> None:
    tiny, inputs = model(), prompts([0, 1, 2])
    greedy = settings(do_sample=False, temperature=None, top_p=None, top_k=None)
    generated = tiny.generate(**inputs, generation_config=greedy)[:, inputs["input_ids"].shape[1] :]
    completions = sample_completions(
        tiny, inputs, completions=2, settings=greedy, seeds=["", "", ""]
    )
    for row, group in zip(generated.tolist(), completions, strict=True):
        for completion in group:
            assert completion.ids == row[: len(completion.ids)]
            assert completion.ids[-1] in ENDS or len(completion.ids) == 12


def test_completions_of_a_question_do_not_depend_on_the_batch() -> None:
    tiny = model()
    together = sampled(tiny, [0, 1, 2], temperature=1.5)
    reordered = sampled(tiny, [2, 0, 1], temperature=1.5)
    assert [reordered[1], reordered[2], reordered[0]] != [reordered[0], reordered[1], reordered[2]]
    for place, question in enumerate([2, 0, 1]):
        assert [c.ids for c in reordered[place]] == [c.ids for c in together[question]]
        (alone,) = sampled(tiny, [question], temperature=1.5)
        assert [c.ids for c in alone] == [c.ids for c in together[question]]
    assert len({tuple(c.ids) for c in together[0]}) > 1


def test_row_ends_at_either_end_token_and_at_the_limit() -> None:
    groups = sampled(model(), [0, 1], completions=32, temperature=4.0, max_new_tokens=40)
    rows = [completion.ids for group in groups for completion in group]
    assert {row[-1] for row in rows if len(row) < 40} <= set(ENDS)
    assert any(len(row) < 40 for row in rows)
    assert all(token not in ENDS for row in rows for token in row[:-1])
    assert not {token for row in rows for token in row} & set(BANNED)


@pytest.mark.parametrize(
    "more",
    [{}, {"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.05}],
    ids=["plain", "temperature", "top-p", "top-k", "min-p"],
)
def test_tokens_are_kept_by_generate_and_have_the_log_probabilities_of_the_update(
    more: dict[str, float],
) -> None:
    """The update's are those of all tokens, at the temperature."""
    tiny, inputs = model(), prompts([1])
    (group,) = sampled(tiny, [1], max_new_tokens=5, **more)
    prompt = inputs["input_ids"]
    filters = tiny._get_logits_processor(settings(**more), prompt.shape[1], device=prompt.device)
    assert isinstance(filters, LogitsProcessorList)
    for completion in group:
        ids = torch.cat([prompt, torch.tensor([completion.ids])], dim=1)
        types = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(completion.ids)))
        with torch.no_grad():
            logits = tiny(
                input_ids=ids,
                mm_token_type_ids=types,
                pixel_values=inputs["pixel_values"],
                image_grid_thw=inputs["image_grid_thw"],
            ).logits[0, prompt.shape[1] - 1 : -1]
        drawn = torch.tensor(completion.ids)[:, None]
        assert filters(ids, logits).gather(1, drawn).isfinite().all()
        logps = (logits / more.get("temperature", 1.0)).log_softmax(-1)
        expected = [logps[t, token].item() for t, token in enumerate(completion.ids)]
        assert completion.logps == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("more", [{}, {"temperature": 0.6}, {"top_p": 0.9}, {"top_k": 6}])
def test_20_000_samples_follow_the_softmax(more: dict[str, float]) -> None:
    """Pearson's chi-square at the 0.1 % level; those expected under five times are one cell."""
    tiny, inputs, count = model(), prompts([0]), 20_000
    tiny.lm_head.weight.data /= 3  # flatter: the tiny model is sure of its first token
    with torch.no_grad():
        logits = tiny(**inputs).logits[:, -1]
    filters = tiny._get_logits_processor(settings(**more), 1, device=torch.device("cpu"))
    expected = filters(inputs["input_ids"], logits).softmax(-1)[0] * count
    (group,) = sampled(tiny, [0], completions=count, max_new_tokens=1, **more)
    tokens = torch.tensor([completion.ids[0] for completion in group])
    observed = torch.bincount(tokens, minlength=len(expected)).float()
    assert not observed[expected == 0].any()
    often = expected >= 5
    cells = [((observed - expected) ** 2 / expected)[often]]
    if (rest := expected[~often].sum()) >= 5:
        cells.append((observed[~often].sum() - rest)[None] ** 2 / rest)
    statistic, freedom = torch.cat(cells).sum(), len(torch.cat(cells)) - 1
    # Wilson and Hilferty's approximation of the 99.9 % point.
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert freedom >= 3
    assert statistic < bound


def test_adapter_and_half_precision_are_taken() -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(model(), adapter).eval()
    assert sampled(adapted, [0, 1]) != sampled(model(), [0, 1])
    half = sampled(model("bfloat16"), [0, 1])
    assert all(completion.ids for group in half for completion in group)


def test_unsupported_settings_are_named() -> None:
    assert unsupported_settings(settings()) == {}
    assert unsupported_settings(settings(repetition_penalty=1.2)) == {"repetition_penalty": 1.2}
    assert unsupported_settings(settings(num_beams=2)) == {"num_beams": 2}
