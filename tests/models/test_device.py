"""A process computes on the device its profile names, within its memory, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.cuda._utils import _get_device_index

from medreason.actions import judge, predict
from medreason.benchmark import drafts, memory, speed
from medreason.config import Config, Hardware, machine
from medreason.config.judge import Judge
from medreason.execution import gpu_slots, worker
from medreason.judging import local
from medreason.models import device

Compose = Callable[..., Config]
OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update it"
GPU = Hardware("gpu", "cuda", 1, "1", 1, "bfloat16")


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi lists a GPU, torch cannot use it."""

    def refuse() -> None:
        raise RuntimeError(f"{OLD}\nAlternatively, ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("0", "NVIDIA H200", 140.4, 9.0)])


def join_alone(config: Config, folder: Path) -> None:
    device.join(config.hardware)


def train(config: Config, folder: Path) -> None:
    worker.processes(config)


def measure_memory(config: Config, folder: Path) -> None:
    memory.compare(config, [], folder)


def measure_speed(config: Config, folder: Path) -> None:
    speed.measure(config, [], [], folder)


def measure_drafts(config: Config, folder: Path) -> None:
    drafts.measure(config, [], [])


def answer_question(config: Config, folder: Path) -> None:
    predict._answers(config, [], [])


def load_judge(config: Config, folder: Path) -> None:
    judge._take_device(config.hardware)


@pytest.mark.parametrize(
    "start",
    [
        *(join_alone, train, measure_memory, measure_speed, measure_drafts),
        *(answer_question, load_judge),
    ],
)
@pytest.mark.usefixtures("old_driver")
def test_gpu_that_torch_cannot_use_is_refused_wherever_a_process_starts(
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: Callable[[Config, Path], None],
) -> None:
    monkeypatch.setattr(gpu_slots, "hold_one", lambda hardware: hardware)
    config = composed("hardware=gpu", "model=qwen2_vl_2b", "method=grpo")
    words = rf"finds no GPU: {OLD[:40]}.*uv pip install --reinstall --torch-backend=auto torch"
    with pytest.raises(ValueError, match=words):
        start(config, tmp_path)


def test_judge_is_loaded_on_the_device_of_its_process(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    model = SimpleNamespace(to=lambda place: moved.append(place) or model, eval=lambda: model)
    monkeypatch.setattr(local, "load_whole", lambda *_, **__: model)
    monkeypatch.setattr(local, "PartialState", lambda: SimpleNamespace(device="the device"))
    local.judge_of(Judge(name="local", kind="local", model="tiny"))
    assert moved == ["the device"]


@pytest.fixture
def gpu_of_80_gb(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """The fractions that are set, each with its device, checked as torch checks them."""
    fractions: list[tuple[float, int]] = []

    def cap(fraction: float, place: torch.device | int) -> None:
        assert 0 <= fraction <= 1
        fractions.append((fraction, _get_device_index(place)))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(total_memory=int(80e9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", cap)
    # accelerate's device of a single process is `cuda`, without an index.
    state = SimpleNamespace(device=torch.device("cuda"), num_processes=1)
    monkeypatch.setattr(device, "PartialState", lambda **_: state)
    return fractions


@pytest.mark.parametrize("start", [join_alone, train])
def test_memory_limit_caps_a_single_gpu(
    composed: Compose,
    tmp_path: Path,
    gpu_of_80_gb: list[tuple[float, int]],
    start: Callable[[Config, Path], None],
) -> None:
    overrides = ("hardware=gpu", "model=qwen2_vl_2b", "hardware.memory_limit_gb=40")
    start(composed(*overrides), tmp_path)
    assert gpu_of_80_gb == [(0.5, 0)]


@pytest.mark.parametrize("start", [measure_memory, measure_speed, measure_drafts])
def test_benchmarks_are_capped_before_anything_is_loaded(
    composed: Compose,
    tmp_path: Path,
    gpu_of_80_gb: list[tuple[float, int]],
    monkeypatch: pytest.MonkeyPatch,
    start: Callable[[Config, Path], None],
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(memory, "build", stop)
    monkeypatch.setattr(speed, "_trainer", stop)
    monkeypatch.setattr(drafts, "load_model", stop)
    overrides = ("hardware=gpu", "model=qwen2_vl_2b", "method=grpo", "hardware.memory_limit_gb=16")
    with pytest.raises(InterruptedError):
        start(composed(*overrides), tmp_path)
    assert gpu_of_80_gb == [(0.2, 0)]


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_memory_limit_beyond_the_gpu_is_refused() -> None:
    beyond = Hardware("gpu", "cuda", 1, "1", 1, "bfloat16", memory_limit_gb=81)
    with pytest.raises(ValueError, match=r"memory_limit_gb=81 is more than the GPU has: 80\.0 GB"):
        device.join(beyond)


@pytest.mark.parametrize(
    ("profile", "backend"),
    [
        (["hardware=gpu_x2"], "nccl"),
        (["hardware=fsdp_x2"], "cuda:nccl,cpu:gloo"),
        (["hardware=fsdp_x2", "hardware.offload=true"], "cuda:nccl,cpu:gloo"),
        (["hardware=cpu_x2"], "gloo"),
    ],
)
def test_process_group_has_the_backend_and_the_patience_of_the_profile(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, profile: list[str], backend: str
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "PartialState", lambda **kwargs: made.append(kwargs))
    config = composed(*profile, "hardware.hang_timeout_minutes=90")
    device.join(config.hardware)
    cpu = config.hardware.accelerator == "cpu"
    assert made == [{"cpu": cpu, "backend": backend, "timeout": timedelta(minutes=91)}]
