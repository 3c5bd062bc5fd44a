"""A training that has diverged ends as failed: a loss, a gradient norm or weights that are NaN or
infinite are never evaluated, nor kept as a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from medreason.console import number_text

_WATCHED = ("loss", "grad_norm")


class DivergenceCheck(TrainerCallback):
    """Ends a training, on every rank, at the first update that is not finite.

    Raises:
        ValueError: with the step and what helps.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float | None] | None = None,
        **_: object,
    ) -> None:
        for name in _WATCHED:
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                raise ValueError(_diverged(args, state, f"{name} is {float(value)}"))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: object,
    ) -> None:
        if control.should_save:
            _refuse_weights(args, state, model)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: object,
    ) -> None:
        _refuse_weights(args, state, model)


@contextmanager
def explained(trainer: Trainer) -> Iterator[None]:
    """Say that a training diverged where torch only says that it cannot sample."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        problem = "the model gives no probabilities to sample from"
        raise ValueError(_diverged(trainer.args, trainer.state, problem)) from error


def _refuse_weights(args: TrainingArguments, state: TrainerState, model: nn.Module | None) -> None:
    assert model is not None
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(of_this_rank(parameter)).all():
            raise ValueError(_diverged(args, state, f"{name} has values that are not finite"))


def of_this_rank(parameter: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that this rank holds, where FSDP or ZeRO-3 shards it."""
    if hasattr(parameter, "to_local"):
        return parameter.to_local()  # pyright: ignore[reportAttributeAccessIssue]
    return getattr(parameter, "ds_tensor", parameter)


def _diverged(args: TrainingArguments, state: TrainerState, what: str) -> str:
    remedies = [f"method.trl.learning_rate below {number_text(args.learning_rate)}"]
    if not 0 < args.max_grad_norm <= 1:
        remedies.append("method.trl.max_grad_norm=1.0")
    if not args.warmup_steps:
        remedies.append("method.trl.warmup_steps=0.1")
    if args.bf16:
        remedies.append("hardware.precision=float32")
    return f"diverged at step {state.global_step}: {what}; what helps: {', '.join(remedies)}"
