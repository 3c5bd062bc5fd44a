"""The benchmark measures what it says, at a size of seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from medreason.actions import bench
from medreason.config import Config


def test_bench_writes_metrics_of_both_engines_and_their_equality(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    config = composed(
        *("action=bench", "model=tiny", "model.weights=random", "method=grpo"),
        *("data.train_images=1", "data.test_images=1", "modality=ct"),
        *("hardware.per_device_prompts=1", "method.prompts_per_step=1"),
        *("bench.tokens=[2,4]", "bench.repeats=1", "bench.image_size=56"),
    )
    bench.run(config)
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
