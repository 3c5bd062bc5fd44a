"""The estimated memory of a step against the measured one, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medreason.runs.files import read_json


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=sft"],
        pytest.param(["method=grpo"], marks=pytest.mark.slow),
        pytest.param(["method=rarl"], marks=pytest.mark.slow),
        pytest.param(["method=rarl", "adapter=qlora"], marks=pytest.mark.slow),
        pytest.param(
            ["method=sft", "hardware.gradient_checkpointing=true"], marks=pytest.mark.slow
        ),
    ],
    ids=" ".join,
)
def test_estimate_is_within_15_percent_of_the_measured_peak(
    tmp_path: Path, overrides: list[str]
) -> None:
    arguments = [
        "action=bench",
        "bench.what=memory",
        "modality=ct",
        "hardware.threads=1",
        *overrides,
    ]
    arguments += ["data.train_images=8", "data.test_images=1", f"outputs={tmp_path}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    subprocess.run([sys.executable, "-m", "medreason", *arguments], check=True, env=environment)
    (path,) = (tmp_path / "benchmarks" / "tiny").glob("memory-*.json")
    results = read_json(path)
    assert results["ratio"] == pytest.approx(1, abs=0.15), results
