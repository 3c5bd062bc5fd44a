"""The functions that YAML names at `_target_`: found, bound to their settings, called."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields
from typing import Any

from medreason import moved
from medreason.config.data import Handling


def call(spec: dict[str, Any], *given: object, **more: object) -> Any:  # noqa: ANN401
    """What the function at `_target_` returns for `given`, the settings of the spec and `more`."""
    settings = {key: value for key, value in spec.items() if not key.startswith("_")}
    return target(spec["_target_"])(*given, **settings, **more)


def target(path: str) -> Any:  # noqa: ANN401
    """The function at a dotted path."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        if new := moved.new_path(path):
            raise ValueError(f"_target_={path!r} is now {new!r}") from error
        raise ValueError(
            f"_target_={path!r} is not a function that can be imported: {error}"
        ) from error


def bind(key: str, spec: dict[str, Any], given: int = 0) -> None:
    """Refuse settings the function does not take; `given` are its positional arguments."""
    function = target(spec["_target_"])
    parameters = list(inspect.signature(function).parameters.values())[given:]
    known = [p.name for p in parameters]
    for name in spec:
        if not name.startswith("_") and name not in known:
            raise ValueError(f"{key}.{name} is unknown to {spec['_target_']}; it takes {known}")
    shared = {"cache", *(f.name for f in fields(Handling))}  # `data` gives these to its function
    required = [p.name for p in parameters if p.default is p.empty and p.name not in shared]
    for name in required:
        if spec.get(name) is None:
            raise ValueError(f"{key}.{name} has no value; set {key}.{name}=... on the command line")
