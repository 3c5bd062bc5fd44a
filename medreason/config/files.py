"""From a composed configuration or a frozen file to a typed one, and back to a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from medreason.config.schema import Config

_HERE = Path(__file__).resolve().parents[1]


CONF = _HERE / "conf" if (_HERE / "conf").exists() else _HERE.parent / "conf"
"""The configuration folder: inside an installed wheel, beside the package in a checkout."""


def load(composed: DictConfig, choices: dict[str, str] | None = None) -> Config:
    """The typed configuration of a composed one.

    Raises:
        ValueError: a value is missing or breaks a rule; the message names key, value and remedy.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ValueError(f"{missing[0]} has no value; set {missing[0]}=... on the command line")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    config.choices = dict(choices or config.choices)
    return config


def read(path: Path) -> Config:
    """The configuration frozen in a run folder."""
    try:
        frozen = OmegaConf.load(path)
        return load(OmegaConf.merge(OmegaConf.structured(Config), frozen))  # pyright: ignore[reportArgumentType]
    except (yaml.YAMLError, OSError) as error:
        raise ValueError(f"{path}: not a readable configuration ({error})") from error


def write(config: Config, path: Path) -> None:
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True, width=100))
