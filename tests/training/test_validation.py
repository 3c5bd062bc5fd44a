"""Validation leaves the training as it is, survives a kill, and chooses a step by itself alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import science
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from medreason import data
from medreason.config import Config
from medreason.data import validation
from medreason.generation.drafts import DraftHistory, SuffixTable
from medreason.generation.rows import Completion, EvaluationRow
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training import checkpoints, selection
from medreason.training import run as training
from medreason.training import validation as training_validation
from medreason.training.recorder import Recorder
from medreason.training.validation import Validator, undisturbed

METHODS = {
    "sft": ("method=sft", "task=disease", "method.trl.max_steps=3"),
    "grpo": (
        *("task=disease", "method=grpo", "prompt=no_think", "reward=no_think"),
        *("method.trl.max_steps=3", "method.trl.num_generations=2"),
        *("method.trl.max_completion_length=8", "method.trl.learning_rate=1e-4"),
    ),
    "rarl": (
        *("task=disease", "method=rarl", "method.trl.max_steps=3"),
        *("method.trl.num_generations=2", "method.trl.max_completion_length=8"),
    ),
}
VALIDATED = (
    *("validation=in_domain", "validation.share=0.25", "validation.max_new_tokens=4"),
    *("runs.checkpoint_steps=1", "method.prompts_per_step=2"),
)
SIDES = ("validation/", "transfer/")
TRANSFER = ("validation=transfer", *VALIDATED[1:])


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    (file,) = run.model.glob("*.safetensors")
    return load_file(file)


def curve(run: RunFolder) -> list[dict[str, Any]]:
    """Step, loss and all validation numbers of the rows that validated, without those of a clock.

    Not TRL's num_tokens, which counts from the last resume.
    """
    rows = [row for row in run.logged() if selection.SCORE in row]
    return [
        {
            key: value
            for key, value in row.items()
            if key in ("step", "loss") or (key.startswith(SIDES) and "seconds" not in key)
        }
        for row in rows
    ]


def assert_same_bits(run: RunFolder, expected: RunFolder) -> None:
    trained, other = weights(run), weights(expected)
    assert trained.keys() == other.keys()
    assert all(torch.equal(trained[name], weight) for name, weight in other.items())


class Killed(BaseException):
    """Ends a training in this process as a kill ends one of its own: nothing more is written."""


Train = Callable[..., RunFolder]


@pytest.fixture
def train(composed: Callable[..., Config], tmp_path: Path) -> Train:
    """A training in this process, of the same folder again where it has the same name."""

    def die() -> None:
        raise Killed

    def run(name: str, *words: str, dies_at: int | tuple[int, str] | None = None) -> RunFolder:
        config = composed(*science.SMALL, *words)
        samples, folder = data.samples_of(config), RunFolder(tmp_path / name)
        ending = pytest.raises(Killed) if dies_at is not None else nullcontext()
        with ending:
            training.train(
                *(config, data.trained_on(config, samples), folder),
                science.listener(dies_at, die),
                questions=validation.questions(config, samples),
            )
        return folder

    return run


KILLS = ((1, "validating"), 2)
"""In the middle of the second validation, and between the second and the third."""


@pytest.mark.parametrize("method", ["sft", "grpo", pytest.param("rarl", marks=pytest.mark.slow)])
def test_weights_are_the_same_bits_with_and_without_validation(train: Train, method: str) -> None:
    off = train("off", *METHODS[method], *VALIDATED, "validation.every=null")
    on = train("on", *METHODS[method], *VALIDATED, "validation.every=1")
    assert_same_bits(on, off)
    rows = curve(on)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"validation/accuracy/ct/disease", "validation/blank_image"} <= {*rows[0]}
    assert rows[0]["validation/n"] == 2
    assert [row["step"] for row in on.logged()] == [1, 2, 3]  # a line a step
    assert not curve(off)
    assert (on.state().chosen_step, off.state().chosen_step) == (3, 3)
    if method == "sft":
        train("killed", *METHODS[method], *VALIDATED, "validation.every=1", dies_at=KILLS[0])
        again = train("killed", *METHODS[method], *VALIDATED, "validation.every=1")
        assert curve(again) == rows
        assert_same_bits(again, off)
        assert again.state().chosen_step == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_training_has_the_same_curve_choice_and_weights(
    tmp_path: Path, method: str
) -> None:
    """Killed with SIGKILL, in processes of their own."""
    words = (*METHODS[method], *VALIDATED, "validation.every=1", "validation.select=best")
    whole = science.trained(tmp_path, "whole", *words)
    for kill in KILLS:
        science.trained(tmp_path, "killed", *words, dies_at=kill)
    again = science.trained(tmp_path, "killed", *words)
    assert curve(again) == curve(whole)
    assert again.state().chosen_step == whole.state().chosen_step
    assert again.state().chosen_because == whole.state().chosen_because
    assert_same_bits(again, whole)


def test_only_validated_steps_have_a_score(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    scores: dict[int, float | None] = {}
    seal = checkpoints.seal

    def recorded(path: Path, **settings: Any) -> None:
        scores[int(path.name.rpartition("-")[2])] = settings["score"]
        seal(path, **settings)

    monkeypatch.setattr(checkpoints, "seal", recorded)
    often = ("validation.every=2", "validation.select=best", "runs.checkpoint_steps=1")
    run = train("often", *METHODS["sft"], *VALIDATED, *often)
    assert scores[1] is None  # before the first validation
    assert {step: score for step, score in scores.items() if score is not None} == {
        row["step"]: row["validation/accuracy"] for row in curve(run)
    }


def test_the_weights_of_the_best_step_are_kept_and_patience_ends_the_training(
    train: Train,
) -> None:
    words = (*METHODS["sft"], *VALIDATED, "method.trl.lr_scheduler_type=constant")
    more = ("validation.every=1", "validation.select=best", "validation.patience=1")
    run = train("best", *words, *more)
    rows, chosen = run.logged(), run.state().chosen_step
    assert chosen == selection.best_step(rows)
    assert [row["step"] for row in rows] == [*range(1, chosen + 2)][:3]
    assert run.state().chosen_because.startswith("best of ")
    steps = (f"method.trl.max_steps={chosen}", "validation.every=null")
    shorter = train("shorter", *words, *steps)
    assert_same_bits(run, shorter)
    assert {path.name for path in run.model.iterdir()} == {
        path.name for path in shorter.model.iterdir()
    }


CHOOSES = (
    *("method=sft", "prompt=think", "method.trl.lr_scheduler_type=constant"),
    *("method.prompts_per_step=4", "hardware.per_device_prompts=4"),
    *("validation=in_domain", "validation.select=best", "validation.controls=[]"),
    "validation.max_new_tokens=40",
)


@pytest.mark.slow
def test_a_run_that_overfits_keeps_an_early_step(train: Train) -> None:
    few = ("data.train_images=16", "validation.share=0.75", "method.trl.learning_rate=3e-4")
    run = train("few", *CHOOSES, *few, "method.trl.max_steps=20", "validation.every=4")
    accuracy = selection.scores(run.logged())
    assert [*accuracy] == [4, 8, 12, 16, 20]
    # Twenty training rows, each seen four times: learned by heart, and the others forgotten.
    losses = [row["loss"] for row in run.logged()]
    assert fmean(losses[-4:]) < fmean(losses[:4]) / 3
    assert accuracy[20] < accuracy[4] - 0.08
    assert run.state().chosen_step == 4
    assert run.state().chosen_because.startswith("best of 5 validations (step 4: ")


@pytest.mark.slow
def test_a_run_that_does_not_overfit_keeps_its_last_step(train: Train) -> None:
    many = ("data.train_images=64", "validation.share=0.4", "method.trl.learning_rate=1e-4")
    steps = ("method.trl.max_steps=30", "validation.every=15", "validation.questions=80")
    run = train("many", *CHOOSES, *many, *steps)
    accuracy = selection.scores(run.logged())
    assert accuracy[30] > accuracy[15] + 0.05  # each row was seen once at most
    assert run.state().chosen_step == 30


class Untouchable(Sample):
    """A test row: raises where its image, question or answer is read."""

    def __getattribute__(self, name: str) -> object:
        if name in ("image", "question", "options", "answer", "explanation"):
            raise AssertionError(f"{name} of a test row was read")
        return super().__getattribute__(name)

    @classmethod
    def of(cls, sample: Sample) -> Sample:
        row = object.__new__(cls)
        row.__dict__.update(vars(sample))
        return row


@pytest.mark.parametrize(
    "method",
    ["sft", *(pytest.param(other, marks=pytest.mark.slow) for other in ("grpo", "rarl"))],
)
def test_training_and_validation_read_no_test_row(
    composed: Callable[..., Config], tmp_path: Path, method: str
) -> None:
    words = (*science.SMALL, *METHODS[method], *TRANSFER, "method.trl.max_steps=1")
    config = composed(*words, "validation.every=1", "validation.questions=4")
    samples = data.samples_of(config)
    guarded = [Untouchable.of(s) if s.split == "test" else s for s in samples]
    assert any(isinstance(s, Untouchable) for s in guarded)
    folder = RunFolder(tmp_path / "run")
    training.train(
        *(config, data.trained_on(config, guarded), folder, lambda *_: None),
        questions=validation.questions(config, guarded),
    )
    assert folder.state().trained
    assert folder.logged()[0]["transfer/n"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "parallel",
    ["ddp", "fsdp", *(pytest.param(kind, marks=science.DEEPSPEED) for kind in ("zero2", "zero3"))],
)
def test_two_processes_have_the_curve_of_one(tmp_path: Path, parallel: str, method: str) -> None:
    answers = ("prompt=no_think", "validation.max_new_tokens=32")  # of which some are right
    # Dropout draws a mask for each row of a batch: with it, runs are equal in distribution alone.
    exact = ("adapter.lora_dropout=0",) if method == "rarl" else ()
    words = (*METHODS[method], *TRANSFER, "validation.every=2", *answers, *exact)
    one = science.trained(tmp_path, "one", *words)
    processes = ("hardware=cpu_x2", f"hardware.parallel={parallel}")
    two = science.trained(tmp_path, "two", *words, *processes)
    for row, other in zip(curve(two), curve(one), strict=True):
        numbers = [key for key in row if key.startswith(SIDES)]
        assert {key: row[key] for key in numbers} == {key: other[key] for key in numbers}
        assert row["transfer/parsed"] > 0
        assert row["transfer/n"] > row["validation/n"]
    # The update behind a validation is the same, too.
    losses = [[row["loss"] for row in run.logged()] for run in (two, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=2e-6)
    trained, expected = weights(two), weights(one)
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, rtol=1e-3, atol=2e-4, msg=name)


def test_the_best_step_is_the_earliest_of_the_highest_accuracy() -> None:
    rows = [{"step": step, selection.SCORE: score}
            for step, score in ((5, 0.5), (10, 0.7), (15, 0.7), (20, 0.6))]  # fmt: skip
    others: list[dict[str, Any]] = [{"step": 12, "loss": 1.0}, {"step": 13, selection.SCORE: None}]
    assert selection.best_step([*rows, *others]) == 10
    assert selection.best_step(others) is None
    assert [selection.is_over(rows[:n], 2) for n in range(5)] == [False, False, False, False, True]
    assert not selection.is_over(rows, None)
    assert selection.explained(rows, 10, 20) == (
        "best of 4 validations (step 10: 70.0 %, step 20: 60.0 %)"
    )
    assert selection.explained(rows, 20, 20) == "last of 4 validations (step 20: 60.0 %)"
    assert selection.explained(others, 20, 20) == ""


def test_transfer_chooses_nothing() -> None:
    rows = [{"step": 1, selection.SCORE: 0.5, "transfer/accuracy": 0.1},
            {"step": 2, selection.SCORE: 0.4, "transfer/accuracy": 0.9}]  # fmt: skip
    assert selection.best_step(rows) == 1


@pytest.mark.parametrize(
    ("words", "scores", "saved", "stopped"),
    [
        (("validation.select=best",), (0.5, 0.6, 0.6, 0.7), [True, True, False, True], None),
        (("validation.select=last",), (0.5, 0.6, 0.6, 0.7), [False] * 4, None),
        (("validation.patience=2",), (0.5, 0.6, 0.6, 0.5), [False, False, False, True], 4),
    ],
)
def test_a_better_validation_makes_a_checkpoint_and_patience_ends_the_training(
    composed: Callable[..., Config],
    tmp_path: Path,
    words: tuple[str, ...],
    scores: tuple[float, ...],
    saved: list[bool],
    stopped: int | None,
) -> None:
    config = composed("validation=in_domain", "validation.every=2", *words)
    validator = Validator(config, {}, [], print)
    validator._validate = lambda: {selection.SCORE: scores[state.global_step // 2 - 1]}
    state, control = TrainerState(max_steps=20), TrainerControl()
    checkpoints_made, ended = [], None
    for step in range(1, 9):
        state.global_step, control.should_save = step, False
        validator.on_step_end(TrainingArguments(str(tmp_path)), state, control)
        if step % 2:
            assert not control.should_save
            continue
        checkpoints_made.append(control.should_save)
        if control.should_training_stop and ended is None:
            ended = step // 2
    assert (checkpoints_made, ended) == (saved, stopped)
    assert [row["step"] for row in state.log_history] == [2, 4, 6, 8]
    assert checkpoints._score(state, validates=True) == scores[-1]
    state.global_step = 7
    assert checkpoints._score(state, validates=True) is None


def test_the_first_validation_drafts_from_targets_or_rollouts(
    composed: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    validator = Validator(composed("method=sft"), {}, [], print, ["left lung", "left heart"])
    drafts = validator.drafts
    assert drafts is not None
    drafts.most = 9
    tokenizer = validator._processor.tokenizer
    begin, *rest = [*tokenizer("left heart")["input_ids"], tokenizer.eos_token_id]
    said = drafts.of_rows(["q"])
    said.observe(0, [begin], drafted=0)
    assert said.propose({0: 9}, 1.0, frozenset([rest[-1]]))[0][-1] == rest[-1]
    rollouts = DraftHistory()
    validator.trainer = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        drafts=rollouts,
        model_wrapped=None,
        accelerator=None,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    monkeypatch.setattr(training_validation, "unwrap_model_for_generation", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        validator._validate()
    assert drafts.table is rollouts.table
    drafts.table = own = SuffixTable([2], 9)
    # Each rank has other rollouts, and all must make the same passes.
    sharded = ("method=sft", "hardware=cpu_x2", "hardware.parallel=fsdp")
    validator._config = composed(*sharded)
    with pytest.raises(ZeroDivisionError):
        validator._validate()
    assert drafts.table is own


def test_a_reply_that_is_said_again_is_read_once(composed: Callable[..., Config]) -> None:
    config = composed("method=sft")
    validator = Validator(config, {}, [], print)
    (sample, *_) = data.tested_on(config, data.samples_of(config))
    validator._images = {sample.image: "content"}
    said = [Completion("which?", f"<answer>{text}</answer>", 3, 2, "stop") for text in "AAB"]
    first, again, other = (
        validator._predicted(EvaluationRow(control, sample, "which?"), completion)
        for control, completion in zip(["original"] * 3, said, strict=True)
    )
    assert again is first
    assert (first.answer, other.answer) == ("A", "B")
    assert first.image_digest == "content"
    blank = validator._predicted(EvaluationRow("blank_image", sample, "which?"), said[2])
    assert blank.control == "blank_image"


def test_a_step_and_its_validation_are_one_line(tmp_path: Path) -> None:
    recorder = Recorder(RunFolder(tmp_path), lambda *_: None, lambda: 0.0)
    state, arguments = TrainerState(), TrainingArguments(str(tmp_path))
    for step in (1, 2, 3):
        state.global_step = step
        if step == 2:
            state.log_history.append({"step": 2, selection.SCORE: 0.5, "transfer/accuracy": None})
        state.log_history.append({"loss": 1.0, "step": step})
        recorder.on_log(arguments, state, TrainerControl(), {"loss": 1.0})
    rows = RunFolder(tmp_path).logged()
    assert [row.get(selection.SCORE) for row in rows] == [None, 0.5, None]
    assert rows[1] == {"step": 2, "loss": 1.0, selection.SCORE: 0.5, "transfer/accuracy": None}


def test_rollouts_of_the_first_step_and_of_each_tenth_are_kept(tmp_path: Path) -> None:
    recorder = Recorder(RunFolder(tmp_path), lambda *_: None, lambda: 0.0)
    recorder.rollout_logs = {
        "extra": {},
        "prompt": [[{"content": [{"text": "Which?"}]}]],
        "completion": [[{"content": "a"}]],
        "rewards": {},
        "advantages": [0.5],
    }
    state, arguments = TrainerState(), TrainingArguments(str(tmp_path))
    for state.global_step in range(1, 22):
        recorder.on_log(arguments, state, TrainerControl(), {"reward": 1.0})
    written = sorted(path.stem for path in RunFolder(tmp_path).rollouts.iterdir())
    assert written == ["step-000001", "step-000010", "step-000020"]


def test_validation_leaves_random_states_and_training_flags_as_they_were() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    model[1].eval()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    with undisturbed(model):
        model.eval()
        torch.rand(3), random.random(), np.random.rand(3)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def checkpoint(folder: RunFolder, step: int, score: float | None) -> Path:
    path = folder.checkpoints / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"):
        (path / name).write_text(f"{name} of {step}")
    checkpoints.seal(path, train_key="", score=score, processes=1, deepspeed=False)
    return path


def test_the_earliest_of_the_best_checkpoints_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, score in ((1, 0.4), (2, 0.6), (3, 0.6), (4, None), (5, 0.5), (6, 0.1)):
        checkpoint(folder, step, score)
        checkpoints.drop_old(folder.checkpoints)
    assert sorted(path.name[-1] for path in folder.checkpoints.iterdir()) == ["2", "6"]


@pytest.mark.parametrize(("select", "expected"), [("best", 2), ("last", 4)])
def test_the_chosen_weights_are_those_of_its_checkpoint(
    composed: Callable[..., Config], tmp_path: Path, select: str, expected: int
) -> None:
    config = composed("validation=in_domain", "validation.every=1", f"validation.select={select}")
    folder = RunFolder(tmp_path)
    for step in (2, 4):
        checkpoint(folder, step, 0.5)
    history = [{"step": step, selection.SCORE: 0.5} for step in (2, 4)]
    trainer: Any = SimpleNamespace(
        state=TrainerState(global_step=4, log_history=history),
        accelerator=SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None),
    )
    # The run was resumed after its end: no weights are in memory.
    assert training._save(config, trainer, folder, trained=False) == expected
    assert [path.name for path in folder.model.iterdir()] == ["model.safetensors"]
    content = (folder.model / "model.safetensors").read_text()
    assert content == f"model.safetensors of {expected}"
    (folder.checkpoints / f"checkpoint-{expected}" / "model.safetensors").write_text("torn")
    with pytest.raises(ValueError, match=r"holds the chosen weights and is incomplete .*delete"):
        training._save(config, trainer, folder, trained=False)


def test_a_training_that_patience_ended_makes_no_further_step_when_resumed(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    config = composed("validation=in_domain", "validation.every=1", "validation.patience=1")
    history = [{"step": step, selection.SCORE: score} for step, score in ((1, 0.5), (2, 0.4))]
    state = TrainerState(global_step=2, log_history=history)
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    trainer: Any = SimpleNamespace(state=TrainerState())  # one that cannot train
    assert training._run(config, trainer, tmp_path) is False
    assert trainer.state.global_step == 2
