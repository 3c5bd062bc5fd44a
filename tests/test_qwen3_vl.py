"""Qwen3-VL, whose deepstack features enter several layers of the language model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from medreason import data
from medreason.actions import plan
from medreason.config import Config
from medreason.evaluation.answers import answer_rows, answer_rows_unshared
from medreason.evaluation.run import evaluation_row
from medreason.models.load import load_model, load_processor
from medreason.models.model_folder import EMBEDDED
from medreason.runs.run_folder import RunFolder
from medreason.training.run import train

Compose = Callable[..., Config]
SMALL = (
    *("modality=ct", "data.train_images=2", "data.test_images=1", "method.prompts_per_step=2"),
    *("hardware.per_device_prompts=2", "method.trl.max_steps=1", "evaluation.modalities=[ct]"),
    *("evaluation.max_new_tokens=4", "evaluation.controls=[]"),
)
SAMPLED = ("method.trl.num_generations=2", "method.trl.max_completion_length=6")


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Qwen3-VL of random weights and the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("qwen3_vl")
    values = AutoConfig.from_pretrained(EMBEDDED).to_dict()
    text = {
        k: v for k, v in values["text_config"].items() if k not in ("model_type", "layer_types")
    }
    shape = {"depth": 3, "hidden_size": 96, "intermediate_size": 160, "num_heads": 4}
    deepstack = {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    config = Qwen3VLConfig(
        text_config=text | {"num_hidden_layers": 3, "initializer_range": 0.06},
        vision_config=shape | deepstack | {"out_hidden_size": text["hidden_size"]},
        **{k: v for k, v in values.items() if k.endswith("_token_id") or k.startswith("tie")},
    )
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore
    tiny: Any = Qwen2VLProcessor.from_pretrained(EMBEDDED)
    images = Qwen2VLImageProcessor(patch_size=16, merge_size=2)
    parts = (images, tiny.tokenizer, Qwen3VLVideoProcessor())
    Qwen3VLProcessor(*parts, chat_template=tiny.chat_template).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["sft", "grpo", "rarl"])
def test_it_is_planned_and_trained_with_shared_prompts(
    composed: Compose,
    tmp_path: Path,
    qwen3_vl: Path,
    method: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With rollout.fallback=error GRPO stops where sharing gives other log-probabilities."""
    sampled = SAMPLED if method != "sft" else ()
    config = composed(f"method={method}", *SMALL, *sampled, f"model.path={qwen3_vl}")
    assert config.rollout.fallback == "error"
    plan.run(config)
    adapter = ", an adapter" if config.adapter else ""
    assert f"memory of {method}, tiny{adapter}: about" in capsys.readouterr().out
    samples = data.load(config.data, tmp_path / "cache")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    train(config, data.trained_on(config, samples), folder, lambda *_: None)
    (row,) = (row for row in folder.logged() if "loss" in row)
    assert row["grad_norm"] >= 0


def test_evaluation_is_unshared_and_says_why(
    composed: Compose, tmp_path: Path, qwen3_vl: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed(*SMALL, f"model.path={qwen3_vl}")
    samples = data.tested_on(config, data.load(config.data, tmp_path / "cache"))
    rows = [evaluation_row(config, sample) for sample in samples]
    model, processor = load_model(config.model, config.hardware), load_processor(config.model)
    shared = answer_rows(model, processor, rows, batch_size=4, max_new_tokens=6)
    assert "Qwen3VLForConditionalGeneration takes no vision features" in caplog.text
    unshared = answer_rows_unshared(model, processor, rows, batch_size=4, max_new_tokens=6)
    assert shared == unshared
