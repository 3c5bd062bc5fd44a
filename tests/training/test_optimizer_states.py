"""A run resumes with other optimizer states: the moments are converted, and its updates go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit, GlobalOptimManager
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medreason.config import Config
from medreason.runs.files import read_json, write_json
from medreason.runs.run_folder import RunFolder
from medreason.training import checkpoints, run
from medreason.training.checkpoints import PortableCheckpoints

OPTIMIZERS = {"float32": (AdamW, "adamw_torch_fused"), "8bit": (AdamW8bit, "adamw_bnb_8bit")}


class Small(nn.Module):
    """Tensors that have 8-bit states, and those that keep float32: embeddings and small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 96)
        self.head = nn.Linear(96, 80)
        manager = GlobalOptimManager.get_instance()
        manager.initialize()  # it tells weights by their ids, those of earlier tests among them
        manager.register_module_override(self.embedding, "weight", {"optim_bits": 32})

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids)).log_softmax(-1)


def trained(states: str, model: nn.Module, steps: int) -> tuple[Optimizer, LambdaLR]:
    optimizer = OPTIMIZERS[states][0](model.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(steps):
        update(model, optimizer, step)
        schedule.step()
    return optimizer, schedule


def update(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    draws = torch.Generator().manual_seed(step)
    ids, labels = torch.randint(64, (2, 32), generator=draws)
    nn.functional.nll_loss(model(ids), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def moments(optimizer: Optimizer) -> list[Tensor]:
    saved = optimizer.state_dict()
    converted = checkpoints.optimizer_states.in_float32(saved, optimizer.param_groups)
    return [
        values[name] for values in converted["state"].values() for name in ("exp_avg", "exp_avg_sq")
    ]


@pytest.mark.parametrize(
    ("before", "after", "allowed", "fsdp"),
    [
        ("float32", "8bit", 0.02, False),
        ("8bit", "float32", 1e-7, False),
        ("8bit", "float32", 1e-7, True),
        ("float32", "float32", 0.0, True),
    ],
)
def test_moments_of_a_checkpoint_are_those_a_run_goes_on_with(
    tmp_path: Path, before: str, after: str, allowed: float, fsdp: bool
) -> None:
    torch.manual_seed(0)
    model = Small()
    optimizer, schedule = trained(before, model, steps=5)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(schedule.state_dict(), tmp_path / "scheduler.pt")
    resumed, next_schedule = trained(after, model, steps=0)
    trainer: Any = SimpleNamespace(
        is_deepspeed_enabled=False,
        is_fsdp_enabled=fsdp,
        model=model,
        args=SimpleNamespace(optim=OPTIMIZERS[after][1]),
        optimizer=resumed,
        _torch_optimizer=resumed,
        lr_scheduler=next_schedule,
    )
    PortableCheckpoints._load_optimizer_and_scheduler(trainer, str(tmp_path))
    for old, new in zip(moments(optimizer), moments(resumed), strict=True):
        assert (old - new).abs().max() <= allowed * old.abs().max()
    rates = [group["lr"] for group in resumed.param_groups]
    assert rates == next_schedule.get_last_lr() == [1e-3 / 6]
    start = [parameter.clone() for parameter in model.parameters()]
    update(model, resumed, 5)
    moved = [now - then for now, then in zip(model.parameters(), start, strict=True)]
    for parameter, then in zip(model.parameters(), start, strict=True):
        parameter.data.copy_(then)
    update(model, optimizer, 5)
    for now, then, step in zip(model.parameters(), start, moved, strict=True):
        assert (now - then - step).norm() <= 0.1 * step.norm()


def test_checkpoint_of_another_version_is_refused_before_a_model_is_loaded(
    composed: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    checkpoint = folder.checkpoints / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    checkpoints.seal(checkpoint, train_key="", score=None, processes=1, deepspeed=False)
    seal = read_json(checkpoint / checkpoints.SEAL)
    write_json(
        checkpoint / checkpoints.SEAL, seal | {"packages": seal["packages"] | {"trl": "1.15.0"}}
    )
    monkeypatch.setattr(run, "build", lambda *_: pytest.fail("a model is loaded"))
    with pytest.raises(ValueError, match=r"written by trl 1\.15\.0"):
        run.train(composed("method=sft"), [], folder, lambda *_: None)
