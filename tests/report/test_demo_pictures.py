"""The script of the READMEs' pictures finds what it looks for, in MLflow as it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from run_folders import draw_samples, reply, write_run

from medreason import tracking
from medreason.actions import report
from medreason.config import Config

SCRIPT = Path(__file__).parents[2] / "experiments/demo/pictures.py"
pytest.importorskip("selenium", reason="needs selenium (group dev)")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs chromium and its driver")
def test_pictures_are_taken_from_what_the_demo_leaves(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    drawn = draw_samples(tmp_path / "images")
    samples = [replace(sample, modality="xray") for sample in drawn if sample.modality == "mri"]
    demo = ("sweep=demo", "modality=xray")

    def config_of(method: str) -> Config:
        return replace(composed(f"method={method}", *demo), choices={"method": method})

    base = write_run(config_of("base"), samples, lambda i, s: reply("A"))
    grpo = write_run(
        config_of("grpo"),
        samples,
        lambda i, s: reply(s.answer),
        logs=[{"step": step, "loss": 1.0, "reward": 0.5} for step in (1, 2)],
        first_update={"step": 1, "trained": 9, "moved": 9},
    )
    config = composed("action=report", *demo)
    assert tracking.catch_up(config.tracking, config.folder, "demo", [base, grpo])
    report.run(config)
    command = [sys.executable, str(SCRIPT), str(config.folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("report.png", "mlflow-runs.png", "mlflow-search.png", "mlflow-curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50  # not a blank page
