"""Processes, accumulation, FSDP and resumes change no loss and no weight of an experiment."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
import science
import torch
from safetensors.torch import load_file

from medreason.runs.run_folder import RunFolder, run_folders

TWO = ("hardware=cpu_x2", "hardware.per_device_prompts=1")
FSDP, ZERO2, ZERO3 = ((*TWO, f"hardware.parallel={kind}") for kind in ("fsdp", "zero2", "zero3"))
METHODS = {  # two epochs of two optimizer steps, each epoch in another order
    "sft": ("method=sft", "task=disease", "method.trl.max_steps=4"),
    "grpo": (
        "task=disease",
        # Replies of this form end within 12 tokens, so some of them are right and some are not.
        *("method=grpo", "prompt=no_think", "reward=no_think", "method.trl.max_steps=4"),
        *("method.trl.num_generations=4", "method.trl.max_completion_length=12"),
        "method.trl.learning_rate=1e-4",
    ),
    # Dropout draws a mask for each row of a batch: with it, runs are equal in distribution alone.
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
    """A training of the method: `train(name, *overrides, dies_at=step, dies_of=signal)`."""
    return lambda name, *overrides, **dies: science.trained(
        folder, f"{method}-{name}", *METHODS[method], *overrides, **dies
    )


@pytest.fixture(scope="module")
def whole(train: Callable[..., RunFolder]) -> RunFolder:
    """One process, four micro-batches a step, never interrupted."""
    run = train("one")
    assert any(row["grad_norm"] > 0 for row in run.logged())  # else all runs would be equal
    return run


def assert_same(run: RunFolder, expected: RunFolder) -> None:
    """Losses and final weights are equal to rounding, which differs with the order of sums."""
    losses, expected_losses = ([row["loss"] for row in r.logged()] for r in (run, expected))
    assert len(expected_losses) == 4
    assert losses == pytest.approx(expected_losses, rel=1e-3, abs=2e-6)
    trained, expected_weights = weights(run), weights(expected)
    assert trained.keys() == expected_weights.keys()
    for name, weight in expected_weights.items():
        torch.testing.assert_close(trained[name], weight, rtol=1e-3, atol=2e-4, msg=name)
    # Each tensor counted once, whatever part of it a process holds; a resume keeps the first.
    assert run.state().first_update == expected.state().first_update


def assert_equal(run: RunFolder, expected: RunFolder) -> None:
    """Final weights and all that is logged but times, such as passes of decoding, are the same."""
    trained, expected_weights = weights(run), weights(expected)
    assert all(torch.equal(trained[name], weight) for name, weight in expected_weights.items())
    rows, expected_rows = (
        [{name: value for name, value in row.items() if not _is_time(name)} for row in r.logged()]
        for r in (run, expected)
    )
    assert rows == expected_rows


def _is_time(metric: str) -> bool:
    return any(word in metric for word in ("time", "seconds", "per_second", "memory"))


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    (file,) = run.model.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(
    "split",
    [TWO, pytest.param(("hardware.per_device_prompts=4",), marks=pytest.mark.slow)],
    ids=["two processes", "one micro-batch"],
)
def test_split_of_the_batch_changes_nothing(
    train: Callable[..., RunFolder], whole: RunFolder, split: tuple[str, ...]
) -> None:
    assert_same(train("-".join(split), *split), whole)


UNEVEN = (
    *("method=sft", "task=disease", "data.train_images=10", "method.trl.max_steps=4"),
    "runs.checkpoint_steps=2",
)
"""Ten rows, four a step: an epoch's third step has two."""


@pytest.fixture(scope="module")
def uneven(folder: Path) -> RunFolder:
    return science.trained(folder, "uneven", *UNEVEN, "runs.checkpoint_steps=100")


@pytest.mark.parametrize(
    "split",
    [
        ("hardware=cpu_x2", "hardware.per_device_prompts=2"),
        ("hardware=cpu_x2", "hardware.per_device_prompts=2", "hardware.parallel=fsdp"),
        pytest.param(("hardware.per_device_prompts=4",), marks=pytest.mark.slow),
    ],
    ids=["two processes", "fsdp", "one micro-batch"],
)
def test_incomplete_step_of_sft_has_the_same_rows_on_any_number_of_processes(
    folder: Path, uneven: RunFolder, split: tuple[str, ...]
) -> None:
    assert_same(science.trained(folder, f"uneven {split}", *UNEVEN, *split), uneven)


def test_incomplete_step_of_sft_is_the_same_after_a_resume(folder: Path, uneven: RunFolder) -> None:
    two = ("hardware=cpu_x2", "hardware.per_device_prompts=2")
    science.trained(folder, "uneven resumed", *UNEVEN, *two, dies_at=3)
    assert_same(science.trained(folder, "uneven resumed", *UNEVEN, *two), uneven)


@pytest.mark.parametrize("method", ["sft", *SLOWER], indirect=True)
@pytest.mark.parametrize(
    "parallel",
    ["fsdp", *(pytest.param(kind, marks=science.DEEPSPEED) for kind in ("zero2", "zero3"))],
)
def test_sharding_from_the_command_line_changes_nothing(
    whole: RunFolder, method: str, parallel: str, tmp_path: Path
) -> None:
    overrides = [*science.SMALL, *METHODS[method], *TWO, f"hardware.parallel={parallel}"]
    overrides += ["evaluation.modalities=[ct]", "tracking=none"]
    overrides += ["evaluation.controls=[]", "evaluation.max_new_tokens=4", f"outputs={tmp_path}"]
    commands.medreason(*overrides).check_returncode()
    (run,) = run_folders(tmp_path / "runs")
    assert run.state().state == "done"
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("first", "resumed"),
    [
        (FSDP, ()),
        pytest.param(TWO, (), marks=pytest.mark.slow),
        pytest.param((), TWO, marks=pytest.mark.slow),
        pytest.param(TWO, FSDP, marks=pytest.mark.slow),
        pytest.param(ZERO2, ZERO2, marks=science.DEEPSPEED),
        pytest.param(ZERO3, ZERO3, marks=science.DEEPSPEED),
    ],
    ids=["fsdp to one", "two to one", "one to two", "two to fsdp", "zero2", "zero3"],
)
def test_resume_on_other_hardware_changes_nothing(
    train: Callable[..., RunFolder],
    whole: RunFolder,
    first: tuple[str, ...],
    resumed: tuple[str, ...],
) -> None:
    name = f"{'-'.join(first)} to {'-'.join(resumed)}"
    train(name, *first, "runs.checkpoint_steps=2", dies_at=3)
    assert_same(train(name, *resumed), whole)


def test_killed_and_resumed_training_ends_in_the_same_bits(
    train: Callable[..., RunFolder], whole: RunFolder
) -> None:
    train("killed", "runs.checkpoint_steps=1", dies_at=3)
    # The trial step before training leaves no trace either.
    resumed = train("killed", "runs.checkpoint_steps=1", "hardware.memory_check=true")
    assert "trial step of the longest samples: peak" in (resumed.path / "output.txt").read_text()
    assert_equal(resumed, whole)


def test_interrupted_training_ends_its_update_and_resumes_to_the_same_bits(
    train: Callable[..., RunFolder], whole: RunFolder
) -> None:
    stopped = train("interrupted", dies_at=1, dies_of=signal.SIGTERM)
    assert [path.name for path in stopped.checkpoints.iterdir()] == ["checkpoint-2"]
    assert [row["step"] for row in stopped.logged()] == [1, 2]
    before = stopped.state()
    assert not before.trained
    assert before.train_seconds > 0
    resumed = train("interrupted")
    assert resumed.state().train_seconds > before.train_seconds
    assert_equal(resumed, whole)


@pytest.mark.parametrize("method", ["sft"], indirect=True)
@pytest.mark.parametrize("hardware", [TWO, pytest.param(FSDP, marks=pytest.mark.slow)])
def test_signal_to_one_rank_interrupts_all_after_the_same_update(
    train: Callable[..., RunFolder], whole: RunFolder, hardware: tuple[str, ...]
) -> None:
    name = f"interrupted {hardware}"
    stopped = train(name, *hardware, dies_at=1, dies_of=signal.SIGINT)
    assert [path.name for path in stopped.checkpoints.iterdir()] == ["checkpoint-2"]
    assert_same(train(name, *hardware), whole)


@pytest.mark.parametrize("method", ["sft"], indirect=True)
def test_signal_at_the_last_update_ends_with_weights_that_are_kept(
    train: Callable[..., RunFolder], whole: RunFolder
) -> None:
    stopped = train("interrupted late", dies_at=4, dies_of=signal.SIGTERM)
    assert stopped.state().trained
    assert_equal(stopped, whole)


def test_training_that_is_interrupted_in_its_last_update_has_nothing_left_to_do(
    train: Callable[..., RunFolder],
) -> None:
    steps = "method.trl.max_steps=3"  # within an epoch, whose fourth update may not follow
    expected = train("three updates", steps)
    stopped = train("interrupted in the third", steps, dies_at=2, dies_of=signal.SIGTERM)
    assert [path.name for path in stopped.checkpoints.iterdir()] == ["checkpoint-3"]
    assert not stopped.state().trained
    resumed = train("interrupted in the third", steps)
    assert resumed.state().chosen_step == 3
    assert_equal(resumed, expected)


def test_training_that_does_not_fit_fails_before_the_first_step(folder: Path) -> None:
    overrides = ("method=sft", "hardware.memory_check=true", "hardware.per_device_prompts=4")
    run = science.trained(folder, "too large", *overrides, limit_mib=64)
    output = (run.path / "output.txt").read_text()
    assert "out of memory in a trial step of the 4 longest samples" in output
    assert "gentlest first: hardware.per_device_prompts=1; " in output
    assert not run.logged()
