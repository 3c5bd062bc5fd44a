"""rollout=vllm: what can be checked without vLLM, and a step where it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from trl import GRPOConfig

from medreason.config import Config, machine
from medreason.config.machine import Gpu
from medreason.runs.run_folder import RunFolder, run_folders
from medreason.training.arguments import trl_arguments

Compose = Callable[..., Config]
OVERRIDES = (
    "method=grpo",
    "model=qwen2_vl_2b",
    "hardware=gpu",
    "rollout=vllm",
    "hardware.precision=float32",
)


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_both_modes_reach_trl(composed: Compose, tmp_path: Path, mode: str) -> None:
    config = composed(*OVERRIDES, f"rollout.vllm.vllm_mode={mode}")
    object.__setattr__(config.hardware, "accelerator", "cpu")  # TRL's class refuses CUDA here
    built = trl_arguments(GRPOConfig, config, RunFolder(tmp_path), per_device_train_batch_size=4)
    assert (built.use_vllm, built.vllm_mode) == (True, mode)
    assert built.vllm_gpu_memory_utilization == 0.3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hardware=cpu", "rollout=vllm runs on CUDA alone"),
        ("rollout.vllm.vllm_mode=colocated", "did you mean 'colocate'"),
        ("rollout.vllm.vllm_gpu_memory_utilization=30", "needs a number between 0 and 1"),
        ("adapter=qlora", "takes whole weights"),
    ],
)
def test_setting_that_cannot_work_is_refused(composed: Compose, override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        composed(*OVERRIDES, override)


def test_field_that_trl_lacks_is_refused(composed: Compose) -> None:
    with pytest.raises(ValueError, match=r"rollout\.vllm\.vllm_gpu is not a field"):
        composed(*OVERRIDES, "+rollout.vllm.vllm_gpu=1")


def test_missing_package_is_named(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [Gpu("0", "NVIDIA H200", 140.4, 9.0)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"vLLM is not installed; pip install -e '\.\[vllm\]'"):
        machine.check(composed(*OVERRIDES))


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_step_with_vllm_gives_a_loss(tmp_path: Path) -> None:
    overrides = [
        "method=grpo",
        "hardware=gpu",
        "rollout=vllm",
        "modality=ct",
        "data.train_images=8",
    ]
    overrides += ["data.test_images=1", "method.trl.max_steps=1", "tracking=none"]
    subprocess.run(
        [sys.executable, "-m", "medreason", *overrides, f"outputs={tmp_path}"],
        check=True,
    )
    (run,) = run_folders(tmp_path / "runs")
    assert [row["step"] for row in run.logged()] == [1]
