"""A training whose loss, gradients or weights are not finite fails; it is never done with 0 %."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import commands
import pytest

from medreason import data
from medreason.config import Config
from medreason.runs.run_folder import RunFolder
from medreason.training.run import train

Compose = Callable[..., Config]
SMALL = (
    *("modality=ct", "task=disease", "data.train_images=8", "data.test_images=1"),
    *("method.prompts_per_step=4", "method.trl.max_steps=3", "method.trl.warmup_steps=0"),
)
SAMPLED = (
    *("method=grpo", "prompt=no_think", "reward=no_think"),
    *("method.trl.num_generations=4", "method.trl.max_completion_length=12"),
)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("method=sft",), "step 2: loss is nan; .*learning_rate below 1e30"),
        (SAMPLED, "step 2: loss is nan; what helps: method.trl.learning_rate"),
        ((*SAMPLED, "rollout=trl"), "step 1: the model gives no probabilities to sample from"),
        # Finite in the file, infinite in float32; no further step shows it in a loss.
        (
            ("method=sft", "method.trl.learning_rate=1e39", "method.trl.max_steps=1"),
            r"step 1: \S+ has values that are not finite",
        ),
        (
            ("method=sft", "method.trl.learning_rate=1e39", "runs.checkpoint_steps=1"),
            r"step 1: \S+ has values that are not finite",
        ),
    ],
    ids=["sft", "grpo", "grpo of trl", "last step", "before a checkpoint"],
)
def test_absurd_rate_ends_the_training_with_step_and_remedy(
    composed: Compose, tmp_path: Path, overrides: tuple[str, ...], words: str
) -> None:
    config = composed(*SMALL, "method.trl.learning_rate=1e30", *overrides)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    samples = data.trained_on(config, data.load(config.data, tmp_path / "cache"))
    with pytest.raises(ValueError, match=f"^diverged at {words}"):
        train(config, samples, folder, lambda *_: None)
    assert not folder.state().trained
    assert not folder.model.exists()
    assert not list(folder.checkpoints.glob("checkpoint-*"))


def test_command_fails_and_records_why(tmp_path: Path) -> None:
    overrides = ("method=sft", "method.trl.learning_rate=1e30", "tracking=none")
    with socket.create_server(("", 0)) as other:  # a shell of a rank, and the port of its group
        ranks = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": str(other.getsockname()[1])}
        done = commands.medreason(*SMALL, *overrides, cwd=tmp_path, env=os.environ | ranks)
    assert done.returncode == 1
    assert "diverged at step 2: loss is nan; what helps: " in done.stderr
    (state,) = (tmp_path / "outputs/runs").glob("*/state.json")
    recorded = json.loads(state.read_text())
    assert (recorded["state"], recorded["trained"]) == ("failed", False)
    assert recorded["error"].startswith("diverged at step 2: loss is nan")
    assert not recorded["evaluations"]
