"""A configuration composed from Python, as the command line composes it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.conf import HydraConf
from omegaconf import ListConfig, OmegaConf, open_dict

from medreason.config import options
from medreason.config.files import CONF, load
from medreason.config.schema import Config


def choices(chosen: Mapping[str, str | None]) -> dict[str, str]:
    """Group -> option, of what Hydra chose."""
    return {
        group.rpartition("@")[2]: option  # judge@second_judge: MLflow takes no @ in a name
        for group, option in chosen.items()
        if not group.startswith(("hydra/", "model/")) and isinstance(option, str)
    }


def typed(hydra: HydraConf) -> list[str]:
    """The words of a job's command: `--config-dir` where it was given, and the overrides."""
    # Not resolved: a word may be `outputs=${sweep}/x`.
    words = OmegaConf.to_container(cast(ListConfig, hydra.overrides.task), resolve=False)
    assert isinstance(words, list)
    return [*folder_flags(hydra), *map(str, words)]


def folder_flags(hydra: HydraConf) -> list[str]:
    """`--config-dir DIR` where a command was given it."""
    sources = hydra.runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    shown = [min(folder, os.path.relpath(folder), key=len) for folder in folders]
    return [word for folder in shown for word in ("--config-dir", folder)]


def compose(overrides: Iterable[str] = ()) -> Config:
    """The checked configuration of `python -m medreason OVERRIDES`; nothing is run.

    Raises:
        ValueError: a name or a value is wrong; the message has the key and the remedy.
    """
    words = list(overrides)
    options.check(words, [CONF])
    options.refuse_sweep(words)
    words = list(map(options.for_hydra, words))
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = hydra_compose("config", overrides=words, return_hydra_config=True)
    chosen = choices(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    return load(composed, chosen, words)
