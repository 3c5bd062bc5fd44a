"""The memory of a training step: estimated from shapes, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from medreason.config import Config
from medreason.runs.process_memory import private_bytes, return_freed_blocks
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training import memory_check, memory_estimate
from medreason.training.run import build


def compare(config: Config, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
    """Bytes of a trial step of the longest samples, estimated and measured.

    On CUDA what torch allocated; on a CPU private memory beside what the process held before the
    model was loaded, weights included, which lie in their file's pages until an update writes them.
    """
    cpu = config.hardware.accelerator == "cpu"
    PartialState(cpu=cpu)
    if cpu and config.hardware.gradient_checkpointing:  # as the worker does
        return_freed_blocks()
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    before = private_bytes() if cpu else 0
    trainer = build(config, samples, RunFolder(folder / "memory"), [])
    if cpu:
        for model in (trainer.model, getattr(trainer, "ref_model", None)):
            for weight in model.parameters() if model is not None else ():
                weight.data = weight.data.clone()
    peak, batch = memory_check.trial_step(config, trainer, samples)
    expected = memory_estimate.estimate(config, batch)
    # Nothing is drawn in a trial step.
    estimate = replace(expected, cache=0).peak - (memory_estimate.IMPORTED if cpu else 0)
    return {
        "batch": asdict(batch),
        "parts": asdict(expected),
        "imported": before,
        "estimate": estimate,
        "measured": peak - before,
        "ratio": estimate / (peak - before),
    }
