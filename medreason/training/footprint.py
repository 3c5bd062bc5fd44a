"""The memory of a training step: estimated from shapes, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from accelerate import PartialState

from medreason.config import Config
from medreason.models import memory
from medreason.runs.ledger import Folder
from medreason.samples import Sample
from medreason.training import probe
from medreason.training.run import build


def compare(config: Config, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
    """Bytes of a trial step of the longest samples, estimated and measured.

    On CUDA what torch allocated; on a CPU what the process took beside what it held before the
    model was loaded.
    """
    cpu = config.hardware.accelerator == "cpu"
    PartialState(cpu=cpu)
    before = psutil.Process().memory_info().rss if cpu else 0
    peak, held = probe.run(config, build(config, samples, Folder(folder / "memory"), []), samples)
    expected = memory.estimate(config, held)
    return {
        "batch": asdict(held),
        "parts": asdict(expected),
        "estimate": expected.peak,
        "measured": peak - before,
        "ratio": expected.peak / (peak - before),
    }
