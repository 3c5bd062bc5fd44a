"""A training that a signal interrupts ends its update, writes a checkpoint, and ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medreason.console import notice
from medreason.runs import interrupts


class Interruption(TrainerCallback):
    """Saves and ends the training, on every rank, after the update in which any rank was signalled.

    `updates_per_rollout`: see `Config`; between two updates on the same completions nothing can be
    resumed. The last callback but one, `DivergenceCheck`, which looks at what is saved.
    """

    def __init__(self, updates_per_rollout: int) -> None:
        self._updates_per_rollout = updates_per_rollout
        self._asked = self._agreed = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the block.

        Raises:
            SystemExit: one came; a checkpoint is written, or the training has ended.
        """
        before = {number: signal.signal(number, self._ask) for number in interrupts.OF_WORKERS}
        try:
            yield
        finally:
            if not self._agreed:  # else the process is about to end: see `end`
                for number, handler in before.items():
                    signal.signal(number, handler)
        if self._is_asked_anywhere():  # too late for a checkpoint
            end()

    def _ask(self, *_: object) -> None:
        self._asked = True

    def _is_asked_anywhere(self) -> bool:
        state = PartialState()
        if state.num_processes == 1:
            return self._asked
        asked = reduce(torch.tensor(int(self._asked), device=state.device), "sum")
        assert isinstance(asked, torch.Tensor)
        return bool(asked)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.global_step % self._updates_per_rollout == 0 and self._is_asked_anywhere():
            self._agreed = control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self._agreed:
            # Not by `should_training_stop`: callbacks would take this for the end of the training.
            if state.is_world_process_zero:
                notice(f"interrupted; checkpoint of step {state.global_step} written")
            end()


def end() -> None:
    """End this process as interrupted; a further signal does not cut its last steps short."""
    for number in interrupts.OF_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(interrupts.EXIT_CODE)
