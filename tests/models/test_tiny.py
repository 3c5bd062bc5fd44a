"""The embedded model: small, real, and rebuilt the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from medreason.config import Hardware, Model
from medreason.models.load import load_model, load_processor
from medreason.models.model_folder import EMBEDDED
from medreason.models.tiny.build import build
from medreason.models.tiny.lessons import Lesson


def test_it_is_small_and_loads_with_nothing_of_ours() -> None:
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) < 8 * 2**20
    model = Qwen2VLForConditionalGeneration.from_pretrained(EMBEDDED)
    assert 1_000_000 < model.num_parameters() < 3_000_000
    assert isinstance(AutoProcessor.from_pretrained(EMBEDDED), Qwen2VLProcessor)


def test_rebuilding_it_is_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lessons = (
        Lesson({"letters": 4}, 3, 1e-3),
        Lesson({"letters": 2, "sight": 2, "replies": 2}, 3, 1e-3),
    )
    for name in ("one", "two"):
        build(tmp_path / name, images=2, lessons=lessons)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_words_of_options_are_the_same_tokens_behind_space_and_bracket() -> None:
    tokenizer = AutoProcessor.from_pretrained(EMBEDDED).tokenizer
    options = tokenizer.tokenize(" A)left lung, B)heart")
    sentence = tokenizer.tokenize("on the left lung.")
    assert {"left", "lung"} <= set(options) & set(sentence)
    text = "Grüße: 3.5 mm?\n<think>(x)</think>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(("pixels", "tokens"), [(None, 16), (3200, 4)])
def test_max_pixels_limits_the_image_tokens(pixels: int | None, tokens: int) -> None:
    processor = load_processor(Model(name="tiny", path="tiny", max_pixels=pixels))
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    inputs = processor(text=[text], images=[Image.new("RGB", (384, 384))], return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == tokens


def test_full_precision_holds_weights_in_float32_whatever_the_profile_says() -> None:
    hardware = Hardware("gpu", "cpu", 1, "1", 1, "bfloat16")
    model = Model(name="tiny", path="tiny")
    assert load_model(model, hardware).dtype == torch.bfloat16
    assert load_model(model, hardware, full_precision=True).dtype == torch.float32
