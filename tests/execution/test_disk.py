"""The disk space of a run is counted as its files will have it, and a disk too small is refused."""

from __future__ import annotations

import math
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from run_folders import draw_samples
from safetensors.torch import load_file

from medreason.actions import plan
from medreason.config import Config
from medreason.execution import disk
from medreason.models import model_folder
from medreason.models.load import load_model, meta_model
from medreason.models.model_folder import EMBEDDED
from medreason.runs.run_folder import RunFolder
from medreason.training import run
from medreason.training.adapter import count_parameters

Compose = Callable[..., Config]
GIB = 2**30


def files_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*"))


@pytest.mark.parametrize("states", ["float32", "8bit"])
def test_checkpoints_and_the_finished_model_are_as_large_as_counted(
    composed: Compose, tmp_path: Path, states: str
) -> None:
    config = composed("method=grpo", f"hardware.optimizer_states={states}")
    model: Any = load_model(config.model, config.hardware, full_precision=True)
    if states == "float32":
        moments = torch.optim.AdamW(model.parameters())
    else:
        from bitsandbytes.optim import AdamW8bit, GlobalOptimManager

        manager = GlobalOptimManager.get_instance()
        manager.initialize()  # it tells weights by their ids, those of earlier tests among them
        embedding = model.get_input_embeddings()
        manager.register_module_override(embedding, "weight", {"optim_bits": 32})
        moments = AdamW8bit(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    moments.step()
    model.save_pretrained(tmp_path / "checkpoint")
    torch.save(moments.state_dict(), tmp_path / "checkpoint" / "optimizer.pt")
    space = disk.disk_space(config)
    assert space
    counted = space.training / disk.CHECKPOINTS_AT_ONCE
    assert counted == pytest.approx(files_size(tmp_path / "checkpoint"), rel=0.03)
    finished = tmp_path / "checkpoint" / "model.safetensors"
    assert space.kept == pytest.approx(finished.stat().st_size, rel=0.01)
    assert space.download == 0


def test_finished_model_of_a_bfloat16_profile_takes_half_and_answers_the_same(
    composed: Compose, tmp_path: Path
) -> None:
    config = composed("method=grpo", "hardware.precision=bfloat16")
    load_model(config.model, config.hardware, full_precision=True).save_pretrained(tmp_path)
    before = config.model.__class__(name="trained", path=str(tmp_path))
    expected = load_model(before, config.hardware).state_dict()
    run.save_in_bfloat16(tmp_path)
    rounded = load_model(before, config.hardware).state_dict()
    assert all(torch.equal(rounded[name], tensor) for name, tensor in expected.items())
    space = disk.disk_space(config)
    assert space
    assert space.kept == pytest.approx((tmp_path / "model.safetensors").stat().st_size, rel=0.01)
    assert '"dtype": "float32"' not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (("hardware.precision=bfloat16",), torch.bfloat16),
        (("hardware.precision=float32",), torch.float32),
        (("hardware.precision=bfloat16", "adapter=lora_r8"), torch.float32),
    ],
    ids=["bfloat16", "float32", "adapter"],
)
def test_training_keeps_whole_weights_in_the_precision_of_its_evaluation(
    composed: Compose, tmp_path: Path, overrides: tuple[str, ...], kept: torch.dtype
) -> None:
    config, folder = composed("method=sft", *overrides), RunFolder(tmp_path / "run")
    trainer = run.build(config, draw_samples(tmp_path / "images", 1), folder, [])
    run._save(config, trainer, folder, trained=True)
    (file,) = folder.model.glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {kept}


@pytest.mark.parametrize(
    "adapter",
    [
        ["adapter=lora_r8"],
        ["adapter=lora_all"],
        ["adapter=lora_r8", "adapter.target_modules=[q_proj,down_proj]", "adapter.r=4"],
    ],
)
def test_adapter_has_as_many_parameters_as_counted(composed: Compose, adapter: list[str]) -> None:
    config = composed("method=rarl", *adapter)
    model = get_peft_model(meta_model(config.model), LoraConfig(**config.adapter))
    trainable, _ = count_parameters(model)
    space = disk.disk_space(config)
    assert space
    assert space.kept == 4 * trainable
    assert space.training == 3 * 12 * trainable


@pytest.fixture
def on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub whose every model has the shapes of the 2B: 2.2 billion weights in bfloat16."""
    tensors = {
        "model.embed_tokens.weight": [151936, 1536],
        **{f"model.layers.{i}.mlp.up_proj.weight": [8960, 8192] for i in range(27)},
    }

    def info(shape: list[int], start: int) -> SimpleNamespace:
        return SimpleNamespace(shape=shape, data_offsets=(start, start + 2 * shape[0] * shape[1]))

    file = SimpleNamespace(tensors={name: info(shape, 0) for name, shape in tensors.items()})
    metadata = SimpleNamespace(files_metadata={"model.safetensors": file})
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda *_, **__: metadata)
    disk._hub_shapes.cache_clear()


def free(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**15, 0, int(gib * GIB)))


@pytest.mark.usefixtures("on_the_hub")
@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        # 4 GiB of weights to download; three checkpoints of 12 bytes a parameter.
        (["method=grpo"], 4.1 + 3 * 12 * 2.06),
        (["method=grpo", "hardware.optimizer_states=8bit"], 45.4),
        (["method=base"], 4.2),
    ],
)
def test_training_of_a_hub_id_needs_its_download_and_three_checkpoints(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, overrides: list[str], needed: float
) -> None:
    config = composed("model=qwen2_vl_2b", "hardware=gpu", "model.path=owner/absent", *overrides)
    free(monkeypatch, needed * 0.95)
    with pytest.raises(ValueError, match=r"GiB free, about .* needed"):
        disk.refuse_full(config)
    free(monkeypatch, needed * 1.05)
    disk.refuse_full(config)


@pytest.mark.usefixtures("on_the_hub")
def test_remedies_of_a_full_disk_take_less(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("model=qwen2_vl_2b", "hardware=gpu", "method=grpo", "model.path=owner/absent")
    free(monkeypatch, 48)
    with pytest.raises(ValueError, match=r"optimizer_states=8bit or adapter=lora_r8$"):
        disk.refuse_full(composed(*command))
    disk.refuse_full(composed(*command, "hardware.optimizer_states=8bit"))
    free(monkeypatch, 5)
    disk.refuse_full(composed(*command, "adapter=lora_r8"))


def test_checkpoints_that_are_there_already_need_no_space_again(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("method=grpo")
    space = disk.disk_space(config)
    assert space
    free(monkeypatch, 0.11)
    with pytest.raises(ValueError, match="3 checkpoints at once"):
        disk.refuse_full(config)
    disk.refuse_full(config, present=space.training)


def test_plan_counts_what_a_matrix_keeps(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("action=plan", "method=grpo", "data.train_images=8", "data.test_images=1")
    plan.run(composed(*small, "evaluation.modalities=[ct]", "evaluation.tasks=[disease]"))
    weights = sum(file.stat().st_size for file in EMBEDDED.glob("*.safetensors"))
    parameters = sum(math.prod(shape) for shape in model_folder.shapes(EMBEDDED).values())
    assert 2 * parameters == pytest.approx(weights, rel=0.05)  # bfloat16; kept are 4 bytes each
    shown = " ".join(capsys.readouterr().out.split())
    answers = 2 * plan._ANSWER_BYTES
    kept, peak = ((n * parameters + answers) / 2**20 for n in (4, 36))
    assert f"disk {kept:.1f} MiB kept, {peak:.1f} MiB with the checkpoints" in shown


def test_plan_says_where_the_hub_does_not_tell_the_size(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    disk._hub_shapes.cache_clear()
    small = ("action=plan", "method=grpo", "data.train_images=8", "data.test_images=1")
    plan.run(composed(*small, "model=qwen2_vl_2b", "model.path=owner/absent"))
    shown = capsys.readouterr().out
    assert "disk without the models of 1 job: the hub is not reached" in shown
    assert "disk at least " in shown
    assert "unknown  unknown" in shown  # time and disk: not the size of the answers alone
