"""Run by test_two_processes: two GRPO steps on completions that depend on prompt and place alone.

usage: [torchrun] grpo_given_completions.py FOLDER PER_DEVICE_PROMPTS ROLLOUT

Rank 0 prints losses as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from hydra import compose, initialize_config_dir

import medreason.cli  # noqa: F401  registers the schema
from medreason import config as configuration
from medreason import data
from medreason.config import CONF
from medreason.models.load import load_model, load_processor
from medreason.runs.ledger import Folder
from medreason.training import grpo


def main() -> None:
    folder, per_device_prompts, rollout = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    state = PartialState(cpu=True)
    overrides = [
        *(f"outputs={folder}", "modality=ct", "data.train_images=8", "data.test_images=1"),
        f"hardware.devices={state.num_processes}",
        f"hardware.per_device_prompts={per_device_prompts}",
        f"rollout={rollout}",
        *("method.prompts_per_step=4", "method.trl.num_generations=4", "method.trl.max_steps=3"),
        *("method.trl.learning_rate=1e-3", "method.trl.max_completion_length=16"),
    ]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = configuration.load(compose("config", overrides=overrides))
    samples = data.select(
        data.load(config.data, folder / "cache"), "train", ["ct"], config.task.members
    )
    trainer = grpo.trainer(
        config,
        samples,
        load_model(config.model, config.hardware),
        load_processor(config.model),
        Folder(folder / f"run-{state.num_processes}-{state.process_index}"),
        [],
    )
    ends = trainer.eos_token_ids

    def given(prompt_ids: list[list[int]], *_: object, **__: object):  # noqa: ANN202
        """Of four completions of a prompt each differs, and none depends on the process."""
        completions = []
        for i, prompt in enumerate(prompt_ids):
            draw = torch.Generator().manual_seed(sum(prompt) * 4 + i % 4)
            tokens = torch.randint(20, 400, (3 + i % 4,), generator=draw).tolist()
            completions.append([*tokens, ends[0]])
        return completions, None

    trainer._generate_single_turn = given
    # Any reward that differs within a group will do.
    trainer.reward_funcs[0] = lambda completion_ids, **_: [
        float(sum(ids) % 7) for ids in completion_ids
    ]
    trainer.train()
    if state.is_main_process:
        logs = [row for row in trainer.state.log_history if "loss" in row]
        print(json.dumps([[row["loss"], row["grad_norm"], row["reward"]] for row in logs]))  # noqa: T201
    state.destroy_process_group()


if __name__ == "__main__":
    main()
