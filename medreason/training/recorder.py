"""Writes metrics, rollouts and progress into the run folder while a training runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medreason.console import notice
from medreason.rewards.variance import collapse_warning, collapsed_rewards
from medreason.runs.files import atomic
from medreason.runs.run_folder import RunFolder
from medreason.training.selection import SCORE
from medreason.training.trl_rewards import save_rollouts

ROLLOUT_STEPS = 10
"""Rollouts are saved of the first optimizer step, and of each that this divides."""

_SUMMARY = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
"""Keys of the last log of a training, which is of no step."""


class Recorder(TrainerCallback):
    """Appends each log to metrics.jsonl, one line for each optimizer step."""

    def __init__(
        self, folder: RunFolder, progress: Callable[..., None], seconds: Callable[[], float]
    ) -> None:
        """`seconds` says how long the training has taken."""
        self._folder, self._seconds = folder, seconds
        self._progress = progress
        self.rollout_logs: dict[str, Any] | None = None
        """TRL's record of the last rollouts (`GRPOTrainer._logs`); None in SFT."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if not state.is_world_process_zero:
            return
        # A run that was killed logged steps after its last checkpoint; they are done again now.
        rows = [row for row in self._folder.logged() if row["step"] <= state.global_step]
        with atomic(self._folder.metrics) as unfinished:
            unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._progress("training", state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float | None] | None = None,
        **_: object,
    ) -> None:
        if not state.is_world_process_zero or not logs or any(key in logs for key in _SUMMARY):
            return
        validation = [
            logged
            for logged in state.log_history[-2:]  # this log, and before it the step's validation
            if SCORE in logged and logged["step"] == state.global_step
        ]
        values = {key: value for row in (logs, *validation) for key, value in row.items()}
        row = {"step": state.global_step}
        row |= {key: _finite(value) for key, value in values.items() if key != "step"}
        with self._folder.metrics.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        name = "reward" if "reward" in logs else "loss"
        digits = 2 if name == "reward" else 3
        note = "" if row.get(name) is None else f"{name} {row[name]:.{digits}f}"
        self._progress("training", state.global_step, state.max_steps, note)
        step = state.global_step
        if self.rollout_logs and (step == 1 or step % ROLLOUT_STEPS == 0):
            path = self._folder.rollouts / f"step-{step:06d}.parquet"
            save_rollouts(self.rollout_logs, path)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.is_world_process_zero:  # a resumed run goes on counting from its checkpoint
            self._folder.update(train_seconds=self._seconds())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.is_world_process_zero:
            for name, mean in collapsed_rewards(self._folder.logged()).items():
                notice(collapse_warning(name, mean))


def _finite(value: float | None) -> float | None:
    """None for NaN and infinity, which JSON has not; TRL 1.16 logs None, too, for a mean of none,
    as of the completions that ended where all were cut off."""
    return None if value is None or not math.isfinite(value) else float(value)
