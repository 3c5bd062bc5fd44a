"""One science, any cut: two processes give the losses of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medreason.runs import ledger

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def test_sft_loss_curve_of_two_processes_equals_that_of_one(tmp_path: Path) -> None:
    curves = []
    for hardware in ("cpu", "cpu_x2"):
        subprocess.run(
            [
                *(sys.executable, "-m", "medreason", "method=sft", f"hardware={hardware}"),
                *("modality=ct", "data.train_images=8", "data.test_images=1"),
                *("method.prompts_per_step=4", "method.trl.max_steps=4"),
                *("method.trl.learning_rate=1e-3", "evaluation.modalities=[ct]"),
                *("evaluation.controls=[]", "evaluation.max_new_tokens=4", "tracking=none"),
                f"outputs={tmp_path / hardware}",
            ],
            check=True,
            capture_output=True,
        )
        (run,) = ledger.folders(tmp_path / hardware / "runs")
        assert run.state().state == "done"
        curves.append([row["loss"] for row in run.logged()])
    assert len(curves[0]) == 4
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_grpo_loss_of_two_processes_equals_that_of_one_for_given_completions(
    tmp_path: Path,
) -> None:
    script = str(Path(__file__).with_name("grpo_given_completions.py"))
    printed = [
        subprocess.run(
            [*command, script, str(tmp_path), per_device_prompts, rollout],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for command, per_device_prompts, rollout in (
            ([sys.executable], "4", "hf"),
            ([sys.executable], "4", "grouped"),
            (TORCHRUN, "2", "grouped"),
        )
    ]
    curves = [json.loads(text.splitlines()[-1]) for text in printed]
    assert len(curves[0]) == 3
    assert all(grad_norm > 0 for _, grad_norm, _ in curves[0])
    for plain, shared, together in zip(*curves, strict=True):
        assert shared == pytest.approx(plain, rel=1e-3, abs=1e-6)
        assert together == pytest.approx(shared, rel=1e-3, abs=1e-6)
