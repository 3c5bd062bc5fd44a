"""Memory limits: what fits, what does not, and which overrides would make it fit."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from medreason.config import CONF, Config, options
from medreason.models.load import meta_model
from medreason.samples import Sample
from medreason.training import memory_estimate, memory_limits
from medreason.training.memory_estimate import DeviceBatch
from medreason.training.memory_limits import device_limit_bytes, longest_samples, memory_lines

Compose = Callable[..., Config]
ONE_AT_ONCE = ("action=plan", "model=random_2b", "hardware.per_device_prompts=1")
GRPO = ("method=grpo", *ONE_AT_ONCE)
RARL = ("method=rarl", *ONE_AT_ONCE)
ONE = DeviceBatch(1, 4, 300, 256, 784, shared=True)
GB = 1e9


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """A short question about a large image and a long one about a small image."""
    samples = []
    for name, side, question in (("large", 400, "Which?"), ("small", 56, "Which organ? " * 40)):
        Image.new("L", (side, side)).save(tmp_path / f"{name}.png")
        fields = (name, tmp_path / f"{name}.png", question, ("CT", "MRI"), "A", None)
        samples.append(Sample(*fields, "ct", "disease", "drawn", None, "train"))
    return samples


def test_full_grpo_of_the_2b_fits_into_40_gb_with_8_bit_states_alone(composed: Compose) -> None:
    with_8_bit = memory_estimate.estimate(composed(*GRPO, "hardware=a100_40gb"), ONE)
    plain = memory_estimate.estimate(composed(*GRPO, "hardware=gpu"), ONE)
    assert with_8_bit.peak < 40 * GB < plain.peak
    assert plain.states == pytest.approx(8 * 2_208_985_600, rel=1e-3)
    assert plain.reference < 0.6 * plain.states / 2  # most of its weights are in bfloat16


@pytest.mark.parametrize(("adapter", "gb"), [("lora_r8", 16), ("qlora", 10)])
def test_adapters_of_the_2b_fit_into_small_cards(
    composed: Compose, adapter: str, gb: float
) -> None:
    config = composed(*RARL, "hardware=gpu", f"adapter={adapter}")
    assert memory_estimate.estimate(config, ONE).peak < gb * GB


def test_gradients_of_one_micro_batch_come_as_activations_go(composed: Compose) -> None:
    several, one = (
        memory_estimate.estimate(
            composed(*GRPO, "hardware=gpu", f"method.prompts_per_step={prompts}"), ONE
        )
        for prompts in (4, 1)
    )
    assert one.gradients == several.gradients - one.activations > 0


def test_fsdp_halves_weights_gradients_and_states(composed: Compose) -> None:
    one, two = (
        # Under FSDP layers are transformers', which save more.
        memory_estimate.estimate(
            composed(*GRPO, f"hardware={profile}", "hardware.fused_layers=false"), ONE
        )
        for profile in ("gpu", "fsdp_x2")
    )
    assert (two.weights, two.states) == (one.weights // 2, one.states // 2)
    assert two.gradients == one.gradients // 2
    assert two.activations == one.activations


def test_graphs_are_kept_where_they_fit_beside_the_update(composed: Compose) -> None:
    config = composed(*GRPO, "hardware=gpu", "hardware.gradient_checkpointing=true")
    plain, kept = (memory_estimate.estimate(config, ONE, keeps_graphs=on) for on in (False, True))
    # Copies of the language model's weights in bfloat16, the KV cache beside them.
    assert plain.kept == 0
    assert kept.kept == pytest.approx(2 * (1_310_340_096 + 151_936 * 1536) + plain.cache, rel=0.01)
    assert kept.peak > plain.peak
    model = meta_model(config.model)
    cast = 2 * sum(p.numel() for p in model.parameters())  # by autocast
    drawing = functools.partial(memory_estimate.drawing_bytes, config, model, ONE)
    assert drawing() == (plain.cache + cast, 0)
    assert drawing(keeps_graphs=True) == (plain.cache + cast, kept.kept)
    for room, fits in (("1000", True), ("60", False)):
        device = composed(*GRPO, "hardware=gpu", f"hardware.device_gb={room}")
        cut, _ = memory_limits.with_questions_at_once(device, [])
        assert memory_limits.keeps_graphs(cut, []) == fits


def test_plan_says_what_would_make_it_fit(composed: Compose, samples: list[Sample]) -> None:
    again = "hardware.gradient_checkpointing=true"
    config = composed(*GRPO, "hardware=gpu", again, "hardware.device_gb=40")
    first, second = memory_lines(config, samples)
    assert first.startswith("memory of grpo, random_2b: about")
    adapted = composed(*GRPO, "hardware=gpu", "adapter=lora_r8", "hardware.device_gb=40")
    adapted.choices["adapter"] = "lora_r8"  # of Hydra's runtime
    named = "memory of grpo, random_2b, adapter=lora_r8: about"
    assert memory_lines(adapted, samples)[0].startswith(named)
    assert second.startswith("does not fit into 37.3 GiB (hardware=gpu); with hardware.optimizer")
    small = composed(*GRPO, "hardware=gpu", again, "hardware.device_gb=2")
    assert "choose a smaller model or more devices" in memory_lines(small, samples)[1]
    bare = composed(*GRPO, "hardware=gpu", again, "hardware.device_gb=2", "adapter=lora_r8")
    misfit = "does not fit into 1.9 GiB (hardware=gpu); choose a smaller model or more devices"
    assert memory_lines(bare, samples)[1] == misfit  # all remedies are set


def test_remedies_are_taken_by_the_command_line(composed: Compose) -> None:
    cut = ("hardware.per_device_prompts=2", "hardware.devices=2", "method.prompts_per_step=4")
    plain = (
        "action=plan",
        "model=random_2b",
        "hardware=gpu",
        "hardware.gradient_checkpointing=false",
    )
    config = composed("method=grpo", *plain, *cut)
    overrides = [remedy.override for remedy in memory_limits._remedies(config)]
    assert len(overrides) == 5
    for override in overrides:
        options.check(override.split(), [CONF])


def test_plan_leaves_vllm_its_share_of_the_device(composed: Compose, samples: list[Sample]) -> None:
    vllm = (*GRPO, "hardware=gpu", "hardware.device_gb=100", "rollout=vllm")
    again = "hardware.gradient_checkpointing=true"
    share = "rollout.vllm.vllm_gpu_memory_utilization"
    assert device_limit_bytes(composed(*vllm, f"{share}=0.4")) == 60 * GB
    assert device_limit_bytes(composed(*vllm, "rollout.vllm.vllm_mode=server")) == 100 * GB
    assert device_limit_bytes(composed(*vllm, "rollout=grouped")) == 100 * GB
    small = composed(*vllm, f"{share}=0.4", "hardware.memory_limit_gb=70")
    assert device_limit_bytes(small) == 30 * GB
    first, second = memory_lines(composed(*vllm, again, f"{share}=0.8"), samples)
    assert "cache" not in first
    assert "(hardware=gpu, beside vLLM's 80%)" in second


def test_model_whose_shapes_are_not_here_is_unknown(
    composed: Compose, samples: list[Sample]
) -> None:
    path = "model.path=Qwen/Qwen2-VL-72B-Instruct"
    config = composed("method=grpo", "model=qwen2_vl_7b", path, "hardware=gpu")
    (line,) = memory_lines(config, samples)
    assert line.startswith("memory of qwen2_vl_7b unknown: ")


def test_longest_counts_text_and_image(composed: Compose, samples: list[Sample]) -> None:
    config = composed("hardware.per_device_prompts=1")
    assert longest_samples(config, samples) == [0]  # 204 visual tokens above 150 of text
    narrow = composed("hardware.per_device_prompts=1", "model.max_pixels=3136")
    assert longest_samples(narrow, samples) == [1]


def test_size_of_a_dicom_image_counts(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    """The trial step of the profiles with a GPU ended at DICOM."""
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom (extra dicom)")
    data, path = pydicom.Dataset(), tmp_path / "IM0001"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Rows, data.Columns = 900, 700
    data.save_as(path, enforce_file_format=True)
    config = composed("method=grpo", "hardware.per_device_prompts=1")
    assert longest_samples(config, [*samples, replace(samples[0], image=path)]) == [2]


def test_memory_of_a_cpu_is_shared_by_its_processes(composed: Compose) -> None:
    one, two = (device_limit_bytes(composed(f"hardware={name}")) for name in ("cpu", "cpu_x2"))
    assert one
    assert two == one // 2


def test_a_gpu_of_unknown_memory_sets_no_limit(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1a2b")
    assert device_limit_bytes(composed("hardware=gpu")) is None


@pytest.mark.parametrize("cache", [1, 9])
def test_parts_of_an_estimate_add_up_to_its_peak(cache: int) -> None:
    parts = dict.fromkeys((f.name for f in fields(memory_estimate.MemoryEstimate)), 0)
    parts |= {"weights": 4, "activations": 3, "logits": 2, "recomputed": 1, "cache": cache}
    estimate = memory_estimate.MemoryEstimate(**{k: v * 2**30 for k, v in parts.items()})
    total, shown = re.findall(r"about (.+?) GiB.*\((.+)\)", estimate.summary())[0]
    sizes = dict(part.split(" ") for part in shown.split(", "))
    assert float(total) == sum(map(float, sizes.values())) == max(4 + 3 + 2, 4 + cache)
    assert ("cache" in sizes) == (cache == 9) == ("completions are sampled" in estimate.summary())
