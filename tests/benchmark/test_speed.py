"""The benchmark measures what it says, at a size of seconds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medreason import data
from medreason.actions import bench
from medreason.benchmark import speed
from medreason.config import Config
from medreason.models.patch_embedding import PatchConv3d

SMALL = (
    *("action=bench", "model=tiny", "model.weights=random", "method=grpo"),
    *("data.train_images=1", "data.test_images=1", "modality=ct"),
    *("hardware.per_device_prompts=1", "method.prompts_per_step=1"),
    *("bench.repeats=1", "bench.image_size=56"),
)


def test_bench_writes_metrics_of_both_engines_and_their_equality(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    bench.run(composed(*SMALL, "bench.tokens=[2,4]"))
    results = json.loads((tmp_path / "outputs/benchmarks/tiny/bench.json").read_text())
    assert results["equality"]["logps_max_abs"] < 1e-4
    assert results["equality"]["grad_rel"] < 1e-4
    assert set(results["stages"]) == {
        f"{stage}_{tokens}"
        for stage in ("prepare", "rollout", "logps", "update", "step", "evaluation")
        for tokens in (2, 4)
    }
    for row in results["stages"].values():
        assert row["speedup"] == row["baseline"] / row["grouped"] > 0
    assert results["equality"]["answers"] is True
    assert results["throughput"]["evaluation_4"]["grouped"] > 0
    assert results["peak_bytes"]["baseline"] > 0
    assert {"update_4", "rollout_4", "matrix_flops_per_second_4"} <= set(results["roofline"])


def test_the_baseline_embeds_patches_as_transformers_does(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    config = composed(*SMALL, "method.trl.beta=0", "method.trl.num_generations=2")
    samples = data.trained_on(config, data.load(config.data, tmp_path / "cache"))
    kinds = {}
    for engine in speed.ROLLOUTS:
        model = speed._model(speed._trainer(config, samples, engine, tmp_path))
        kinds[engine] = [type(m) for m in model.modules() if isinstance(m, nn.Conv3d)]
    assert kinds == {"baseline": [nn.Conv3d], "grouped": [PatchConv3d]}


def test_several_devices_are_refused_with_overrides_that_leave_one(
    composed: Callable[..., Config],
) -> None:
    profile = ("action=bench", "method=grpo", "hardware=fsdp_x2", "hardware.accelerator=cpu")
    with pytest.raises(ValueError, match=r"hardware=fsdp_x2 takes 2; set (.*)") as refusal:
        bench.run(composed(*profile))
    remedy = str(refusal.value).partition("; set ")[2].split()
    assert composed(*profile, *remedy).hardware.processes == 1


@pytest.mark.parametrize("engine", ["baseline", "grouped"])
def test_engines_are_timed_in_the_precision_of_the_profile(
    composed: Callable[..., Config], tmp_path: Path, engine: str
) -> None:
    config = composed(
        *SMALL,
        *("hardware.precision=bfloat16", "method.trl.beta=0", "method.trl.num_generations=2"),
        *("evaluation.controls=[]", "evaluation.max_new_tokens=2"),
    )
    samples = data.trained_on(config, data.load(config.data, tmp_path / "cache"))
    trainer = speed._trainer(config, samples, engine, tmp_path)
    rows = next(iter(trainer.get_train_dataloader()))
    evaluated = speed._evaluation_rows(config, samples[:1], tmp_path)
    computed: set[torch.dtype] = set()

    def record(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            computed.add(output.dtype)

    hook = nn.modules.module.register_module_forward_hook(record)
    try:
        speed._time_step(trainer, rows, 2)
        speed._time_evaluation(config, trainer, evaluated, 2)
    finally:
        hook.remove()
    assert computed == {torch.bfloat16}


def test_an_engine_in_another_precision_than_the_profiles_ends_the_benchmark(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    config = composed(
        *SMALL,
        *("hardware.precision=bfloat16", "method.trl.beta=0", "method.trl.num_generations=2"),
        *("evaluation.controls=[]", "evaluation.max_new_tokens=2"),
    )
    samples = data.trained_on(config, data.load(config.data, tmp_path / "cache"))
    trainer = speed._trainer(config, samples, "baseline", tmp_path)
    rows = next(iter(trainer.get_train_dataloader()))
    evaluated = speed._evaluation_rows(config, samples[:1], tmp_path)
    trainer.accelerator.autocast = contextlib.nullcontext  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AssertionError, match=r"computed in .*torch\.float32"):
        speed._measure_round(
            *(config, {"baseline": trainer}, rows, evaluated, 2, speed._Measurements()),
            warm_up=True,
        )
