"""Values that are allowed and far outside of what their setting is used with: a sentence each."""

from __future__ import annotations

import os
from collections.abc import Iterator

from medreason.config import Config
from medreason.console import number_text

LARGEST_LEARNING_RATE = 1e-2
"""AdamW moves a weight by up to the learning rate in one update, and the weights of these models
are about 0.02 in size: this is half of that. Med-R1 and RARL train with 1e-6 to 2e-5, LoRA is
trained with 1e-3 at most."""
LARGEST_SHARE = 0.5


def notes(config: Config) -> list[str]:
    """Learning rate, share of validation and threads, each where it is too large to be meant."""
    return [*_learning_rate(config), *_share(config), *_threads(config)]


def _learning_rate(config: Config) -> Iterator[str]:
    rate = float(config.method.trl.get("learning_rate") or 0)
    optimizer = str(config.hardware.trl.get("optim") or config.method.trl.get("optim") or "adamw")
    if config.method.algorithm == "none" or "adam" not in optimizer:
        return
    if rate > LARGEST_LEARNING_RATE:
        yield (
            f"! method.trl.learning_rate={number_text(rate)} moves every weight by up to "
            f"{number_text(rate)} in an update, and weights are about 0.02 in size: the model "
            "forgets what it knows; the methods here use 1e-6 to 1e-3, and more than "
            f"{LARGEST_LEARNING_RATE:g} has no use"
        )


def _share(config: Config) -> Iterator[str]:
    settings = config.validation
    held_back = settings.is_on and settings.source == "train" and config.method.algorithm != "none"
    if held_back and settings.share > LARGEST_SHARE:
        yield (
            f"! validation.share={settings.share:g} holds back more training rows than it leaves "
            f"to train on, and at most validation.questions={settings.questions} of them are "
            "asked; 0.1 is usual"
        )


def _threads(config: Config) -> Iterator[str]:
    hardware, cores = config.hardware, os.cpu_count() or 1
    if hardware.accelerator == "cpu" and (hardware.threads or 0) > cores:
        yield (
            f"! hardware.threads={hardware.threads} on a machine with {cores} cores: threads wait "
            "for each other; hardware.threads=null divides the cores"
        )
