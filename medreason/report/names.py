"""Names of runs and arms in tables: as short as tells them apart."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medreason.config import Config, Selection
from medreason.console import number_text
from medreason.report import unlike
from medreason.runs import keys
from medreason.runs.run_folder import EvaluationFolder
from medreason.samples import MODALITY_NAMES, TASK_NAMES

_LONGEST_VALUE = 24  # characters; whole prompts are longer
_MOST_VALUES = 6  # of searched keys, with a column and a picture each
_SCIENCE = (
    "method",
    "model",
    "data",
    "prompt",
    "reward",
    "adapter",
    "rollout",
    "rubric",
    "validation",
)
"""Groups whose values decide weights or answers, beside cell, seed and evaluation."""


def short(value: str) -> str:
    """A fraction with four digits, as `console.number_text` writes it; integers and other values as
    they are."""
    if value.isdecimal():
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number_text(number, 4) if math.isfinite(number) else value


def spoken(arm: str) -> str:
    """The name of an arm in a sentence, as `SFT (prompt=no_think)`."""
    method, _, rest = arm.partition(" ")
    return f"{method.upper()} ({rest})" if rest else method.upper()


def in_words(arms: Sequence[str]) -> str:
    """`SFT, GRPO and RARL`"""
    *others, last = map(spoken, arms)
    return f"{', '.join(others)} and {last}" if others else last


def arm_key(config: Config) -> str:
    """The same for evaluations that differ in cell, seed and the questions asked alone."""
    training = keys.training_parts(config)
    if config.method.name == "released":  # each is a model of its own; together they are the arm
        training = {"released": True, "rows": training["rows"]}
    return keys.digest({"training": training, "evaluation": keys.evaluation_ground(config)})


def arm_names(configs: Sequence[Config]) -> list[str]:
    """Of arms, an evaluation of each: the method, of a served model its name, too, and of an
    evaluated model of a run that run; with every option and value in which arms differ that neither
    the method nor an option in the name says; at last the sweep they were first asked for in, and a
    key."""
    names = [
        f"{config.method.name} model={config.model.label}"
        if config.model.is_served
        else config.weights_of or config.method.name
        for config in configs
    ]
    options = [_options(config) for config in configs]
    values = [_values(config, *_SCIENCE) for config in configs]
    beside = unlike.beside_names(configs, names, options, values)
    names = _tell_apart(names, options, _with_keys, beside)
    names = _tell_apart(names, values, _all_values, beside)
    names = _tell_apart(names, [_asked(config) for config in configs], _all_values)
    names = _tell_apart(names, [{"sweep": config.sweep} for config in configs], _all_values)
    digests = [{"key": arm_key(config)[:6]} for config in configs]
    return _tell_apart(names, digests, _with_keys)


def run_names(
    evaluations: Sequence[EvaluationFolder], configs: Sequence[Config | None]
) -> list[str]:
    """The arm's name; with cell, seed, what is asked and at last the keys, where that is needed."""
    arms = {arm_key(config): config for config in configs if config}
    arm_name = dict(zip(arms, arm_names(list(arms.values())), strict=True))
    names = [
        arm_name[arm_key(config)] if config else evaluation.run.path.name.split("-")[0]
        for evaluation, config in zip(evaluations, configs, strict=True)
    ]
    known = [config or next(iter(arms.values()), None) for config in configs]
    if any(config is None for config in known):
        return [evaluation.name for evaluation in evaluations]
    given = [config for config in known if config]
    steps: list[Sequence[Mapping[str, str]]] = [
        [{"cell": cell_name(config)} for config in given],
        [{"seed": f"seed {config.seed}"} for config in given],
    ]
    for step in steps:
        names = _tell_apart(names, step, _bare)
    names = _tell_apart(names, [_values(config, "evaluation") for config in given], _all_values)
    names = _tell_apart(names, [{"run": e.run.path.name[-6:]} for e in evaluations], _with_keys)
    return _tell_apart(names, [{"evaluation": e.key[-6:]} for e in evaluations], _with_keys)


def difference_name(a: str, b: str) -> str:
    """`a minus b`, with the words that both names have in front: `sft: prompt=think minus
    no_think`; each value with its key, but for the second of the only one that differs."""
    shared = common(a, b)
    if not shared or a == b:
        return f"{a} minus {b}"
    unlike = [pair for pair in zip(a.split(), b.split(), strict=True) if len({*pair}) > 1]
    mine, other = (" ".join(words) for words in zip(*unlike, strict=True))
    if len(unlike) == 1:
        other = other.removeprefix(f"{mine.partition('=')[0]}=")
    return f"{shared}: {mine} minus {other}"


def common(*names: str) -> str:
    """The words that stand in the same place of all names; empty where names differ in length."""
    words = [name.split() for name in names]
    if len({*map(len, words)}) > 1:
        return ""
    return " ".join(same[0] for same in zip(*words, strict=True) if len({*same}) == 1)


def _tell_apart(
    names: Sequence[str],
    facets: Sequence[Mapping[str, str]],
    text: Callable[[Mapping[str, str]], str],
    beside: Sequence[Collection[str]] = (),
) -> list[str]:
    """Each name with the facets in which those of the same name differ, and those of `beside`."""
    told = []
    for name, mine, also in zip(names, facets, beside or [()] * len(names), strict=True):
        same = [f for other, f in zip(names, facets, strict=True) if other == name]
        varying = {k: v for k, v in mine.items() if k in also or len({f.get(k) for f in same}) > 1}
        told.append(f"{name} {text(varying)}".strip())
    return told


def _with_keys(options: Mapping[str, str]) -> str:
    return " ".join(f"{key}={option}" for key, option in options.items() if option)


def _bare(options: Mapping[str, str]) -> str:
    """Values that say by themselves what they are: a cell, `seed 1`."""
    return " ".join(option for option in options.values() if option)


def _all_values(values: Mapping[str, str]) -> str:
    """Of a group the name alone, where that differs, and which step a validation chooses; of a
    prompt its short values, where there are any: one that differs has a switch that says so. A key
    is its last words, as many as tell it from the others."""
    named = {key.removesuffix("name") for key in values if key.endswith(".name")}
    values = {
        key: value
        for key, value in values.items()
        if key.endswith(".name")
        or not key.startswith(tuple(named))
        or (key == "validation.select" and values["validation.name"] != "none")
    }
    switched = any(k.startswith("prompt.") and _is_short(v) for k, v in values.items())
    shown = {
        key.removesuffix(".name"): short(value) if _is_short(value) else _cut(value)
        for key, value in values.items()
        if _is_short(value) or not (switched and key.startswith("prompt."))
    }
    return " ".join(f"{_last_words(key, shown)}={value}" for key, value in shown.items())


def _is_short(value: str) -> bool:
    return len(value) <= _LONGEST_VALUE


def _last_words(key: str, keys: Collection[str]) -> str:
    """`max_steps`, or `correct.weight` beside `format.weight`."""
    words = key.split(".")
    for count in range(1, len(words)):
        last = ".".join(words[-count:])
        if sum(f".{other}".endswith(f".{last}") for other in keys) == 1:
            return last
    return key


def _cut(value: str) -> str:
    """The head of a text, the end of a path."""
    room = _LONGEST_VALUE - len("...")
    is_path = "/" in value and " " not in value
    return f"...{value[-room:]}" if is_path else f"{value[:room]}..."


def _options(config: Config) -> dict[str, str]:
    """Options that tell arms apart; those that decide nothing of a method are left out."""
    algorithm, released = config.method.algorithm, config.method.name == "released"
    return {
        "model": "" if released or config.model.is_served else config.model.name,
        "data": _data_label(config) if config.choices.get("data") else "",
        "prompt": config.choices.get("prompt", ""),
        "reward": config.choices.get("reward", "") if algorithm == "grpo" else "",
        "adapter": config.choices.get("adapter", "") if algorithm != "none" else "",
    }


def _values(config: Config, *groups: str) -> dict[str, str]:
    """Dotted key -> value of every leaf of these groups that decides something."""
    if config.method.algorithm == "none":
        groups = tuple(g for g in groups if g in ("model", "data", "prompt", "evaluation"))
    elif config.method.algorithm == "sft":
        groups = tuple(g for g in groups if g not in ("reward", "rollout", "rubric"))
    values = asdict(config)
    return {
        key: "all" if value == _ALL.get(key) else str(value)
        for group in groups
        for key, value in _leaves(values[group], group)
        if key not in ("evaluation.name", "method.name")
    }


_ALL = {"evaluation.modalities": [*MODALITY_NAMES], "evaluation.tasks": [*TASK_NAMES]}


def _asked(config: Config) -> dict[str, str]:
    """How questions are asked and answered, whatever the weights."""
    asked = keys.evaluation_ground(config)["evaluation"]
    return {key: str(value) for key, value in _leaves(asked, "evaluation")}


def science_values(config: Config) -> dict[str, str]:
    """Dotted key -> short value of what decides the weights of a training, its seed included."""
    values = _values(config, *_SCIENCE, "modality", "task", "seed")
    return {key: value for key, value in values.items() if _is_short(value)}


def varying_values(configs: Sequence[Config]) -> list[dict[str, str]]:
    """Of each configuration the values in which they differ, few and short ones."""
    leaves = [science_values(config) for config in configs]
    keys_of_all = dict.fromkeys(key for values in leaves for key in values)
    varying = [key for key in keys_of_all if len({values.get(key) for values in leaves}) > 1]
    return [{key: values.get(key, "-") for key in varying[:_MOST_VALUES]} for values in leaves]


def _leaves(value: object, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}")]
    return [(path, value)]


def data_name(config: Config) -> str:
    """The option of the data, `the table questions.csv` of a table or folder of one's own, and of
    another set of the hub its id."""
    label = _data_label(config)
    return f"the table {label}" if _own_table(config) else label


def _data_label(config: Config) -> str:
    """The option of the data; of data=hub the name of one's own table, or the id."""
    own = _own_table(config)
    hub = config.data.get("hub") if config.choices.get("data") == "hub" else None
    return own or hub or config.choices.get("data") or config.data["_target_"]


def _own_table(config: Config) -> str:
    """The name of a table or folder of one's own that data=hub reads, else empty."""
    if config.choices.get("data") != "hub":
        return ""
    path = Path(config.data["hub"])
    return path.name if path.suffix in _TABLES or path.exists() else ""


_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def cell_name(config: Config) -> str:
    """ "CT/Disease", "CT+X-ray/all"; empty for a run of everything and for a start model."""
    if config.method.name == "base":
        return ""
    cell = _selected(config.modality, MODALITY_NAMES), _selected(config.task, TASK_NAMES)
    return "" if cell == ("all", "all") else "/".join(cell)


def _selected(selection: Selection, names: Mapping[str, str]) -> str:
    if selection.name == "all":
        return "all"
    return "+".join(names[member] for member in selection.members)


def file_name(name: str) -> str:
    """A name in letters that any file system takes; of different names never the same."""
    plain = re.sub(r"[^a-z0-9_.=+]", "-", name.lower())
    changed = plain != name.replace(" ", "-")
    return f"{plain}-{keys.digest({'name': name})[:8]}" if changed else plain
