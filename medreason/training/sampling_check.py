"""Whether the completions are drawn from the model that is updated, whatever draws them.

A token's log-probability when it is drawn and in the update's own forward pass are two computations
of one number. Where they differ by more than rounding, the engine draws with other weights, from
another image or behind other text, and the update learns about a model that drew nothing, without
an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

LIMITS = {"float32": 1e-3, "bfloat16": 0.05}
"""Largest mean difference of a completion token's log-probability between drawing and update that
rounding explains, by `hardware.precision`."""

_TIMES_ROUNDING = 2.0
"""The same for a model in which rounding makes more of a difference: see `rounding`."""

_DRAWN = "sampling_per_token_logps"
_WEIGHT = "importance_sampling_ratio"
"""Fields of TRL's batch; the second where it weighs the loss of vLLM's completions."""

_MEAN, _MOST = (f"sampling/sampling_logp_difference/{kind}" for kind in ("mean", "max"))
"""TRL's metrics, which it logs where it weighs."""


class SamplingCheck(GRPOTrainer):
    """TRL 1.16's trainer with this comparison in every step, before its update.

    The log-probabilities are those that the loss is computed from, while the weights are those that
    drew. Completions are drawn without dropout: where there is any, those of the first questions of
    a step are computed again without. Overrides: `_generate_and_score_completions`,
    `_compute_loss` and `_get_per_token_logps_and_entropies`, in whose place a subclass calls
    `compare_with_drawn`.
    """

    # TRL and transformers assign these without a type or under a wider one.
    accelerator: Any  # `gather` and `reduce` return what they get, which their types do not say
    args: GRPOConfig
    model: PreTrainedModel | PeftModel

    def __init__(self, *args: Any, precision: str, **settings: Any) -> None:
        """`precision` is `hardware.precision`; the rest goes to TRL."""
        self._precision = precision
        self._drawn_at = -1
        """The optimizer step whose weights drew the completions."""
        self._drawn: Tensor | None = None
        """(rows, tokens): log-probabilities when they were drawn, NaN for what is no token; of the
        rows whose loss is being computed, while the weights are those that drew."""
        self._compared = (0.0, 0.0, 0.0)
        """In this step (sum of the differences, number of tokens, largest difference)."""
        self.rounding = 0.0
        """Mean difference of the update's log-probabilities from their own in a batch of another
        shape, where it was measured; large with random weights."""
        super().__init__(*args, **settings)
        self._has_dropout = any(map(_drops, self.model.modules()))

    def likely_causes(self) -> str:
        """Why this engine may draw from another model, and what to do."""
        raise NotImplementedError

    def draws_from_all_tokens(self) -> bool:
        """Whether the engine gives log-probabilities among all tokens, as the update has them."""
        return True

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self._drawn_at != self.state.global_step:
            self._drawn_at, self._compared = self.state.global_step, (0.0, 0.0, 0.0)
        if _WEIGHT in batch and self.draws_from_all_tokens():  # TRL has both, and logs them
            self._refuse_other_model(batch["old_per_token_logps"] - _drawn(batch))
        return batch

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        drawn_by_these = self.model.training and self._drawn_at == self.state.global_step
        comparable = _DRAWN in inputs and _WEIGHT not in inputs and self.draws_from_all_tokens()
        self._drawn = _drawn(inputs) if comparable and drawn_by_these else None
        if not self.use_vllm:  # TRL's masks of `off_policy_mask_threshold` would read it
            inputs = {name: value for name, value in inputs.items() if name != _DRAWN}
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._drawn = None

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, *inputs: Any, **settings: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        score = super()._get_per_token_logps_and_entropies
        scored = score(model, *inputs, **settings)
        self.compare_with_drawn(model, scored[0], lambda: score(model, *inputs, **settings)[0])
        return scored

    def compare_with_drawn(
        self, model: nn.Module, logps: Tensor, again: Callable[[], Tensor]
    ) -> None:
        """Compare the log-probabilities (rows, tokens) that the loss is computed from, or, where
        the model has dropout, those of `again`; NaN for rows that are not compared.

        Raises:
            RuntimeError: they differ by more than the precision explains, with the likely causes.
        """
        if self._drawn is None or not torch.is_grad_enabled():
            return
        if self._has_dropout:
            if self._compared[1]:
                return
            with torch.no_grad(), without_dropout(model):
                logps = again()
        self._refuse_other_model(logps.detach() - self._drawn)
        total, tokens, most = self._compared
        if tokens:
            metrics = self._metrics["train"]
            metrics[_MEAN], metrics[_MOST] = [total / tokens], [most]

    def _refuse_other_model(self, differences: Tensor) -> None:
        """Add differences (rows, tokens) to those of this step; NaN for tokens without one."""
        differences = differences.float().abs()
        known = ~differences.isnan()
        differences = differences.nan_to_num(0.0)
        own = torch.stack([differences.sum(), known.sum(), differences.max()])
        sums, counts, largest = self.accelerator.gather(own[None]).T.tolist()
        total, tokens, most = self._compared
        total, tokens = total + sum(sums), tokens + sum(counts)
        self._compared = total, tokens, max(most, *largest)
        limit = max(LIMITS[self._precision], _TIMES_ROUNDING * self.rounding)
        if tokens and not total / tokens <= limit:
            raise RuntimeError(
                f"{self._engine_name()} draws from another model than the update: the "
                f"log-probabilities of {int(tokens):,} tokens differ by {total / tokens:.2g} on "
                f"average (at most {limit:.2g} with hardware.precision="
                f"{self._precision}) and {self._compared[2]:.2g} at most. "
                f"Likely causes: {self.likely_causes()}"
            )

    def _engine_name(self) -> str:
        return "rollout=vllm" if self.use_vllm else "rollout=grouped"


def _drawn(batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities of the batch's tokens when they were drawn, NaN elsewhere."""
    return batch[_DRAWN].masked_fill(batch["completion_mask"] == 0, torch.nan)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.p > 0


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """The rest of the model stays in training, by which TRL tells training and evaluation apart."""
    active = [m for m in model.modules() if _drops(m) and m.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()
