"""The functions that YAML names at `_target_`: imported, checked against their settings, bound."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from medreason import moved
from medreason.config.annotations import accepts, form
from medreason.config.data import Handling


def function(spec: dict[str, Any]) -> functools.partial[Any]:
    """The function at `_target_` with the settings beside it; can be pickled."""
    settings = {key: value for key, value in spec.items() if not key.startswith("_")}
    return functools.partial(target(spec["_target_"]), **settings)


def target(path: str) -> Callable[..., Any]:
    """The function at a dotted path.

    Raises:
        ValueError: it cannot be imported; the message has its new path where it has moved.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        if new := moved.new_path(path):
            raise ValueError(f"_target_={path!r} is now {new!r}") from error
        raise ValueError(
            f"_target_={path!r} is not a function that can be imported: {error}"
        ) from error


def _annotation(parameter: inspect.Parameter) -> str:
    if isinstance(parameter.annotation, str):
        return parameter.annotation
    if parameter.annotation is parameter.empty:
        return "object"
    return inspect.formatannotation(parameter.annotation)


def _known(key: str, name: str, parameters: Iterable[str]) -> str:
    """The end of a refusal: the nearest key and all there are."""
    names = [parameter for parameter in parameters if (key, parameter) != ("data", "cache")]
    names += [field.name for field in fields(Handling) if key == "data" and field.name not in names]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {key}.{near[0]}?" if near else ""
    other = "; for another data set, add data=NAME" if key == "data" and not near else ""
    return f"{hint}; it takes {', '.join(names) or 'no settings'}{other}"


def check(key: str, spec: dict[str, Any], positional: int = 0) -> None:
    """Refuse settings that the function at `_target_` does not take, or lacks.

    `positional` arguments come from the caller.

    Raises:
        ValueError: with the key and the settings it takes.
    """
    parameters = list(inspect.signature(target(spec["_target_"])).parameters.values())[positional:]
    known = {p.name: p for p in parameters}
    for name, value in spec.items():
        if name.startswith("_"):
            continue
        if name not in known:
            raise ValueError(
                f"{key}.{name} is unknown to {spec['_target_']}{_known(key, name, known)}"
            )
        annotation = _annotation(known[name])
        if value is not None and not accepts(annotation, value):
            raise ValueError(
                f"{key}.{name}={value!r}: {spec['_target_']} takes {annotation}"
                + form(f"{key}.{name}", value, annotation)
            )
    shared = {"cache", *(f.name for f in fields(Handling))}  # what `data` passes to its function
    required = [p.name for p in parameters if p.default is p.empty and p.name not in shared]
    for name in required:
        if spec.get(name) is None:
            raise ValueError(f"{key}.{name} has no value; set {key}.{name}=... on the command line")
