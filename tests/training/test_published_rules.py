"""One step's gradient is that of the published GRPO rule, whatever TRL's defaults have become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medreason import data, phantom
from medreason.config import Config
from medreason.models.load import load_model, load_processor
from medreason.runs.run_folder import RunFolder
from medreason.samples import TASKS
from medreason.training import grpo

BETA = 0.04


def published(logps: Tensor, reference: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """GRPO's loss as Med-R1's code computes it on-policy: k3 of the KL divergence without a weight,
    mean over the tokens of a completion, then over completions. Source: arXiv:2402.03300, eq. 3
    and 4; the same in trl 0.14."""
    gap = reference - logps
    kl = gap.exp() - gap - 1
    gain = (logps - logps.detach()).exp() * advantages[:, None]
    per_token = -(gain - BETA * kl)
    return ((per_token * mask).sum(1) / mask.sum(1)).mean()


@pytest.mark.parametrize("engine", ["trl", "grouped"])
@pytest.mark.parametrize(("corrected", "equal"), [("false", True), ("true", False)])
def test_kl_of_one_step_is_the_published_one(
    composed: Callable[..., Config], tmp_path: Path, corrected: str, equal: bool, engine: str
) -> None:
    settings = ["modality=ct", f"rollout={engine}"]
    if corrected == "true":  # TRL 1.16's default
        settings.append("method.trl.use_bias_correction_kl=true")
    config = composed(*settings)
    samples = phantom.load(tmp_path, train_images=4, test_images=1, seed=0)
    trainer = grpo.trainer(
        config,
        data.select(samples, "train", ["ct"], TASKS),
        load_model(config.model, config.hardware, full_precision=True),
        load_processor(config.model),
        RunFolder(tmp_path / "run"),
        [],
    )
    draw = torch.Generator().manual_seed(0)
    logps = (-3 * torch.rand(4, 6, generator=draw)).requires_grad_()
    reference = -3 * torch.rand(4, 6, generator=draw)
    advantages = torch.tensor([1.0, -0.5, 0.2, -0.7])
    mask = (torch.arange(6) < torch.tensor([6, 3, 1, 5])[:, None]).int()
    expected = torch.autograd.grad(published(logps, reference, advantages, mask), logps)[0]
    trainer.current_gradient_accumulation_steps = 1
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
        logps,
        torch.zeros_like(logps),
        None,
    )
    inputs = {
        "prompt_ids": torch.ones(4, 2, dtype=torch.long),
        "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": torch.ones(4, 6, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    gradient = torch.autograd.grad(trainer._compute_loss(trainer.model, inputs), logps)[0]
    assert torch.allclose(gradient, expected, atol=1e-7) is equal
