"""The benchmark measures what it says, at a size of seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from medreason.actions import bench
from medreason.config import Config


def test_bench_writes_figures_of_both_engines_and_their_equality(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    config = composed(
        *("action=bench", "model=tiny", "model.weights=random", "method=grpo"),
        *("data.train_images=1", "data.test_images=1", "modality=ct"),
        *("hardware.per_device_prompts=1", "method.prompts_per_step=1"),
        *("bench.tokens=[2,4]", "bench.repeats=1", "bench.image_size=56"),
    )
    bench.run(config)
    found = json.loads((tmp_path / "outputs/benchmarks/tiny/bench.json").read_text())
    assert found["equal"]["logps_max_abs"] < 1e-4
    assert found["equal"]["grad_rel"] < 1e-4
    assert set(found["stages"]) == {
        f"{stage}_{tokens}"
        for stage in ("prepare", "generation", "logps", "update", "step", "evaluation")
        for tokens in (2, 4)
    }
    for row in found["stages"].values():
        assert row["ratio"] == row["trl"] / row["grouped"] > 0
    assert found["equal"]["answers"] is True
    assert found["tokens_per_second"]["evaluation_4"]["grouped"] > 0
    assert found["peak_bytes"]["trl"] > 0
    assert {"update_4", "generation_4", "matrix_flops_per_second_4"} <= set(found["roofline"])
