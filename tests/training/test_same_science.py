"""One science, any cut: processes, accumulation, FSDP and resumes change no loss, no weight."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import science
import torch
from safetensors.torch import load_file

from medreason.runs.run_folder import RunFolder, run_folders

TWO = ("hardware=cpu_x2", "hardware.per_device_prompts=1")
FSDP, ZERO2, ZERO3 = ((*TWO, f"hardware.parallel={kind}") for kind in ("fsdp", "zero2", "zero3"))
DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
METHODS = {  # two epochs of two steps, each in an order of its own
    "sft": ("method=sft", "task=disease", "method.trl.max_steps=4"),
    "grpo": (
        "task=disease",
        # Replies of this form end within 12 tokens, so some of them are right and some are not.
        *("method=grpo", "prompt=no_think", "reward=no_think", "method.trl.max_steps=4"),
        *("method.trl.num_generations=4", "method.trl.max_completion_length=12"),
        "method.trl.learning_rate=1e-4",
    ),
    # Dropout draws a mask for each row of a batch: with it, cuts are equal in distribution alone.
    "rarl": (
        "task=disease",
        *("method=rarl", "method.trl.max_steps=4", "method.trl.num_generations=4"),
        *("method.trl.max_completion_length=12", "adapter.lora_dropout=0"),
    ),
}
SLOWER = [pytest.param(method, marks=pytest.mark.slow) for method in ("grpo", "rarl")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("science")


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def train(folder: Path, method: str) -> Callable[..., RunFolder]:
    """`train(name, *overrides, dies_at=step)` of the method."""
    return lambda name, *overrides, dies_at=None: science.trained(
        folder, f"{method}-{name}", *METHODS[method], *overrides, dies_at=dies_at
    )


@pytest.fixture(scope="module")
def whole(train: Callable[..., RunFolder]) -> RunFolder:
    """One process, four micro-batches a step, never interrupted."""
    run = train("one")
    assert any(row["grad_norm"] > 0 for row in run.logged())  # else all cuts were equal
    return run


def same(found: RunFolder, expected: RunFolder) -> None:
    curves = [[row["loss"] for row in run.logged()] for run in (found, expected)]
    assert len(curves[1]) == 4
    assert curves[0] == pytest.approx(curves[1], rel=1e-3, abs=2e-6)
    there, here = weights(expected), weights(found)
    assert here.keys() == there.keys()
    for name, weight in there.items():
        torch.testing.assert_close(here[name], weight, rtol=1e-3, atol=2e-4, msg=name)


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    (file,) = run.model.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(
    "cut",
    [TWO, pytest.param(("hardware.per_device_prompts=4",), marks=pytest.mark.slow)],
    ids=["two processes", "one micro-batch"],
)
def test_cut_changes_nothing(
    train: Callable[..., RunFolder], whole: RunFolder, cut: tuple[str, ...]
) -> None:
    same(train("-".join(cut), *cut), whole)


@pytest.mark.parametrize("method", ["sft", *SLOWER], indirect=True)
@pytest.mark.parametrize(
    "parallel", ["fsdp", *(pytest.param(kind, marks=DEEPSPEED) for kind in ("zero2", "zero3"))]
)
def test_parts_of_the_command_line_change_nothing(
    whole: RunFolder, method: str, parallel: str, tmp_path: Path
) -> None:
    given = [*science.SMALL, *METHODS[method], *TWO, f"hardware.parallel={parallel}"]
    given += ["evaluation.modalities=[ct]", "tracking=none"]
    given += ["evaluation.controls=[]", "evaluation.max_new_tokens=4", f"outputs={tmp_path}"]
    subprocess.run([sys.executable, "-m", "medreason", *given], check=True, capture_output=True)
    (run,) = run_folders(tmp_path / "runs")
    assert run.state().state == "done"
    same(run, whole)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (FSDP, ()),
        pytest.param(TWO, (), marks=pytest.mark.slow),
        pytest.param((), TWO, marks=pytest.mark.slow),
        pytest.param(TWO, FSDP, marks=pytest.mark.slow),
        pytest.param(ZERO2, ZERO2, marks=DEEPSPEED),
        pytest.param(ZERO3, ZERO3, marks=DEEPSPEED),
    ],
    ids=["fsdp to one", "two to one", "one to two", "two to fsdp", "zero2", "zero3"],
)
def test_resume_on_another_cut_changes_nothing(
    train: Callable[..., RunFolder],
    whole: RunFolder,
    before: tuple[str, ...],
    behind: tuple[str, ...],
) -> None:
    name = f"{'-'.join(before)} to {'-'.join(behind)}"
    train(name, *before, "runs.checkpoint_steps=2", dies_at=3)
    same(train(name, *behind), whole)


def test_killed_and_resumed_training_ends_in_the_same_bits(
    train: Callable[..., RunFolder], whole: RunFolder
) -> None:
    train("killed", "runs.checkpoint_steps=1", dies_at=3)
    # The trial step before training leaves no trace either.
    resumed = train("killed", "runs.checkpoint_steps=1", "hardware.memory_check=true")
    assert "trial step of the longest samples: peak" in (resumed.path / "said").read_text()
    found, expected = weights(resumed), weights(whole)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert [row["loss"] for row in resumed.logged()] == [row["loss"] for row in whole.logged()]


def test_what_does_not_fit_fails_before_the_first_step(folder: Path) -> None:
    name, given = (
        "too large",
        ("method=sft", "hardware.memory_check=true", "hardware.per_device_prompts=4"),
    )
    run = science.trained(folder, name, *given, limit_mib=64)
    assert (
        "out of memory in a trial step of the 4 longest samples" in (run.path / "said").read_text()
    )
    assert "gentlest first: hardware.per_device_prompts=1; " in (run.path / "said").read_text()
    assert not run.logged()
