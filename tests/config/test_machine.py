"""A profile that this machine cannot run is refused, with what is there and what fits."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from medreason.config import CONF, Config, machine
from medreason.config.machine import Gpu

Compose = Callable[..., Config]
PROFILES = sorted(path.stem for path in (CONF / "hardware").glob("*.yaml"))
H200 = Gpu("0", "NVIDIA H200", 140.4, 9.0)
T4 = Gpu("0", "Tesla T4", 15.0, 7.5)


def test_profiles_of_both_papers_are_among_them() -> None:
    assert {"cpu", "cpu_x2", "gpu_x2", "a100_40gb", "fsdp_x2", "zero3_x2"} <= set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_cuts_a_step_of_rarl(composed: Compose, profile: str) -> None:
    config = composed("method=rarl", "model=qwen2_vl_2b", f"hardware={profile}")
    assert config.accumulation * config.hardware.processes * config.hardware.questions_at_once == 16


@pytest.mark.parametrize(
    ("profile", "available", "words"),
    [
        ("gpu_x2", [], r"devices=2 GPUs, this machine has 0; what fits: hardware=cpu, cpu_x2$"),
        (
            "gpu_x2",
            [H200],
            r"this machine has 1 \(NVIDIA H200\); what fits: hardware=cpu, cpu_x2, a100_40gb, gpu,",
        ),
        ("gpu", [T4], r"precision='bfloat16': GPU 0 \(Tesla T4\) has compute capability 7\.5"),
    ],
)
def test_profile_for_other_gpus_is_refused(
    composed: Compose,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    available: list[Gpu],
    words: str,
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: available)
    with pytest.raises(ValueError, match=words):
        machine.check(composed(f"hardware={profile}", "model=qwen2_vl_2b"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hardware.attention=flash_attention_2"], "flash-attn is not installed"),
        (["hardware.memory_limit_gb=200"], r"more than GPU 0 \(NVIDIA H200\) has: 150\.8 GB"),
        (["hardware.optimizer_states=8bit"], "this bitsandbytes has no such optimizer"),
        (
            ["hardware.parallel=zero3", "hardware.devices=2"],
            "DeepSpeed is not installed.*hardware.parallel=fsdp",
        ),
    ],
)
def test_package_that_is_not_installed_is_named_with_its_remedy(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: str
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [H200, replace(H200, index="1")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    overrides = ["hardware=gpu", "rollout=trl", "method.prompts_per_step=4", *overrides]
    with pytest.raises(ValueError, match=words):
        machine.check(composed(*overrides))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hardware.attention=flash_attention_2", "rollout=trl"], "runs on CUDA alone"),
        (["hardware.memory_limit_gb=40"], "caps a CUDA device"),
        (["hardware.parallel=fsdp"], r"there is one; set hardware\.devices=2"),
        (["hardware.offload=true"], "needs hardware.parallel=fsdp"),
        (["hardware=cpu_x2", "hardware.parallel=fsdp", "hardware.optimizer_states=8bit"], "shards"),
        (["model.quantization=nf4"], "needs an adapter"),
        (
            ["adapter=qlora", "hardware=cpu_x2", "hardware.parallel=fsdp"],
            "in 4 bits are not sharded",
        ),
        (["hardware.optimizer_states=int8"], "known: 'float32', '8bit'"),
    ],
)
def test_setting_that_no_machine_can_run_is_refused(
    composed: Compose, overrides: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        machine.check(composed(*overrides))


def test_gpus_are_read_from_the_driver_and_narrowed_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho '0, NVIDIA H200, 143771, 9.0'\necho '1, Tesla T4, 15360, 7.5'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu.name for gpu in machine.gpus()] == ["NVIDIA H200", "Tesla T4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.gpus() == [Gpu("1", "Tesla T4", 15.0, 7.5)]
    for visible, names in {
        "": [],
        "foo": [],
        "0,9,1": ["NVIDIA H200"],
        "-1,0": [],
        "GPU-1a2b,0": ["GPU-1a2b", "NVIDIA H200"],
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [gpu.name for gpu in machine.gpus()] == names


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An nvidia-smi that does what the script says."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    "script",
    [
        "echo '0, NVIDIA GB10, [N/A], [N/A]'",
        "echo '0, NVIDIA GB10, [Not Supported], [Not Supported]'; echo 'Unable to determine 1'",
        # The driver does not know the field.
        "case $* in *compute_cap*) exit 2;; esac; echo '0, NVIDIA GB10, [N/A]'",
    ],
)
def test_what_the_driver_does_not_say_of_a_gpu_refuses_nothing(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    smi(tmp_path, monkeypatch, script)
    assert machine.gpus() == [Gpu("0", "NVIDIA GB10", math.inf, math.inf)]
    config = composed("hardware=gpu", "model=qwen2_vl_2b", "hardware.memory_limit_gb=40")
    machine.check(config)


def test_driver_that_fails_is_quoted(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reason = "Failed to initialize NVML: Driver/library version mismatch"
    smi(tmp_path, monkeypatch, f"echo '{reason}'; exit 18")
    with pytest.raises(ValueError, match=rf"this machine has 0 \(nvidia-smi: {reason}\); what"):
        machine.check(composed("hardware=gpu", "model=qwen2_vl_2b"))


def test_limit_and_memory_of_a_gpu_are_compared_in_the_same_unit(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An A100 of 40 GiB has 42.9 GB."""
    monkeypatch.setattr(machine, "gpus", lambda: [Gpu("0", "A100", 40.0, 8.0)])
    check = ("hardware=gpu", "model=qwen2_vl_2b")
    machine.check(composed(*check, "hardware.memory_limit_gb=42"))
    with pytest.raises(ValueError, match=r"has: 42\.9 GB; choose less"):
        machine.check(composed(*check, "hardware.memory_limit_gb=43"))
