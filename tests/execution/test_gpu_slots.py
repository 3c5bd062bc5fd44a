"""GPU slots: a job gets devices that no other job holds. Devices are only names here."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from medreason.actions import bench, judge, predict
from medreason.config import Config, Hardware, machine
from medreason.execution import gpu_slots, worker_process

TAKE = """
import sys, time, tempfile
tempfile.tempdir = sys.argv[1]
from medreason.config import Hardware
from medreason.execution import gpu_slots, worker_process
hardware = Hardware("gpu", "cuda", int(sys.argv[2]), 1, 1, "bfloat16")
with gpu_slots.hold(hardware) as slots:
    print(",".join(slots.devices), time.monotonic(), flush=True)
    time.sleep(float(sys.argv[3]))
    print(time.monotonic(), flush=True)
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], Hardware]:
    """Three devices, and hardware that takes some of them."""
    monkeypatch.setattr(machine, "_installed_gpus", list)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda devices: Hardware("gpu", "cuda", devices, 1, 1, "bfloat16")


def test_jobs_get_different_devices(gpu: Callable[[int], Hardware]) -> None:
    with gpu_slots.hold(gpu(1)) as one, gpu_slots.hold(gpu(2)) as two:
        assert one.devices == ("0",)
        assert two.devices == ("1", "2")
        assert len(two.descriptors) == 2
    with gpu_slots.hold(gpu(3)) as all_:
        assert all_.devices == ("0", "1", "2")


def test_job_waits_for_all_its_devices_and_holds_none_meanwhile(
    gpu: Callable[[int], Hardware], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gpu_slots.hold(gpu(2))
    first.__enter__()
    waits: list[str] = []

    def waiting() -> None:
        waits.append("waits")
        with gpu_slots.hold(gpu(1)) as small:  # the third device is free for others
            assert small.devices == ("2",)
        first.__exit__(None, None, None)

    monkeypatch.setattr(gpu_slots, "time", SimpleNamespace(sleep=lambda _: None))
    with gpu_slots.hold(gpu(2), waiting) as slots:
        assert slots.devices == ("0", "1")
    assert waits == ["waits"]


def test_processes_at_the_same_moment_share_no_device(
    gpu: Callable[[int], Hardware], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", TAKE, str(tmp_path), "1", "0.3"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    spans: dict[str, list[tuple[float, float]]] = {}
    for process in running:
        device, began, ended = process.communicate()[0].split()
        spans.setdefault(device, []).append((float(began), float(ended)))
    assert sum(map(len, spans.values())) == 4
    for taken in map(sorted, spans.values()):
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(taken))


def test_more_devices_than_there_are_is_refused(gpu: Callable[[int], Hardware]) -> None:
    with (
        pytest.raises(ValueError, match=r"hardware\.devices=4 GPUs, this machine has 3"),
        gpu_slots.hold(gpu(4)),
    ):
        pass


def test_cpu_takes_none(composed: Callable[..., Config]) -> None:
    with gpu_slots.hold(composed().hardware) as slots:
        assert slots.devices == ()


def test_slurm_jobs_whose_devices_all_count_from_zero_do_not_wait_for_each_other(
    gpu: Callable[[int], Hardware], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_installed_gpus", list)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with gpu_slots.hold(gpu(1)):
        monkeypatch.setenv("SLURM_JOB_ID", "18")
        with gpu_slots.hold(gpu(1)) as slots:
            assert slots.devices == ("0",)


@pytest.mark.parametrize("devices", [1, 2])
def test_action_in_this_process_holds_one_device_and_hides_the_others(
    gpu: Callable[[int], Hardware], monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    monkeypatch.setattr(gpu_slots, "_HELD_ALONE", [])
    for name in ("CUDA_DEVICE_ORDER", "PYTORCH_CUDA_ALLOC_CONF"):  # removed again behind the test
        monkeypatch.setenv(name, "")
    with gpu_slots.hold(gpu(1)):  # another job
        alone = gpu_slots.hold_one(gpu(devices))
    assert alone.processes == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert gpu_slots.hold_one(gpu(devices)) == alone  # the next job of a sweep has the same
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with gpu_slots.hold(gpu(2)) as others:
        assert others.devices == ("0", "2")
    gpu_slots._HELD_ALONE.pop().__exit__(None, None, None)


@pytest.mark.parametrize(
    ("run", "overrides"),
    [
        (bench.run, ("action=bench", "method=grpo")),
        (predict.run, ("action=predict", "predict.image=a.png", "predict.question=Which?")),
        (judge.run, ("action=judge", "judge=local", "judge.model=tiny")),
    ],
    ids=["bench", "predict", "judge"],
)
def test_actions_that_compute_in_their_own_process_hold_a_device_first(
    composed: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Config], None],
    overrides: tuple[str, ...],
) -> None:
    def refuse(hardware: Hardware) -> None:
        raise InterruptedError(hardware.name)

    monkeypatch.setattr(gpu_slots, "hold_one", refuse)
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("0", "NVIDIA H200", 140.4, 9.0)])
    monkeypatch.setattr(judge, "_evaluations", lambda _: [])
    with pytest.raises(InterruptedError, match="gpu"):
        run(composed(*overrides, "hardware=gpu"))


def test_action_on_a_cpu_holds_no_device(
    composed: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_slots, "_HELD_ALONE", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert gpu_slots.hold_one(composed("hardware=cpu_x2").hardware).processes == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert not gpu_slots._HELD_ALONE


def test_worker_counts_devices_as_nvidia_smi_does_and_lets_memory_blocks_grow(
    composed: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    slots = gpu_slots.GpuSlots(("1", "0"))
    environment = worker_process._environment(composed(), slots)
    assert environment["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    with_vllm = composed("method=grpo", "hardware=gpu", "rollout=vllm")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in worker_process._environment(with_vllm, slots)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in worker_process._environment(composed(), slots)
