"""The functions that YAML names at `_target_`: imported, checked against their settings, bound."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from medreason import moved
from medreason.config import upstream
from medreason.config.annotations import accepts, form, in_words, wrong_part
from medreason.config.data import Handling


def function(spec: dict[str, Any]) -> functools.partial[Any]:
    """The function at `_target_` with the settings beside it; can be pickled."""
    settings = {key: value for key, value in spec.items() if not key.startswith("_")}
    return functools.partial(target(spec["_target_"]), **settings)


def target(path: str, key: str = "") -> Callable[..., Any]:
    """The function at a dotted path, which the configuration has below `key`.

    Raises:
        ValueError: it cannot be imported; the message has its new path where it has moved.
    """
    module, _, name = path.rpartition(".")
    where = f"{key}._target_" if key else "_target_"
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module may raise anything
        if new := moved.new_path(path):
            raise ValueError(f"{where}={path!r} is now {new!r}") from error
        raise ValueError(
            f"{where}={path!r} is not a function that can be imported: {described(error)}; "
            f"Python looks in {Path.cwd()} and in PYTHONPATH"
        ) from error
    if not callable(found):
        raise ValueError(f"{where}={path!r} is {found!r}, not a function; name one")
    return found


def described(error: Exception, function: Callable[..., Any] | None = None) -> str:
    """What a user's function or module raised, and at which line: the last of the function's file,
    or else of all."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) or type(error) is ImportError:  # which say their place
        return text
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    code = getattr(function, "__code__", None)
    frames = [f for f in frames if code and f.filename == code.co_filename] or frames
    if isinstance(error, ModuleNotFoundError) or not frames:
        return text
    return f"{text} at {Path(frames[-1].filename).name}, line {frames[-1].lineno}"


def place(function: Callable[..., Any]) -> str:
    """`my_rewards.short (my_rewards.py, line 3)`; without its line where it has no source."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"
    return f"{name} ({Path(code.co_filename).name}, line {code.co_firstlineno})" if code else name


def _annotation(parameter: inspect.Parameter) -> str:
    if isinstance(parameter.annotation, str):
        return parameter.annotation
    if parameter.annotation is parameter.empty:
        return "object"
    return inspect.formatannotation(parameter.annotation)


def _known(key: str, name: str, parameters: Iterable[str]) -> str:
    """The end of a refusal: the nearest key and all there are."""
    if meant := upstream.elsewhere(f"{key}.{name}"):
        return meant
    names = [parameter for parameter in parameters if (key, parameter) != ("data", "cache")]
    names += [field.name for field in fields(Handling) if key == "data" and field.name not in names]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {key}.{near[0]}?" if near else ""
    other = "; for another data set, add data=NAME" if key == "data" and not near else ""
    return f"{hint}; it takes {', '.join(names) or 'no settings'}{other}"


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check(key: str, spec: dict[str, Any], positional: int = 0) -> None:
    """Refuse settings that the function at `_target_` does not take, or lacks.

    `positional` arguments come from the caller: reply and sample, to a score.

    Raises:
        ValueError: with the key and the settings it takes.
    """
    if not isinstance(spec.get("_target_"), str):
        raise ValueError(f"{key} has no _target_; set {key}._target_=module.function")
    parameters = list(inspect.signature(target(spec["_target_"], key)).parameters.values())
    _refuse_too_few(key, spec["_target_"], parameters, positional)
    given = [p for p in parameters[:positional] if p.kind in _BY_PLACE]
    parameters = parameters[len(given) :]
    known = {p.name: p for p in parameters}
    for name, value in spec.items():
        if name.startswith("_"):
            continue
        if name in [p.name for p in given]:
            raise ValueError(
                f"{key}.{name} is one of the first two arguments of "
                f"{place(target(spec['_target_']))}, which get the reply and the sample; write "
                f"(reply, sample, *, {name})"
            )
        if name not in known:
            raise ValueError(
                f"{key}.{name} is unknown to {spec['_target_']}{_known(key, name, known)}"
            )
        annotation = _annotation(known[name])
        if value is not None and not accepts(annotation, value):
            where, wrong, taken = wrong_part(f"{key}.{name}", value, annotation)
            raise ValueError(
                f"{where}={wrong!r}: {spec['_target_']} takes {in_words(taken)}"
                + form(where, wrong, taken)
            )
    shared = {"cache", *(f.name for f in fields(Handling))}  # what `data` passes to its function
    required = [p.name for p in parameters if p.default is p.empty and p.name not in shared]
    for name in required:
        if spec.get(name) is None and positional:
            score = _as_score(key, spec["_target_"], [*given, *parameters])
            raise ValueError(f"{score}; where {name} is a setting, set {key}.{name}=...")
        if spec.get(name) is None:
            is_root = (key, name) == ("data", "root")
            hint = "; action=plan takes one that is not there yet" if is_root else ""
            raise ValueError(
                f"{key}.{name} has no value; set {key}.{name}=... on the command line{hint}"
            )


def _refuse_too_few(
    key: str, path: str, parameters: Sequence[inspect.Parameter], positional: int
) -> None:
    """Raise ValueError where a score does not take reply and sample."""
    count = sum(parameter.kind in _BY_PLACE for parameter in parameters)
    if count < positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise ValueError(_as_score(key, path, parameters))


def _as_score(key: str, path: str, parameters: Sequence[inspect.Parameter]) -> str:
    listed = ", ".join(str(parameter) for parameter in parameters)
    return (
        f"{key}._target_={path!r} is {place(target(path))} and takes ({listed}); a score takes "
        "(reply, sample, *, its settings) and returns a number"
    )
