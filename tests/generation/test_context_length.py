"""A question that the model's context cannot hold is refused before the model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from run_folders import draw_samples

from medreason.config import Config, Model
from medreason.data.images import open_rgb
from medreason.evaluation.run import evaluation_row, predict_rows
from medreason.generation.context_length import Question, refuse_longer_than_context
from medreason.generation.generate import prompt_texts
from medreason.models.load import context_length, load_processor
from medreason.models.model_folder import EMBEDDED
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training.run import train

Compose = Callable[..., Config]


def with_context(folder: Path, tokens: int) -> str:
    """The tiny model with another `max_position_embeddings` and no weights: none are loaded."""
    for file in EMBEDDED.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = tokens
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def long(tmp_path: Path) -> list[Sample]:
    """The second of two questions has about 12,000 tokens."""
    short, other = draw_samples(tmp_path)[:2]
    return [
        replace(short, id="qa.json:0"),
        replace(other, id="qa.json:7", question="Which organ is shown? " * 1500),
    ]


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (("method=sft",), "model.max_pixels"),
        (("method=sft", "prompt.train=['{question}', 'Now: {question}']"), "model.max_pixels"),
        (("method=grpo",), "method.trl.max_completion_length or model.max_pixels"),
    ],
    ids=["sft", "wordings", "grpo"],
)
def test_long_training_question_is_refused_with_file_row_tokens_and_limit(
    composed: Compose, tmp_path: Path, long: list[Sample], overrides: Sequence[str], remedy: str
) -> None:
    words = (
        r"^qa\.json, row 7: a prompt of 12,\d{3} tokens \(6 of the image\) and .* of completion "
        r"exceed the 4,096 tokens of the context \(max_position_embeddings\) of model.path=tiny, "
        rf"as do 0 other questions; .* set a smaller {remedy}, or choose"
    )
    with pytest.raises(ValueError, match=words):
        train(composed(*overrides), long, RunFolder(tmp_path / "run"), lambda *_: None)


def test_long_test_question_is_refused(composed: Compose, long: list[Sample]) -> None:
    config = composed("evaluation.max_new_tokens=40")
    rows = [evaluation_row(config, sample) for sample in long]
    with pytest.raises(ValueError, match=r"row 7: .* and 40 of completion .*evaluation.max_new"):
        predict_rows(config, rows, lambda *_: None)


def test_tokens_are_those_that_the_model_gets_and_the_remedies_work(
    composed: Compose, tmp_path: Path
) -> None:
    model = composed().model
    Image.new("RGB", (384, 384)).save(tmp_path / "image.png")
    sample = replace(draw_samples(tmp_path)[0], image=tmp_path / "image.png")
    processor = load_processor(model)
    texts = prompt_texts(processor, ["What is it?"], [True])
    images = [open_rgb(sample.image, sample.window)]
    tokens = len(processor(text=texts, images=images)["input_ids"][0])  # pyright: ignore
    fits = replace(model, path=with_context(tmp_path, tokens + 10))
    refuse_longer_than_context(fits, [Question(sample, "What is it?", 10)])
    with pytest.raises(ValueError, match=f"prompt of {tokens} tokens .* and 11 of completion"):
        refuse_longer_than_context(fits, [Question(sample, "What is it?", 11)])
    smaller = replace(fits, max_pixels=3136)  # a token in place of 16
    refuse_longer_than_context(smaller, [Question(sample, "What is it?", 11)])


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        ({}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
    ],
)
def test_stretched_positions_count(tmp_path: Path, rope: dict[str, object], tokens: int) -> None:
    path = with_context(tmp_path, 512)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["rope_parameters"] |= rope
    file.write_text(json.dumps(config))
    assert context_length(Model(name="tiny", path=path)) == tokens
