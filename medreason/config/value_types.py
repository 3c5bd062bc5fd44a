"""Values of the command line and of files of options, compared with the types of the schema."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, make_dataclass
from typing import Any, get_origin

from omegaconf import MISSING, OmegaConf, ValidationError
from omegaconf.errors import OmegaConfBaseException

from medreason.config import annotations, key_names
from medreason.config.schema import Reward

_PLAIN = int | float | str | list | dict | None
_MOST_SHOWN = 60  # characters of a value


def refuse_other_type(key: str, value: object, typed: str | None = None) -> None:
    """Refuse a value that the schema does not take, of which OmegaConf says so in four lines.

    `typed` is the value as it stands on the command line; None in a file.

    Raises:
        ValueError: with key, value, the type that is wanted and what to write.
    """
    kind = key_names.type_of(key)
    if kind is Any or not isinstance(value, _PLAIN) or "${" in str(value) or value == MISSING:
        return  # or range(1,3) of a sweep
    holds_keys = is_dataclass(kind) or kind == dict[str, Reward]
    if isinstance(value, dict) and holds_keys:
        for inner, leaf in key_names.leaves(value, key):
            key_names.refuse_unknown(inner)
            refuse_other_type(inner, leaf, None if typed is None else str(leaf))
        return
    if not holds_keys and _takes(kind, value):
        return
    shown = _shown(key, value, typed)
    if holds_keys or get_origin(kind) is dict:
        raise ValueError(f"{shown} is no mapping of keys; {_key_below(key, kind, value, typed)}")
    if get_origin(kind) is list and not isinstance(value, list | dict | None):
        element = f"{key}=[{typed}]" if typed is not None else f"{_leaf(key)}: [{_yaml(value)}]"
        verb = "write" if typed is None else "type"
        raise ValueError(f"{shown} is no list; {verb} {element}")
    wanted = annotations.in_words(_name(kind))
    raise ValueError(f"{shown}; it takes {wanted}{_one(key, value)}")


def _takes(kind: object, value: object) -> bool:
    """Whether OmegaConf would convert the value to a number, text, list or mapping of the schema;
    of other types it is left to say so itself."""
    if type(value) is kind:
        return True
    try:
        node = OmegaConf.structured(make_dataclass("Node", [("value", kind, MISSING)]))
    except OmegaConfBaseException:
        return True
    try:
        node.value = value
    except ValidationError:
        return False
    return True


def _shown(key: str, value: object, typed: str | None) -> str:
    if typed is not None:
        return f"{key}={typed}"
    text = _yaml(value)
    return f"{key}: {text if len(text) <= _MOST_SHOWN else f'{text[: _MOST_SHOWN - 3]}...'}"


def _yaml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _name(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind)


def _one(key: str, value: object) -> str:
    """`: write NAME: "..."`, where a list of one text stands for that text."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return f": write {_leaf(key)}: {_yaml(value[0])}"
    return ""


def _key_below(key: str, kind: object, value: object, typed: str | None) -> str:
    """What to write where a mapping is wanted."""
    text = _yaml(value) if typed is None else typed

    def set_to(name: str, what: str) -> str:
        if typed is None:
            return f"write {_leaf(key)}: {{{name}: {what}}}"
        return f"type {key}.{name}={what}"

    if kind is Reward:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"for the weight of the reward, {set_to('weight', text)}"
        return f"a reward takes {', '.join(field.name for field in fields(Reward))}"
    if key.startswith("reward.") and isinstance(value, str):
        return f"for a function, {set_to('_target_', str(value) if typed is None else text)}"
    if key == "second_judge":
        return f"a judge is chosen by judge@second_judge={value}"
    names = [field.name for field in fields(kind)] if is_dataclass(kind) else []
    return f"set a key of it, {', '.join(f'{key}.{name}' for name in names) or f'{key}.NAME'}"
