"""The README's table of what is in which key is what the code of the keys does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from medreason.config import Config
from medreason.runs import keys

README = Path(__file__).parents[2] / "medreason/runs/README.md"
BY_CONTENT = ("data", "choices")
"""Not values that are compared: rows and images are in the keys by the digest of their content."""
JUDGED = (
    *("method=grpo", "reward=rarl_judge", "prompt=rarl", "judge=openai", "judge.model=some"),
    *("adapter=lora_r8", "evaluation=controls", "evaluation.samples_per_cell=4"),
)
SERVED = (
    *("method=base", "adapter=lora_r8", "model=endpoint", "model.endpoint.model=some"),
    "model.endpoint.base_url=http://127.0.0.1:8000/v1",
)
SINGLE = ("prompt.diversity=false", "prompt.reasoning_prompting=false")


def leaves(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    names = [f.name for f in fields(value)] if is_dataclass(value) else []
    inner = {name: getattr(value, name) for name in names} if names else value
    if isinstance(inner, dict) and inner:
        for name, child in inner.items():
            yield from leaves(child, (*path, name))
    else:
        yield path


def changed(config: Config, path: tuple[Any, ...]) -> Config:
    """A copy with another value at this path, which no check has seen."""
    other = copy.deepcopy(config)
    owner: Any = other
    for name in path[:-1]:
        owner = owner[name] if isinstance(owner, dict) else getattr(owner, name)
    value = owner[path[-1]] if isinstance(owner, dict) else getattr(owner, path[-1])
    match value:
        case bool():
            value = not value
        case int() | float():
            value += 1
        case list():
            value = [*value, value[0] if value else "another"]
        case dict():
            value = {"_target_": "medreason.rewards.answer.correct"}
        case None:
            value = 7
        case _:
            value = "free" if path[-1] == "style" else value[:-1]
    if isinstance(owner, dict):
        owner[path[-1]] = value
    else:
        object.__setattr__(owner, path[-1], value)
    return other


def name_of(path: tuple[Any, ...]) -> str:
    if path[0] == "reward":
        return "reward.<name>"
    return ".".join(path[: 3 if path[:2] == ("model", "endpoint") else 2])


def deciding(config: Config) -> tuple[set[str], set[str]]:
    """The dotted keys that change the train key, and those that change the evaluation key alone."""

    def both(config: Config) -> tuple[str, str]:
        train = keys.digest(keys.train_parts(config, "rows", ""))
        return train, keys.digest(keys.evaluation_parts(config, "train", "rows"))

    train, evaluation = both(config)
    in_train, in_evaluation = set(), set()
    for path in leaves(config):
        if path[0] in BY_CONTENT or path[-1] == "_target_":
            continue
        other_train, other_evaluation = both(changed(config, path))
        name = name_of(path)
        in_train |= {name} if other_train != train else set()
        in_evaluation |= {name} if other_evaluation != evaluation else set()
    return in_train, in_evaluation


def table(validated: Config, *configs: Config) -> str:
    in_train = {name for name in deciding(validated)[0] if name.startswith("validation.")}
    in_evaluation: set[str] = set()
    every: set[str] = set()
    for config in configs:
        train, evaluation = deciding(config)
        in_train, in_evaluation = in_train | train, in_evaluation | evaluation
        every |= {name_of(path) for path in leaves(config) if path[0] not in BY_CONTENT}
    groups = dict.fromkeys(name.partition(".")[0] for name in sorted(every))
    lines = ["| group | train key | evaluation key | neither |", "|---|---|---|---|"]
    in_neither = []
    for group in groups:
        members = {name for name in every if name.partition(".")[0] == group}
        sides = (members & in_train, members & in_evaluation, members - in_train - in_evaluation)
        if sides[2] == members:
            in_neither.append(f"`{group}`")
            continue
        texts = [_listed(side, members) for side in sides]
        lines.append(" | ".join([f"| `{group}`", *texts]) + " |")
    return "\n".join([*lines, f"| {' '.join(in_neither)} | | | all |"])


def _listed(side: set[str], members: set[str]) -> str:
    if side == members:
        return "all" if side else ""
    return " ".join(f"`{name.partition('.')[2]}`" for name in sorted(side))


def test_readme_lists_what_is_in_which_key(composed: Callable[..., Config]) -> None:
    validated = composed(*JUDGED, "validation=in_domain")
    expected = table(validated, composed(*JUDGED), composed(*JUDGED, *SINGLE), composed(*SERVED))
    assert expected in README.read_text(), f"medreason/runs/README.md should have\n\n{expected}"
