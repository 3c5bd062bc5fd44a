"""Checks of the settings that go unchanged to TRL and PEFT, before anything of them is imported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medreason.config.annotations import accepts, fields_of, form, in_words, words_of
from medreason.config.key_names import hint, refuse_derived
from medreason.config.upstream import LIMITS, SAME_STEPS, TRL_CLASSES, WORDS


def check(values: Mapping[str, Any]) -> None:
    """Check names, types and values of all that a composed configuration hands to TRL and PEFT.

    Raises:
        ValueError: with key, value and what to type.
    """
    method, rollout = values["method"], values["rollout"]
    trl = TRL_CLASSES.get(method["algorithm"], TRL_CLASSES["none"])
    _check("method.trl", method["trl"], "trl", trl)
    _check("hardware.trl", values["hardware"]["trl"], "trl", trl)
    if method["algorithm"] == "grpo" and rollout["name"] == "vllm":
        _check("rollout.vllm", rollout["vllm"], "trl", trl)
    _check("adapter", values["adapter"], "peft", ("LoraConfig",))
    if values["adapter"].get("target_modules") == []:
        raise ValueError(
            "adapter.target_modules is empty: nothing would be trained; name layers, such as "
            "[q_proj,v_proj], or set adapter=none to train all weights"
        )


def _check(key: str, settings: Mapping[str, object], package: str, classes: Sequence[str]) -> None:
    """Refuse what none of the classes takes."""
    if not any(map(fields_of, classes)):  # not installed, so nothing can be trained
        return
    for name, value in settings.items():
        where = f"{key}.{name}"
        if package == "trl":
            refuse_derived(where)
        problems = [_problem(where, value, package, class_) for class_ in classes]
        without_effect = value is None and len(classes) > 1
        if all(problems) and not (without_effect and any(name in fields_of(c) for c in classes)):
            raise ValueError(problems[0])


_LEAVE_OUT = (
    "leave it out; beside methods without it, give the one that has it a command of its own with "
    "the same sweep=..."
)


def _problem(key: str, value: object, package: str, class_: str) -> str:
    """Why a class does not take a value; empty where it does."""
    name = key.rpartition(".")[2]
    owner = f"{package}.{class_}"
    if name not in fields_of(class_):
        other = next((c for c in ("SFTConfig", "GRPOConfig") if name in fields_of(c)), "")
        found = f"; it is one of {other}: {_LEAVE_OUT}" if other else hint(key)
        return f"{key} is not a field of {owner}{found}"
    annotation = fields_of(class_)[name]
    if package == "trl" and value not in SAME_STEPS.get(name, (value,)):
        return (
            f"{key}={value!r}: the rows of a step or their weights would depend on the number of "
            "processes, on hardware.per_device_prompts or on a resume; leave it out"
        )
    known = WORDS.get(f"{class_}.{name}") or words_of(annotation)
    if known and value not in known:
        return f"{key}={value!r}: {owner} knows {', '.join(known)}"
    if not accepts(annotation, value):
        return (
            f"{key}={value!r}: {owner} takes {in_words(annotation)}{form(key, value, annotation)}"
        )
    return _out_of_range(key, value)


def _out_of_range(key: str, value: object) -> str:
    is_right, rule = LIMITS.get(key.rpartition(".")[2], (lambda _: True, "give a finite number"))
    numbers = list(_numbers(value))
    wrong = not all(math.isfinite(number) and is_right(number) for number in numbers)
    return f"{key}={value}; {rule}" if wrong else ""


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, list):
        for element in value:
            yield from _numbers(element)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)
