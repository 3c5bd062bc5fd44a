"""One training: from the start model to the weights in the run folder, resumed where it stopped."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from medreason.config import Config
from medreason.models.load import load_model, load_processor
from medreason.runs.ledger import Folder
from medreason.samples import Sample
from medreason.training import grpo, sft
from medreason.training.recorder import Recorder


def train(
    config: Config, samples: Sequence[Sample], folder: Folder, progress: Callable[..., None]
) -> None:
    """Train, save to `folder.model` in one step, and drop the checkpoints, not needed any more."""
    began = time.monotonic()
    recorder = Recorder(folder, progress)
    build = sft.trainer if config.method.algorithm == "sft" else grpo.trainer
    trainer = build(
        config,
        samples,
        load_model(config.model, config.hardware, full_precision=not config.adapter),
        load_processor(config.model),
        folder,
        [recorder],
    )
    recorder.rollout_logs = getattr(trainer, "_logs", None)
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    unfinished = folder.path / "model.unfinished"
    trainer.save_model(str(unfinished))  # the processor too; writes on rank 0 alone
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        shutil.rmtree(folder.model, ignore_errors=True)
        unfinished.rename(folder.model)
        folder.update(trained=True, train_seconds=time.monotonic() - began)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    # Trainers hold themselves in cycles; the evaluation needs their memory.
    del trainer, recorder
    gc.collect()
    torch.cuda.empty_cache()


def last_checkpoint(folder: Folder) -> Path | None:
    """The newest whole checkpoint: trainer_state.json is written last, a torn one has none."""
    found = sorted(
        folder.checkpoints.glob("checkpoint-*"),
        key=lambda path: int(path.name.rpartition("-")[2]),
        reverse=True,
    )
    return next((path for path in found if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def trained_model(config: Config, folder: Folder) -> Config:
    """The configuration with the run's own weights as its model; of a base run, its start model."""
    if config.method.algorithm == "none":
        return config
    return replace(config, model=replace(config.model, path=str(folder.model), revision=None))
