"""From a composed configuration, or a file in a run folder, to a typed one, and back to a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from medreason import moved
from medreason.config import checks, key_names, trainer_settings
from medreason.config.data import Handling
from medreason.config.schema import Config, Reward
from medreason.console import first_line

_PACKAGE = Path(__file__).resolve().parents[1]
_STARTS_OF_NUMBERS = tuple("+-.0123456789")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster
Group = TypeVar("Group")

CONF = next(p / "conf" for p in (_PACKAGE, _PACKAGE.parent) if (p / "conf").exists())
"""The configuration folder: in the package when installed, beside it in a checkout."""

_schema = OmegaConf.structured(Config)
for _group in ("modality", "task", "data", "reward"):
    # OmegaConf deletes no key of a typed group, which `~modality.ct` asks for, and Hydra recommends
    # `+data.key=...` for a key that no data set has; `load` refuses unknown keys in their place.
    OmegaConf.set_struct(_schema[_group], False)
ConfigStore.instance().store(name="schema", node=_schema)


def load(
    composed: DictConfig, choices: dict[str, str] | None = None, typed: Sequence[str] = ()
) -> Config:
    """The typed configuration of a composed one; `choices` and `typed`: see `Config`.

    Raises:
        ValueError: a value is missing, breaks a rule or has a key that the schema has not; the
            message names key, value and remedy.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
    except InterpolationResolutionError as error:
        reason = first_line(error)
        raise ValueError(
            f"{error.full_key}: {reason}; set that key, or {error.full_key}=... itself"
        ) from error
    if missing:
        raise ValueError(f"{missing[0]} has no value; set {missing[0]}=... on the command line")
    # `+group.key=value` would add to a typed group what nothing reads.
    for key, problem in _key_problems(Config, composed):
        if problem == "unknown":
            key_names.refuse_unknown(key)
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    trainer_settings.check({str(key): value for key, value in values.items()})
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    checks.users_functions_are_known(config)
    config.choices = dict(choices or config.choices)
    config.typed = [*typed]
    return config


def read(path: Path) -> Config:
    """The configuration in a run folder, as `write` left it.

    A user's own functions are not imported: see `checks.users_functions_are_known`. Without
    OmegaConf, whose merge takes 20 times as long: a report reads a thousand of them.

    Raises:
        ValueError: the file is cut off, or another version of the schema wrote it.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        problems = list(_key_problems(Config, values))
        if not problems:
            return _typed(Config, values)
    except (yaml.YAMLError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable configuration ({reason})") from error
    listed = ", ".join(
        f"{key} is {problem}" + (f" (now {moved.KEYS[key]})" if key in moved.KEYS else "")
        for key, problem in problems
    )
    raise ValueError(
        f"{path}: another version of medreason wrote it: {listed}; use the commit that "
        "environment.json in the same folder names, or train and evaluate again under this version"
    )


def _key_problems(kind: type, values: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, unknown or missing) wherever a mapping has not exactly the keys of the schema; without
    what `moved.ADDED` lets be missing."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{key or 'the file'} is not a mapping; it is empty or cut off")
    types = key_names.types_of(kind)
    for name in dict.fromkeys([*types, *values]):
        path = f"{key}.{name}" if key else str(name)
        if name in types and name not in values and path in moved.ADDED:
            continue
        if name not in types or name not in values:
            yield path, "missing" if name in types else "unknown"
        elif dataclasses.is_dataclass(types[name]):
            yield from _key_problems(types[name], values[name], path)
        elif types[name] == dict[str, Reward]:
            for reward in values[name]:
                yield from _key_problems(Reward, values[name][reward], f"{path}.{reward}")
        elif path == "data":
            shared = (field.name for field in dataclasses.fields(Handling))
            yield from ((f"data.{k}", "missing") for k in shared if k not in values[name])


def _typed(kind: type[Group], values: dict[str, Any]) -> Group:
    """A dataclass of the schema from a mapping that has exactly its keys."""
    types = key_names.types_of(kind)
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(types[name]):
            fields[name] = _typed(types[name], value)
        elif types[name] == dict[str, Reward]:
            fields[name] = {key: _typed(Reward, reward) for key, reward in value.items()}
        else:
            fields[name] = value
    return kind(**fields)


class _Dumper(yaml.SafeDumper):
    """Quotes what another reader of YAML takes for a number (`1e5`), or what no reader keeps."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = text[:1] not in _STARTS_OF_NUMBERS and text.replace("\n", "").isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if is_plain else '"')


_Dumper.add_representer(str, _text)


def write(config: Config, path: Path) -> None:
    """Write a configuration that `read`, OmegaConf and readers of YAML 1.2 read back equal."""
    text = yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    path.write_text(text, encoding="utf-8")
