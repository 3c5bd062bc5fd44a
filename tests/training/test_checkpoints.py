"""A checkpoint is intact or passed over; one of another run or version is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerState

from medreason.execution import disk
from medreason.generation.drafts import DraftHistory
from medreason.runs.files import read_json, write_json
from medreason.runs.run_folder import RunFolder
from medreason.training import checkpoints


def write(folder: RunFolder, step: int, score: float | None = None, **by: Any) -> Path:
    path = folder.checkpoints / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights" * 100)
    (path / "optimizer.pt").write_bytes(b"moments" * 200)
    origin = {"train_key": "", "processes": 1, "deepspeed": False}
    checkpoints.seal(path, score=score, **(origin | by))
    return path


def newest(folder: RunFolder, processes: int = 1, deepspeed: bool = False) -> Path | None:
    return checkpoints.newest(folder, processes=processes, deepspeed=deepspeed)


def cut_off(path: Path) -> None:
    (path / "optimizer.pt").write_bytes(b"moments" * 100)


def scribbled_over(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"strange" * 100)


def without_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def never_sealed(path: Path) -> None:
    (path / checkpoints.SEAL).unlink()


@pytest.mark.parametrize("damage", [cut_off, scribbled_over, without_weights, never_sealed])
def test_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    folder = RunFolder(tmp_path)
    before, damaged = write(folder, 9), write(folder, 10)
    assert newest(folder) == damaged
    damage(damaged)
    assert newest(folder) == before
    assert f"{damaged}: incomplete or damaged; using" in capsys.readouterr().err


def test_without_an_intact_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest(RunFolder(tmp_path)) is None
    cut_off(write(RunFolder(tmp_path), 1))
    assert newest(RunFolder(tmp_path)) is None


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.2, 0.9, 0.4, None, 0.5), "25"),  # the newest and the best
        ((0.2, 0.3, 0.4), "23"),  # the newest is the best
        ((None, None, None), "23"),
        ((0.2,), "1"),
    ],
)
def test_two_are_kept_the_newest_and_the_best_or_the_one_before(
    tmp_path: Path, scores: tuple[float | None, ...], kept: str
) -> None:
    folder = RunFolder(tmp_path)
    most = 0
    for step, score in enumerate(scores, start=1):
        write(folder, step, score)
        most = max(most, len([*folder.checkpoints.iterdir()]))
        checkpoints.drop_old(folder.checkpoints)
    assert "".join(sorted(path.name[-1] for path in folder.checkpoints.iterdir())) == kept
    assert most == min(len(scores), disk.CHECKPOINTS_AT_ONCE)


def test_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    path = write(RunFolder(tmp_path), 1)
    seal = read_json(path / checkpoints.SEAL)
    write_json(path / checkpoints.SEAL, seal | {"packages": seal["packages"] | {"trl": "1.15.0"}})
    with pytest.raises(
        ValueError, match=r"written by trl 1\.15\.0, installed is 1\.16\.0; install that version"
    ):
        newest(RunFolder(tmp_path))


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update(train_key="0123456789ab")
    write(folder, 1, train_key="ba9876543210")
    with pytest.raises(
        ValueError, match=r"run of train key ba9876543210, this one has 0123456789ab: another model"
    ):
        newest(folder)


@pytest.mark.parametrize(
    ("written", "resumed_with", "words"),
    [
        ({"deepspeed": True, "processes": 2}, (4, True), "DeepSpeed's for 2 processes.*has 4"),
        ({"deepspeed": True, "processes": 2}, (2, False), "was written by DeepSpeed"),
        ({}, (2, True), "was written by a run without DeepSpeed"),
    ],
)
def test_checkpoint_of_deepspeed_needs_deepspeed_and_its_number_of_processes(
    tmp_path: Path, written: dict[str, Any], resumed_with: tuple[int, bool], words: str
) -> None:
    write(RunFolder(tmp_path), 1, **written)
    with pytest.raises(ValueError, match=words):
        newest(RunFolder(tmp_path), *resumed_with)


def test_checkpoint_is_read_by_any_number_of_processes(tmp_path: Path) -> None:
    path = write(RunFolder(tmp_path), 1, processes=2)
    assert newest(RunFolder(tmp_path), processes=8) == path


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (lambda file: torch.save([{"table": {}}], file), "not of this version"),
        (lambda file: file.write_bytes(b"PK torn"), "not of this version"),
        (lambda file: None, ""),  # of an earlier version, which kept none
    ],
)
def test_drafts_that_cannot_be_read_are_guessed_anew(
    tmp_path: Path,
    stored: Callable[[Path], None],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = object.__new__(checkpoints.PortableCheckpoints)
    ranks = SimpleNamespace(num_processes=1, process_index=0)
    vars(trainer).update(
        accelerator=ranks, callback_handler=SimpleNamespace(callbacks=[]), drafts=DraftHistory()
    )
    path = write(RunFolder(tmp_path), 1)
    stored(path / "drafts-0.pt")
    trainer._load_drafts(path)
    printed = capsys.readouterr()
    assert words in printed.out + printed.err
    assert vars(trainer)["drafts"].state_dict()["replies"] == []


@pytest.mark.parametrize(
    ("rows", "score"),
    [
        ([{"loss": 0.5}, {"loss": 0.25}], -0.375),
        ([{"loss": 0.0, "reward": 1.0}, {"loss": 0.0, "reward": None}], 1.0),
        ([{"loss": None, "reward": None}], None),  # as TRL logs the mean of nothing
        ([], None),
    ],
)
def test_score_leaves_out_metrics_that_are_none(
    rows: list[dict[str, float | None]], score: float | None
) -> None:
    state = TrainerState(save_steps=2, log_history=rows)  # pyright: ignore[reportArgumentType]
    assert checkpoints._score(state, validates=False) == score


def test_step_without_a_validation_has_no_score_in_a_run_that_validates() -> None:
    # Interrupted before the first validation: its mean reward is higher than any accuracy.
    rows: list[dict[str, float]] = [{"step": 5, "loss": 0.1, "reward": 1.4}]
    state = TrainerState(save_steps=25, global_step=5, log_history=rows)
    assert checkpoints._score(state, validates=True) is None
    rows += [{"step": 25, "validation/accuracy": 0.6}, {"step": 30, "loss": 0.1, "reward": 1.5}]
    assert checkpoints._score(state, validates=True) is None
    state.global_step = 25
    assert checkpoints._score(state, validates=True) == 0.6
