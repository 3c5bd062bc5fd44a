"""GRPO trainings in processes of their own, whose completions are recorded and drawn again.

vLLM names itself rank 0 of its process, which no later test of that process could undo.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import drawn_phantoms
import torch
from commands import SERVER, start_as_python
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from trl import GRPOTrainer

from medreason import config as configuration
from medreason import data
from medreason.config import CONF
from medreason.models.load import load_model, load_processor
from medreason.runs.run_folder import RunFolder
from medreason.training import grpo

SMALL = (
    *("method=grpo", "modality=ct", "data.train_images=8", "data.test_images=1", "tracking=none"),
    *("method.prompts_per_step=4", "method.trl.num_generations=4", "hardware.threads=1"),
    *("hardware.per_device_prompts=2", "method.trl.max_completion_length=16"),
    *("method.trl.learning_rate=1e-4", "method.trl.max_steps=5"),
    # Replies of this form end within 16 tokens, so some of them are right and some are not.
    *("prompt=no_think", "reward=no_think"),
)


@dataclass
class Training:
    """What a training drew and learned."""

    completions: list[list[list[int]]] = field(default_factory=list)
    """Token ids of the rows of each rollout."""
    before: dict[str, Tensor] = field(default_factory=dict)
    """Trained weights, as is `after`."""
    after: dict[str, Tensor] = field(default_factory=dict)
    logs: list[dict[str, float]] = field(default_factory=list)
    encoded: list[int] = field(default_factory=list)
    """Images that vLLM's vision tower encoded in each rollout."""
    prompts: list[int] = field(default_factory=list)
    """Tokens of all rows' prompts in each rollout."""
    prefilled: list[int] = field(default_factory=list)
    """Tokens in the longest of vLLM's passes of each rollout: what it computes of the prompts."""

    @property
    def moved(self) -> float:
        return distance(self.before, self.after)


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Euclidean, over all weights."""
    return torch.stack([(first[name] - second[name]).norm() for name in first]).norm().item()


def trained(folder: Path, *overrides: str, drawn: Training | None = None) -> Training:
    """A training with these overrides; its completions are those of `drawn`, where one is given."""
    folder.mkdir()
    path, given = folder / "training.pt", folder / "drawn.pt"
    if drawn:
        torch.save(drawn.completions, given)
    process = SERVER.Process(
        target=_train, args=(folder, overrides, given if drawn else None, drawn_phantoms.folder)
    )
    process.start()
    process.join()
    assert process.exitcode == 0, (folder / "output.txt").read_text()
    return torch.load(path, weights_only=False)


def _train(
    folder: Path, overrides: tuple[str, ...], drawn: Path | None, phantoms: Path | None
) -> None:
    output = os.open(folder / "output.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    start_as_python()
    torch.set_num_threads(1)
    drawn_phantoms.share(phantoms)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = configuration.load(
            compose("config", overrides=[f"outputs={folder}/outputs", *SMALL, *overrides])
        )
    trainer = grpo.trainer(
        config,
        data.trained_on(config, data.samples_of(config)),
        load_model(config.model, config.hardware, full_precision=not config.adapter),
        load_processor(config.model),
        RunFolder(folder),
        [],
    )
    training = Training(before=_trained_weights(trainer))
    if drawn is None:
        _record(trainer, training)
    else:
        rollouts = iter(torch.load(drawn))
        trainer._generate_single_turn = lambda *_, **__: (next(rollouts), None)
    if trainer.use_vllm:
        _count_passes(trainer, training)
    trainer.train()
    training.after = _trained_weights(trainer)
    training.logs = [row for row in trainer.state.log_history if "loss" in row]
    torch.save(training, folder / "training.pt")


def _trained_weights(trainer: GRPOTrainer) -> dict[str, Tensor]:
    assert isinstance(trainer.model, nn.Module)
    named = trainer.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def _record(trainer: GRPOTrainer, training: Training) -> None:
    draw: Callable[..., tuple[list[list[int]], Any]] = trainer._generate_single_turn

    def recorded(
        prompt_ids: list[list[int]], *inputs: object, **settings: object
    ) -> tuple[list[list[int]], Any]:
        training.prompts.append(sum(map(len, prompt_ids)))
        training.encoded.append(0)
        training.prefilled.append(0)
        ids, logps = draw(prompt_ids, *inputs, **settings)
        training.completions.append([[*row] for row in ids])
        return ids, logps

    trainer._generate_single_turn = recorded


def _count_passes(trainer: GRPOTrainer, training: Training) -> None:
    engine: Any = trainer.vllm_generation.llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    schedule = scheduler.schedule

    def counted(*inputs: object, **settings: object) -> object:
        scheduled: Any = schedule(*inputs, **settings)
        images = scheduled.scheduled_encoder_inputs.values()
        training.encoded[-1] += sum(map(len, images))
        tokens = scheduled.total_num_scheduled_tokens
        training.prefilled[-1] = max(training.prefilled[-1], tokens)
        return scheduled

    scheduler.schedule = counted
