"""What a training run leaves behind while it runs: metrics, rollouts and its progress."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medreason.rewards.variance import collapse_warning, collapsed_rewards
from medreason.runs.files import atomic
from medreason.runs.run_folder import RunFolder
from medreason.training.trl_rewards import save_rollouts

ROLLOUT_STEPS = 10
"""Optimizer steps between saved rollouts."""

_ENDINGS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")


class Recorder(TrainerCallback):
    """Appends each log to metrics.jsonl, a line a step; on a resume drops the steps done again."""

    def __init__(self, folder: RunFolder, progress: Callable[..., None]) -> None:
        self._folder = folder
        self._progress = progress
        self.rollout_logs: dict[str, Any] | None = None
        """The trainer's own record of its last rollouts, where it has one."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if not state.is_world_process_zero:
            return
        kept = [row for row in self._folder.logged() if row["step"] <= state.global_step]
        with atomic(self._folder.metrics) as unfinished:
            unfinished.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._progress("training", state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if not state.is_world_process_zero or not logs or any(k in logs for k in _ENDINGS):
            return
        row = {"step": state.global_step, **{k: _number(v) for k, v in logs.items()}}
        with self._folder.metrics.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        note = f"reward {logs['reward']:.2f}" if "reward" in logs else f"loss {logs['loss']:.3f}"
        self._progress("training", state.global_step, state.max_steps, note)
        if self.rollout_logs and state.global_step % ROLLOUT_STEPS == 1:
            path = self._folder.rollouts / f"step-{state.global_step:06d}.parquet"
            save_rollouts(self.rollout_logs, path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.is_world_process_zero:
            for name, mean in collapsed_rewards(self._folder.logged()).items():
                print(collapse_warning(name, mean))  # noqa: T201


def _number(value: object) -> float | None:
    """JSON has no NaN."""
    number = float(value)  # pyright: ignore[reportArgumentType]
    return number if math.isfinite(number) else None
