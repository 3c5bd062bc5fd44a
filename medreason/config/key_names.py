"""The keys of the configuration by dotted name: which exist, and which is near a wrong one."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from medreason.config.annotations import fields_of
from medreason.config.data import Handling
from medreason.config.schema import Config, Reward
from medreason.config.upstream import DERIVED, LIMITS, UPSTREAM, elsewhere

_NEAR = 0.7
_LONG_ENOUGH = 4  # letters of a name that is looked for inside longer ones


@functools.cache
def types_of(kind: type) -> Mapping[str, Any]:
    """Field -> type, of a class of the schema."""
    return get_type_hints(kind)


def type_of(key: str) -> object:
    """The type that the schema gives a key; `Any` below a mapping whose keys it does not know.

    Raises:
        ValueError: there is no such key; with the nearest that there is.
    """
    kind: Any = Config
    parts = key.split(".")
    for i, part in enumerate(parts):
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif kind is Any:
            return Any
        elif not is_dataclass(kind):
            raise ValueError(
                f"{key} is unknown: {'.'.join(parts[:i])} takes no keys; in a file, a text with "
                "braces stands in quotes"
            )
        elif kind is Reward and part not in types_of(Reward):
            raise ValueError(_no_part_of_reward(key, part))
        elif part in types_of(kind):
            kind = types_of(kind)[part]
        else:
            above, known = ".".join(parts[:i]), ", ".join(types_of(kind))
            raise ValueError(
                f"{'.'.join(parts[: i + 1])} is unknown"
                + (hint(key) or f"; the keys {f'of {above}' if above else 'are'}: {known}")
            )
    return kind


def _no_part_of_reward(key: str, part: str) -> str:
    """A function and its settings stand below `score`."""
    known = types_of(Reward)
    near = difflib.get_close_matches(part, known, n=1, cutoff=_NEAR)
    place, _, inside = key.partition(f".{part}")
    meant = f"{place}.{near[0]}" if near else f"{place}.score.{part}{inside}"
    return f"{key} is unknown; did you mean {meant}? A reward takes {', '.join(known)}"


def refuse_unknown(key: str) -> None:
    """Raise a ValueError where neither the schema nor TRL or PEFT has the key, or where medreason
    alone sets it."""
    type_of(key)
    for group, classes in UPSTREAM.items():
        name = key.removeprefix(f"{group}.").partition(".")[0]
        known = _upstream_fields(group)
        if not key.startswith(f"{group}.") or not known:
            continue
        if name not in known:
            raise ValueError(f"{group}.{name} is unknown to {' and '.join(classes)}{hint(key)}")
        if name.startswith("vllm_") and group != "rollout.vllm":
            raise ValueError(f"{key} belongs to rollout=vllm; set rollout.vllm.{name}")
        if group != "adapter":
            refuse_derived(f"{group}.{name}")


def refuse_derived(key: str) -> None:
    """Raise a ValueError where medreason alone sets a field of TRL's."""
    source = DERIVED.get(key.rpartition(".")[2])
    if source is not None:
        remedy = f"leave it out and set {source}" if source else "leave it out"
        raise ValueError(f"{key} is derived by medreason; {remedy}")


def hint(key: str) -> str:
    """`; did you mean ...?` with the key whose name is nearest; empty where none is near."""
    leaf = key.rpartition(".")[2]
    if known := elsewhere(key):
        return known
    names = _by_leaf()
    near = {
        *difflib.get_close_matches(leaf, names, n=5, cutoff=_NEAR),
        *(name for name in names if _stands_for(leaf, name)),
    }
    keys = {candidate for name in near for candidate in names[name]}
    nearest = difflib.get_close_matches(key, sorted(keys), n=1, cutoff=0)
    if not nearest:
        return ""
    group, *inside = key.split(".")
    name = inside[0] if group == "reward" and inside else "NAME"
    return f"; did you mean {_instead(nearest[0]).replace('NAME', name)}?"


def _stands_for(short: str, name: str) -> bool:
    """Whether a short name is the initials or a part of a longer one that users often set."""
    upstream = _by_leaf()[name] & {f"method.trl.{name}", f"adapter.{name}"}
    if upstream and name not in LIMITS and not DERIVED.get(name):
        return False
    initials = "".join(word[:1] for word in name.split("_"))
    return short == initials or (len(short) >= _LONG_ENOUGH and short in name)


def _instead(key: str) -> str:
    """The key to set in place of a field of TRL that follows from it."""
    return DERIVED.get(key.removeprefix("method.trl."), "") or key


@functools.cache
def _by_leaf() -> Mapping[str, set[str]]:
    """Last part of a key -> the keys that end in it."""
    found: dict[str, set[str]] = {}
    upstream = [
        f"{group}.{name}"
        for group in ("method.trl", "adapter")
        for name in _upstream_fields(group)
        if DERIVED.get(name) != ""
    ]
    for key in [*_keys(Config, ""), *upstream]:
        found.setdefault(key.rpartition(".")[2], set()).add(key)
    return found


def _upstream_fields(group: str) -> set[str]:
    return {field for class_ in UPSTREAM[group] for field in fields_of(class_)}


def _keys(kind: type, above: str) -> Iterator[str]:
    for name, type_ in types_of(kind).items():
        key = f"{above}{name}"
        yield key
        if isinstance(type_, type) and is_dataclass(type_):
            yield from _keys(type_, f"{key}.")
        elif type_ == dict[str, Reward]:
            yield from _keys(Reward, f"{key}.NAME.")
    if kind is Config:
        yield from (f"data.{field.name}" for field in fields(Handling))


def leaves(values: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of all that is no mapping."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, values
