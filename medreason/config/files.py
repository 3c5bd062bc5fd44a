"""From a composed configuration or a frozen file to a typed one, and back to a file."""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf

from medreason.config.schema import Config, Reward

_HERE = Path(__file__).resolve().parents[1]
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster
Group = TypeVar("Group")

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
    """The configuration frozen in a run folder, as `write` left it.

    Without OmegaConf, whose merge takes 20 times as long: a report reads a thousand of them.

    Raises:
        ValueError: cut off, or written under another version of the schema.
    """
    try:
        return _typed(Config, yaml.load(path.read_text(), Loader=_LOADER))
    except (yaml.YAMLError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable configuration ({reason})") from error


def _typed(kind: type[Group], values: object, key: str = "") -> Group:
    """A dataclass of the schema from a mapping that has all its fields and no others."""
    if not isinstance(values, dict):
        raise ValueError(f"{key or 'the file'} is not a mapping; it is empty or cut off")
    types = _field_types(kind)
    if strangers := sorted(types.keys() ^ values.keys()):
        found = "is unknown" if strangers[0] in values else "is missing"
        raise ValueError(
            f"{'.'.join(filter(None, (key, strangers[0])))} {found}: "
            "another version of medreason wrote it"
        )
    fields: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{key}.{name}" if key else name
        if dataclasses.is_dataclass(types[name]):
            fields[name] = _typed(types[name], value, path)
        elif types[name] == dict[str, Reward]:
            fields[name] = {k: _typed(Reward, v, f"{path}.{k}") for k, v in value.items()}
        else:
            fields[name] = value
    return kind(**fields)


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def write(config: Config, path: Path) -> None:
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True, width=100))
