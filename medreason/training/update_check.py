"""Whether the first update moved the weights: a training that moves none of them fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medreason.console import notice, number_text
from medreason.runs.run_folder import RunFolder
from medreason.training.divergence import of_this_rank

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 22
"""Elements whose bits are summed at once: 32 MiB on the device."""

_WARMING_UP = (
    "the rate warms up from 0 and was 0 in every update; set method.trl.warmup_steps=0 or train "
    "longer"
)
_NOTHING_TO_TEACH = (
    "no update had a gradient, since in each group all rewards were equal or all completions were "
    "cut off; choose another reward, or a larger method.num_generations, method.trl.temperature or "
    "method.trl.max_completion_length, or start from weights that SFT has trained"
)


@dataclass(frozen=True)
class Update:
    """What the first update that moved a tensor did to the trained tensors."""

    step: int
    trained: int
    moved: int
    """With a gradient, and other values than before."""
    without_gradient: int
    """None or 0 everywhere; weight decay alone does not count as a move."""
    below_precision: int
    """With a gradient, but the update was rounded away."""

    @property
    def has_gradient(self) -> bool:
        return self.without_gradient < self.trained

    def __str__(self) -> str:
        return (
            f"{self.trained} trained tensors, {self.moved} moved, {self.without_gradient} without "
            f"a gradient, {self.below_precision} moved less than their precision"
        )


class UpdateCheck(TrainerCallback):
    """Writes `Update` to log and state, once, and ends a training that moves nothing.

    Tensors are compared by digests, so no second copy of them is held. Between the processes of
    FSDP and ZeRO-3, which hold parts of a tensor, it moved where any part did. DeepSpeed frees
    gradients before they can be read: there a tensor that changed had one, and the others
    count as below precision where the loss had something to teach.

    Raises:
        ValueError: no tensor moved, though the loss had something to teach.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.rollout_logs: dict[str, Any] | None = None
        """TRL's record of the last rollouts (`GRPOTrainer._logs`); None in SFT."""
        self._done = False
        self._rate = 0.0
        self._last: Update | None = None
        """The last update, while none has moved a tensor."""
        self._before: Tensor | None = None
        self._gradients: Tensor | None = None
        """(trained tensors), as are the digests in `_before`: whether one has a gradient."""

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: object,
    ) -> None:
        if not self._done and self._before is None:
            self._before = _digests(model)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **_: object,
    ) -> None:
        if self._done:
            return
        assert optimizer is not None
        self._rate = max(group["lr"] for group in optimizer.param_groups)
        gradients = torch.stack([_has_gradient(parameter) for parameter in _trained(model)])
        self._gradients = gradients.cpu()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: object,
    ) -> None:
        if self._done:
            return
        assert self._before is not None
        assert self._gradients is not None
        after = _digests(model)
        changed = _on_any_rank(after != self._before)
        self._before = after
        gradients = _on_any_rank(self._gradients)
        if args.deepspeed:
            gradients = changed | self._has_something_to_teach(args)
        moved = gradients & changed
        update = Update(
            state.global_step,
            trained=len(moved),
            moved=int(moved.sum()),
            without_gradient=int((~gradients).sum()),
            below_precision=int((gradients & ~moved).sum()),
        )
        if update.moved:
            self._done, self._before = True, None
            self._record(state, update)
        elif self._is_final(args, state, update):
            self._refuse(args, update)
        else:
            self._last = update

    def _is_final(self, args: TrainingArguments, state: TrainerState, update: Update) -> bool:
        """Whether later updates can move no more than this one."""
        if state.global_step <= args.get_warmup_steps(state.max_steps):
            return False
        zero_rate = args.learning_rate == 0
        return zero_rate or update.has_gradient or self._has_something_to_teach(args)

    def _has_something_to_teach(self, args: TrainingArguments) -> bool:
        """Whether the loss must have a gradient: that of GRPO is 0 where all advantages are."""
        if self.rollout_logs is None:
            return True
        masked = getattr(args, "mask_truncated_completions", False)  # their advantages do not count
        return not masked and any(self.rollout_logs["advantages"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self._done or self._last is None or self._folder.state().first_update:
            return
        warming_up = not self._rate and args.learning_rate > 0
        if not warming_up and (self._last.has_gradient or self.rollout_logs is None):
            self._refuse(args, self._last)
        self._record(state, self._last)
        if state.is_world_process_zero:
            reason = _WARMING_UP if warming_up else _NOTHING_TO_TEACH
            notice(f"no weight moved, so they are those of the start model: {reason}")

    def _record(self, state: TrainerState, update: Update) -> None:
        if state.is_world_process_zero:
            notice(f"first update, step {update.step}: {update}")
            if not self._folder.state().first_update:  # a resume does not replace it
                self._folder.update(first_update=asdict(update))

    def _refuse(self, args: TrainingArguments, update: Update) -> None:
        if args.learning_rate == 0:
            problem, remedy = "the rate is 0", "set method.trl.learning_rate above 0"
        elif update.has_gradient:
            rate = number_text(self._rate)
            problem = f"the rate of {rate} is too small for the precision of the weights"
            remedy = (
                f"set method.trl.learning_rate above {number_text(args.learning_rate)}, or "
                "hardware.precision=float32"
            )
        else:
            problem = "the loss does not depend on what is trained"
            remedy = "set adapter.target_modules to layers of the language model, or adapter=none"
        raise ValueError(f"no weight moved by step {update.step} ({update}): {problem}; {remedy}")


def _trained(model: nn.Module | None) -> Iterator[nn.Parameter]:
    assert model is not None
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def _has_gradient(parameter: nn.Parameter) -> Tensor:
    """A truth on the parameter's device."""
    if parameter.grad is None:
        return torch.zeros((), dtype=torch.bool, device=parameter.device)
    return of_this_rank(parameter.grad).any()


def _digests(model: nn.Module | None) -> Tensor:
    """(trained tensors) of integers that differ where the values do."""
    digests = [_digest(of_this_rank(parameter).detach()) for parameter in _trained(model)]
    return torch.stack(digests).cpu()


def _digest(values: Tensor) -> Tensor:
    """The sum of the values' bits, each times a number that its place decides, modulo 2^64."""
    # Numbers in no order: the first update of Adam changes elements by the same amount up or down,
    # and sums with equal or rising weights could cancel.
    bits = values.reshape(-1).view(_INTEGERS[values.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for number, chunk in enumerate(bits.split(_CHUNK)):
        start = number * _CHUNK
        places = torch.arange(start + 1, start + 1 + len(chunk), device=values.device)
        places *= -0x61C8864680B583EB  # 2^64 divided by the golden ratio
        places ^= places >> 29
        places *= -0x40A7B892E31B1A47
        total += (chunk * places).sum()
    return total


def _on_any_rank(truths: Tensor) -> Tensor:
    """Whether each is true on at least one process."""
    counts = reduce(truths.int().to(PartialState().device), "sum")
    assert isinstance(counts, Tensor)
    return counts.cpu() > 0
