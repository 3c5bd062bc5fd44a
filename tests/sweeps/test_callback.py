"""A sweep by the real entry point and each launcher: a job that fails leaves the others running.

All but one of the cells are refused before a worker starts, so hardly anything here imports torch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import commands
import psutil
import pytest
from mounts import mounted
from processes import wait_until_dead

TINY = ("data.train_images=1", "data.test_images=1", "tracking=none", "sweep=s", "method=sft")
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1"),
}


def medreason(folder: Path, *arguments: str, status: int) -> str:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = commands.medreason(*arguments, cwd=folder, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_cell_without_data_and_one_that_fails_are_told_apart_at_the_end(
    tmp_path: Path, launcher: str
) -> None:
    arguments = ("model.path=tiny,./nothing", "modality=ct", "task=disease", *LAUNCHERS[launcher])
    arguments += ("method.trl.max_steps=2",)  # for Hydra it gets a ++
    (tmp_path / "my").mkdir()
    output = medreason(tmp_path, "-m", "--config-dir", "my", *TINY, *arguments, status=1)
    command = (
        r"\S+ -m medreason --config-dir my .*model\.path=\./nothing .* method\.trl\.max_steps=2"
    )
    assert re.search(f"failed: {command}", output), output
    assert "sweep s: 2 jobs in " in output
    assert "1 without data, 1 failed" in output
    assert "1 training sample, fewer than method.prompts_per_step=8" in output
    assert "no such folder" in output
    assert "expected at least 1" not in output  # of a table of no runs
    outcomes = [
        json.loads(path.read_text())["state"]
        for path in sorted((tmp_path / "outputs/sweeps").glob("s-*/[0-9]*/outcome.json"))
    ]
    assert outcomes == ["empty", "failed"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=sft,gpro"], "gpro"),
        (["seed=range(0,0)"], "the sweep is empty"),
        (["hardware.devices=0,1"], "hardware.devices=0; it must be at least 1"),
    ],
)
def test_sweep_that_cannot_be_run_is_refused_with_the_reason(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    output = medreason(tmp_path, "-m", *TINY[:-1], "modality=ct", *arguments, status=1)
    assert words in output
    assert not list((tmp_path / "outputs").glob("runs/*"))


def test_plan_of_a_sweep_launches_nothing(tmp_path: Path) -> None:
    output = medreason(
        tmp_path,
        *("-m", "action=plan", "hydra/launcher=submitit_slurm", "method=base,sft"),
        *("modality=ct,mri", "data.train_images=16", "data.test_images=1", "sweep=s"),
        status=0,
    )
    assert "4 jobs: 1 to do" in output or "1 to evaluate" in output
    assert "1 same run" in output  # the start model, once for both modalities
    assert "time unknown" in output
    assert "sets 2 values" not in output  # by files of this package, beside its methods
    assert not (tmp_path / "outputs/sweeps").exists()
    assert not (tmp_path / "outputs/runs").exists()


def test_run_that_two_jobs_ask_for_is_done_once_and_named_shared(tmp_path: Path) -> None:
    output = medreason(
        tmp_path,
        *("-m", *TINY[:-1], "method=base", "modality=ct,mri", "hydra/launcher=joblib_x2"),
        *("evaluation.modalities=[ct]", "evaluation.tasks=[disease]", "evaluation.controls=[]"),
        *("evaluation.max_new_tokens=2", "hardware.threads=1"),
        status=0,
    )
    assert "2 jobs in " in output
    assert "1 done, 1 same evaluation as another job" in output
    assert re.search(r"\[(1/2\] base ct|2/2\] base mri)  (starting|evaluating)", output)
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    assert f" right, {folder.name}\n" in output


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        ("-t tmpfs -o ro none", "Read-only file system"),
        ("-t tmpfs -o size=4k none", "No space left on device"),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_output_folder_that_cannot_be_written_is_named_with_the_remedy(
    tmp_path: Path, sweep: tuple[str, ...], mount: str, words: str
) -> None:
    (tmp_path / "outputs").mkdir()
    typed = [sys.executable, "-m", "medreason", *sweep, *TINY[:-1], "method=base"]
    done = subprocess.run(
        mounted(f"{mount} outputs", typed),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1
    assert words in output
    assert "set outputs=... to a folder that can be written" in output
    assert "Traceback" not in output


def test_launcher_killed_before_a_job_began_leaves_no_process(tmp_path: Path) -> None:
    typed = [sys.executable, "-m", "medreason", "-m", *TINY, *LAUNCHERS["joblib"]]
    launcher = subprocess.Popen([*typed, "seed=0,1", "modality=ct"], cwd=tmp_path)
    while not (children := [p for p in psutil.Process(launcher.pid).children() if _is_job(p)]):
        assert launcher.poll() is None
        time.sleep(0.01)
    launcher.kill()
    launcher.wait()
    wait_until_dead(children)


def _is_job(process: psutil.Process) -> bool:
    return any("LokyProcess" in word for word in process.cmdline())


def test_tables_can_be_imported_while_an_interrupted_launcher_ends() -> None:
    """Hydra calls no end of a sweep there, so `atexit` does."""
    program = (
        "import atexit, importlib\n"
        "from medreason.sweeps.callback import _import_for_end\n"
        "names = 'medreason.phantom', 'medreason.report.table', 'medreason.report.arms'\n"
        "atexit.register(lambda: print(*map(importlib.import_module, names)))\n"
        "_import_for_end()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "can't register" not in done.stderr
    assert "medreason.report.arms" in done.stdout
