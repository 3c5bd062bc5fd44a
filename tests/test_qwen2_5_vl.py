"""Qwen2.5-VL, whose vision tower attends in windows and has a gated MLP, through every action."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Config
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionBlock

from medreason import config as configuration
from medreason import data
from medreason.actions import bench, export, plan, predict
from medreason.config import Config
from medreason.evaluation import predictions
from medreason.evaluation.answers import answer_rows, answer_rows_unshared
from medreason.evaluation.run import evaluate, evaluation_row
from medreason.models.load import load_model, load_processor, meta_model
from medreason.models.vision_tower import vision_tower
from medreason.runs.files import write_json
from medreason.runs.run_folder import RunFolder
from medreason.training.run import train, trained_model

Compose = Callable[..., Config]
SMALL = (
    *("modality=ct", "data.train_images=2", "data.test_images=1", "method.prompts_per_step=2"),
    *("hardware.per_device_prompts=2", "method.trl.max_steps=1", "evaluation.modalities=[ct]"),
    *("evaluation.max_new_tokens=4", "evaluation.controls=[]"),
    "evaluation.answers=[generated,option_likelihood]",
)
SAMPLED = ("method.trl.num_generations=2", "method.trl.max_completion_length=6")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("method=sft",), id="sft"),
        pytest.param(("method=grpo", *SAMPLED), id="grpo"),
        pytest.param(("method=rarl", *SAMPLED), id="rarl"),
        pytest.param(
            ("method=grpo", *SAMPLED, "hardware=gpu"),
            id="grpo-on-a-gpu",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ],
)
def test_it_is_planned_trained_evaluated_exported_and_asked(
    composed: Compose,
    tmp_path: Path,
    qwen2_5_vl: Path,
    overrides: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = composed(*overrides, *SMALL, f"model.path={qwen2_5_vl}")
    plan.run(config)
    adapter = ", an adapter" if config.adapter else ""
    assert f"memory of {config.method.name}, tiny{adapter}: about" in capsys.readouterr().out
    samples = data.load(config.data, tmp_path / "cache")
    folder = RunFolder(tmp_path / "run")
    path = folder.evaluation("evaluation0")
    path.mkdir(parents=True)
    configuration.write(config, path / "config.yaml")
    write_json(path / "data.json", {})
    train(config, data.trained_on(config, samples), folder, lambda *_: None)
    (row,) = (row for row in folder.logged() if "loss" in row)
    assert row["grad_norm"] >= 0
    evaluate(trained_model(config, folder), samples, folder, "evaluation0", lambda *_: None)
    assert predictions.read(path / "predictions.parquet")
    target = tmp_path / "exported"
    export.run(composed("action=export", f"model.path={folder.model}", f"export.to={target}"))
    Qwen2_5_VLForConditionalGeneration.from_pretrained(target)
    predict.run(
        composed(
            *("action=predict", f"model.path={target}", f"predict.image={samples[0].image}"),
            *('predict.question="Which? A)CT, B)MRI"', "evaluation.max_new_tokens=4"),
            f"predict.output={tmp_path}/answers.json",
        )
    )
    (answer,) = json.loads((tmp_path / "answers.json").read_text())
    assert sum(answer["option_likelihoods"].values()) == pytest.approx(1, abs=0.01)


def test_it_is_benchmarked(composed: Compose, tmp_path: Path, qwen2_5_vl: Path) -> None:
    small = [o for o in SMALL if not o.startswith("evaluation")]
    overrides = ("bench.tokens=[2]", "bench.repeats=1", "bench.image_size=112")
    bench.run(
        composed(
            *("action=bench", "method=grpo", *small, *SAMPLED, *overrides),
            *(f"model.path={qwen2_5_vl}", "evaluation.controls=[]"),
        )
    )
    results = json.loads((tmp_path / "outputs/benchmarks/tiny/bench.json").read_text())
    assert results["equality"]["logps_max_abs"] < 1e-4
    assert results["equality"]["grad_rel"] < 1e-4
    assert results["equality"]["answers"] is True


def test_shared_answers_are_those_of_generate(
    composed: Compose, tmp_path: Path, qwen2_5_vl: Path
) -> None:
    config = composed(*SMALL, f"model.path={qwen2_5_vl}")
    samples = data.tested_on(config, data.load(config.data, tmp_path / "cache"))
    rows = [evaluation_row(config, sample) for sample in samples]
    model, processor = load_model(config.model, config.hardware), load_processor(config.model)
    stock = load_model(config.model, config.hardware, patch_products=False)
    limits = {"batch_size": 4, "max_new_tokens": 6}
    shared = answer_rows(model, processor, rows, **limits)
    assert shared == answer_rows_unshared(stock, processor, rows, **limits)
    assert len({answer.text for answer in shared}) > 1


def test_attention_in_windows_is_counted_as_computed(composed: Compose, qwen2_5_vl: Path) -> None:
    config = meta_model(composed(f"model.path={qwen2_5_vl}").model).config
    tower = vision_tower(config)
    assert tower.attended_pairs(64) == 64 * 64 + 2 * 4 * 16 * 16  # four windows of 4 x 4 patches
    tiny = vision_tower(meta_model(composed().model).config)
    assert tiny.attended_pairs(64) == 3 * 64 * 64
    with pytest.raises(ValueError, match=r"Qwen2Config: work and memory .* are not known here"):
        vision_tower(Qwen2Config())


def test_memory_of_a_vision_layer_is_that_of_its_saved_tensors(
    composed: Compose, qwen2_5_vl: Path
) -> None:
    config = meta_model(composed(f"model.path={qwen2_5_vl}").model).config
    vision = config.vision_config
    vision._attn_implementation = "sdpa"
    layer = Qwen2_5_VLVisionBlock(vision)
    angles = torch.zeros(64, vision.hidden_size // vision.num_heads)
    elsewhere = {t.untyped_storage().data_ptr() for t in (angles, *layer.parameters())}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _kept = layer(
            torch.randn(64, vision.hidden_size, requires_grad=True),
            cu_seqlens=torch.arange(0, 65, 16),
            position_embeddings=(angles, angles),
        )
    measured = sum(t.untyped_storage().nbytes() for p, t in saved.items() if p not in elsewhere)
    assert 64 * vision_tower(config).layer_bytes(4) == pytest.approx(measured, rel=0.05)
