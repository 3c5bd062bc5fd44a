"""Rows that share their images get the answers of those that do not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from medreason import phantom
from medreason.config import Hardware, Model
from medreason.evaluation import answers
from medreason.evaluation.answers import answer_rows, answer_rows_unshared
from medreason.evaluation.controls import samples_under
from medreason.evaluation.option_likelihood import (
    option_likelihoods,
    option_likelihoods_unshared,
)
from medreason.generation import prefix_sharing
from medreason.generation.prefix_sharing import PrefilledPrefixes
from medreason.generation.rows import Completion, EvaluationRow
from medreason.models.load import load_model, load_processor
from medreason.prompts import fill

TINY = Model(name="tiny", path="tiny")
PROCESSOR = load_processor(TINY)
THINK = "{question} Think in <think>...</think> tags, then the letter in <answer>...</answer> tags."
CONTROLS = ("original", "blank_image", "shuffled_image", "no_image", "permuted_options")
LIMIT = 24


def model(attention: str = "sdpa") -> PreTrainedModel:
    return load_model(TINY, Hardware("cpu", "cpu", 1, 1, 1, "float32", attention=attention))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[EvaluationRow]:
    """Ten questions about four images of two modalities, with all controls."""
    found = phantom.load(tmp_path_factory.mktemp("cache"), train_images=0, test_images=2, seed=0)
    samples = [sample for sample in found if sample.modality in ("ct", "oct")][::2]
    return [
        EvaluationRow(control, sample, fill(THINK, sample))
        for control in CONTROLS
        for sample in samples_under(control, samples)
    ]


def plain(tiny: PreTrainedModel, asked: Sequence[EvaluationRow]) -> list[Completion]:
    return answer_rows_unshared(tiny, PROCESSOR, asked, batch_size=8, max_new_tokens=LIMIT)


def together(
    tiny: PreTrainedModel, asked: Sequence[EvaluationRow], size: int = 64
) -> list[Completion]:
    return answer_rows(tiny, PROCESSOR, asked, batch_size=size, max_new_tokens=LIMIT)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_completions_are_those_of_generate(asked: list[EvaluationRow], attention: str) -> None:
    tiny, some = model(attention), asked[:: 1 if attention == "sdpa" else 5]
    expected = plain(tiny, some)
    assert together(tiny, some) == expected
    assert together(tiny, some[::-1], size=16)[::-1] == expected
    assert len({found.text for found in expected}) > 5


def test_each_picture_is_decoded_and_encoded_once(
    asked: list[EvaluationRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = model()
    decoded: list[Path] = []
    encoded: list[int] = []
    opened, encode = prefix_sharing.open_rgb, tiny.get_image_features

    def features(pixels: Any, grids: Any, **more: Any) -> Any:  # noqa: ANN401
        encoded.append(len(grids))
        return encode(pixels, grids, **more)

    monkeypatch.setattr(
        prefix_sharing, "open_rgb", lambda path: (decoded.append(path), opened(path))[1]
    )
    monkeypatch.setattr(tiny, "get_image_features", features)
    monkeypatch.setattr(answers, "_difference_from_unshared", lambda *_: None)
    together(tiny, asked)
    images = {row.sample.image for row in asked}
    sizes = {opened(image).size for image in images}
    assert sorted(decoded) == sorted(images)
    assert sum(encoded) == len(images) + len(sizes)


def test_letters_are_scored_as_one_by_one(asked: list[EvaluationRow]) -> None:
    tiny = model()
    some = asked[::3]
    for tagged in (True, False):
        settings = {"batch_size": 7, "tagged": tagged}
        found = option_likelihoods(tiny, PROCESSOR, some, **settings)
        for row, shares in zip(some, found, strict=True):
            alone = option_likelihoods_unshared(tiny, PROCESSOR, row, tagged=tagged)
            assert shares == pytest.approx(alone, abs=1e-4)
            assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_model_that_cannot_share_goes_the_plain_way_and_says_so(
    asked: list[EvaluationRow], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny, some = model(), asked[::6]
    expected = plain(tiny, some)
    tiny.config._attn_implementation = "flash_attention_2"
    assert prefix_sharing.sharing_obstacles(tiny) == ["attention='flash_attention_2' takes no mask"]
    tiny.config._attn_implementation = "sdpa"
    monkeypatch.setattr(prefix_sharing, "sharing_obstacles", lambda _: ["a reason"])
    with caplog.at_level(logging.WARNING):
        assert together(tiny, some) == expected
        option_likelihoods(tiny, PROCESSOR, some[:1], batch_size=1, tagged=True)
    assert caplog.text.count("cannot share images: a reason; going on unshared") == 2


def test_model_that_reads_rows_otherwise_is_found_before_it_answers(
    asked: list[EvaluationRow], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny, some = model(), asked[:2]
    expected = plain(tiny, some)
    monkeypatch.setattr(
        PrefilledPrefixes,
        "positions",
        lambda self, mask: torch.zeros(3, *mask.shape, dtype=torch.long),
    )
    with caplog.at_level(logging.WARNING):
        assert together(tiny, some) == expected
        alone = option_likelihoods_unshared(tiny, PROCESSOR, some[0], tagged=True)
        settings = {"batch_size": 2, "tagged": True}
        assert option_likelihoods(tiny, PROCESSOR, some, **settings)[0] == alone
    assert "log-probabilities of one question are" in caplog.text
    assert "option likelihoods of one question are" in caplog.text
