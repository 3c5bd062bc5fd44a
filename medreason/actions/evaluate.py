"""`action=evaluate`: evaluate the model at `model.path` as it is: a base model, a trained one, an
adapter or a release."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medreason.actions import train
from medreason.config import Config, Method
from medreason.runs.outcomes import Outcome


def run(config: Config, label: str = "", said: Path | None = None) -> Outcome:
    """Evaluate without training, whatever `method` says."""
    untrained = Method(name="base", algorithm="none", prompts_per_step=1)
    return train.run(replace(config, method=untrained, adapter={}), label, said)
