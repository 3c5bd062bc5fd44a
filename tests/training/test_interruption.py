"""After which update a training that is interrupted ends; `test_same_science` resumes some."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from medreason.runs import interrupts
from medreason.training.interruption import Interruption


@pytest.fixture(autouse=True)
def handlers_of_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in interrupts.OF_WORKERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def saves(interruption: Interruption, step: int) -> bool:
    control, state = TrainerControl(), TrainerState()
    state.global_step = step
    interruption.on_step_end(TrainingArguments(), state, control)
    return control.should_save


def test_training_ends_where_all_updates_on_the_same_completions_are_made() -> None:
    interruption = Interruption(updates_per_rollout=2)
    assert not saves(interruption, 2)
    with interruption.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert not saves(interruption, 3)
        assert saves(interruption, 4)
        with pytest.raises(SystemExit):
            interruption.on_save(TrainingArguments(), TrainerState(), TrainerControl())
        interruption._asked = False  # this process goes on


def test_signal_after_the_last_update_ends_the_worker_before_its_evaluation() -> None:
    with pytest.raises(SystemExit) as end, Interruption(1).listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == 143


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption(1).listening():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
