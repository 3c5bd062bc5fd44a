"""AdamW whose moments take half the memory of float32 weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class AdamWBfloat16(Optimizer):
    """AdamW (arXiv:1711.05101) with both moments in bfloat16, rounded stochastically.

    The second moment changes by a thousandth a step, which rounding to the nearest bfloat16 would
    always undo. The draws come from parameter and step alone: the same on every rank and after a
    resume.
    """

    def __init__(
        self,
        params: Any,  # noqa: ANN401
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = closure() if closure else None
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                place += 1
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.float(), group, place)
        return loss

    def _update(
        self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], place: int
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        step, (first, second) = int(state["step"]), group["betas"]
        mean = state["exp_avg"].float().lerp_(gradient, 1 - first)
        square = (
            state["exp_avg_sq"].float().mul_(second).addcmul_(gradient, gradient, value=1 - second)
        )
        draws = torch.Generator(parameter.device).manual_seed(step << 20 | place)
        state["exp_avg"].copy_(stochastically_rounded(mean, draws))
        state["exp_avg_sq"].copy_(stochastically_rounded(square, draws))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        root = (square / (1 - second**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(
            mean.to(parameter.dtype),
            root.to(parameter.dtype),
            value=-group["lr"] / (1 - first**step),
        )


def stochastically_rounded(values: Tensor, draws: torch.Generator) -> Tensor:
    """float32 as bfloat16: up with the probability that leaves the mean where it was."""
    bits = values.view(torch.int32)
    noise = torch.randint(
        0, 1 << 16, bits.shape, generator=draws, device=bits.device, dtype=torch.int32
    )
    return bits.add(noise).bitwise_and_(-65536).view(torch.float32).to(torch.bfloat16)
