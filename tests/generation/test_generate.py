"""Answers do not depend on the batch they are made in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from medreason import phantom
from medreason.config import Hardware, Model
from medreason.generation.generate import generate
from medreason.generation.rows import blank_image, original_image
from medreason.models.load import END_TOKENS, VISION_TOKENS, load_model, load_processor
from medreason.prompts import fill
from medreason.samples import Sample

THINK = "{question} Think in <think>...</think> tags, then the letter in <answer>...</answer> tags."
TINY = Model(name="tiny", path="tiny")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model(TINY, Hardware("cpu", "cpu", 1, "1", 1, "float32"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    cache: Path = tmp_path_factory.mktemp("cache")
    return phantom.load(cache, train_images=0, test_images=1, seed=0)[::4]  # 10, mixed lengths


def texts(model: PreTrainedModel, samples: list[Sample], **settings: object) -> list[str]:
    completions = generate(
        model,
        load_processor(TINY),
        samples,
        [fill(THINK, sample) for sample in samples],
        max_new_tokens=32,
        **{"batch_size": 4, **settings},  # pyright: ignore
    )
    return [completion.text for completion in completions]


def test_batch_size_and_order_change_no_answer(
    model: PreTrainedModel, samples: list[Sample]
) -> None:
    together = texts(model, samples)
    assert texts(model, samples, batch_size=1) == together
    assert texts(model, samples[::-1], batch_size=3)[::-1] == together


def test_permuting_a_batch_leaves_the_log_probabilities(
    model: PreTrainedModel, samples: list[Sample]
) -> None:
    """The public code of Med-R1 paired half the rows of a batch with another question's image."""
    processor = load_processor(TINY)

    def last_logits(order: list[int]) -> torch.Tensor:
        chosen = [samples[i] for i in order]
        text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        inputs = processor(
            text=[text + sample.problem for sample in chosen],
            images=[original_image(sample) for sample in chosen],
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            return model(**inputs).logits[:, -1].log_softmax(-1)

    in_order, permuted = last_logits([0, 1, 2, 3]), last_logits([2, 0, 3, 1])
    torch.testing.assert_close(permuted, in_order[[2, 0, 3, 1]], atol=1e-5, rtol=1e-5)


def test_limit_is_reported_and_nothing_behind_an_end_is_kept(
    model: PreTrainedModel, samples: list[Sample]
) -> None:
    prompts = [fill(THINK, sample) for sample in samples]
    short = generate(model, load_processor(TINY), samples, prompts, batch_size=4, max_new_tokens=3)
    assert {c.finish_reason for c in short} == {"length"}
    assert {c.completion_tokens for c in short} == {3}
    whole = generate(model, load_processor(TINY), samples, prompts, batch_size=4, max_new_tokens=64)
    ended = [c for c in whole if c.finish_reason == "stop"]
    assert ended
    assert not any(token in c.text for c in ended for token in (*END_TOKENS, *VISION_TOKENS))


def test_blank_image_has_the_size_of_the_real_one_and_changes_answers(
    model: PreTrainedModel, samples: list[Sample]
) -> None:
    assert blank_image(samples[0]).size == original_image(samples[0]).size
    assert texts(model, samples, image_of=blank_image) != texts(model, samples)


def test_question_can_be_asked_without_an_image(
    model: PreTrainedModel, samples: list[Sample]
) -> None:
    prompts = [fill(THINK, sample) for sample in samples[:4]]
    settings = {"batch_size": 4, "max_new_tokens": 8}
    seen = generate(model, load_processor(TINY), samples[:4], prompts, **settings)
    unseen = generate(
        model, load_processor(TINY), samples[:4], prompts, image_of=lambda _: None, **settings
    )
    assert [c.prompt for c in unseen] == prompts
    assert all(a.prompt_tokens > b.prompt_tokens for a, b in zip(seen, unseen, strict=True))
