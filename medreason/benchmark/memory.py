"""The memory of a training step: estimated from shapes, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medreason.config import Config
from medreason.models import device
from medreason.runs.process_memory import private_bytes
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training import memory_check, memory_estimate
from medreason.training.run import build


def compare(config: Config, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
    """Bytes of a trial step of the longest samples, estimated and measured.

    On CUDA what torch allocated; on a CPU private memory beyond what the process had before the
    model was loaded.
    """
    on_cpu = config.hardware.accelerator == "cpu"
    device.join(config.hardware)
    device.tune_for_cpu(config.hardware)  # as the worker does
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    before = private_bytes() if on_cpu else 0
    trainer = build(config, samples, RunFolder(folder / "memory"), [])
    if on_cpu:
        # Loaded weights are pages of their file, which are not private memory until an update
        # writes them. A trial step updates nothing, so they are copied here.
        for model in (trainer.model, getattr(trainer, "ref_model", None)):
            for weight in model.parameters() if model is not None else ():
                weight.data = weight.data.clone()
    peak, batch = memory_check.trial_step(config, trainer, samples)
    keeps_graphs = memory_check.keeps_graphs(trainer)
    parts = memory_estimate.estimate(config, batch, keeps_graphs=keeps_graphs)
    estimate = parts.peak - (memory_estimate.IMPORTED if on_cpu else 0)
    return {
        "batch": asdict(batch),
        "parts": asdict(parts),
        "imported": before,
        "estimate": estimate,
        "measured": peak - before,
        "ratio": estimate / (peak - before),
    }
