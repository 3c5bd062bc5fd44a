"""What runs and arms are called in tables: what tells them apart, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medreason.config import Config, Selection
from medreason.runs import keys
from medreason.runs.run_folder import RunFolder
from medreason.samples import MODALITIES, TASKS

_LONGEST = 24  # characters of a value in a name; whole prompts are longer
_FACETS = ("method", "model", "prompt", "reward", "adapter")


def arm_key(config: Config) -> str:
    """The same for runs that differ in cell and seed alone."""
    return keys.digest(_parts(config))


def arm_names(configs: Sequence[Config]) -> list[str]:
    """Of arms, a run of each: the method; with the options, else the values, in which arms of one
    method differ."""
    facets = [_facets(config) for config in configs]
    names = []
    for mine in facets:
        same = [other for other in facets if other[0] == mine[0]]
        varying = [i for i in range(1, len(_FACETS)) if len({other[i] for other in same}) > 1]
        names.append(" ".join([mine[0], *(mine[i] for i in varying if mine[i])]))
    told = []
    for name, config in zip(names, configs, strict=True):
        mine = _parts(config)
        same = [other for other, n in zip(configs, names, strict=True) if n == name]
        found = [d for other in same for d in keys.differences(mine, _parts(other))]
        values = {_leaf(path): str(value) for path, value, _ in found}
        short = [f"{leaf}={value}" for leaf, value in values.items() if len(value) <= _LONGEST]
        told.append(" ".join([name, *(short or values)]))
    return told


def _leaf(path: str) -> str:
    return path.removesuffix(".name").rpartition(".")[2]


def run_names(folders: Sequence[RunFolder], configs: Sequence[Config | None]) -> list[str]:
    """The arm's name; with cell, seed and at last the key where that is needed."""
    arms = {arm_key(config): config for config in configs if config}
    arm = dict(zip(arms, arm_names(list(arms.values())), strict=True))
    parts = [
        (arm[arm_key(config)], cell_name(config), f"seed {config.seed}", folder.path.name[-6:])
        if config
        else (folder.path.name.split("-")[0], "", "", folder.path.name[-6:])
        for folder, config in zip(folders, configs, strict=True)
    ]
    names = [part[0] for part in parts]
    for place in range(1, 4):
        groups: dict[str, set[str]] = {}
        for name, part in zip(names, parts, strict=True):
            groups.setdefault(name, set()).add(part[place])
        names = [
            f"{name} {part[place]}".strip() if len(groups[name]) > 1 else name
            for name, part in zip(names, parts, strict=True)
        ]
    return names


def cell_name(config: Config) -> str:
    """ "CT/Disease", "CT+X-ray/all"; empty for a run of everything and for a start model."""
    if config.method.algorithm == "none":
        return ""
    cell = _selected(config.modality, MODALITIES), _selected(config.task, TASKS)
    return "" if cell == ("all", "all") else "/".join(cell)


def _selected(selection: Selection, names: Mapping[str, str]) -> str:
    if selection.name == "all":
        return "all"
    return "+".join(names[member] for member in selection.members)


def _facets(config: Config) -> tuple[str, ...]:
    """Options that tell arms apart; those that decide nothing of a method are left out."""
    chosen = [config.choices.get(name, "") for name in _FACETS]
    chosen[0], chosen[1] = config.method.name, config.model.name
    if config.method.algorithm != "grpo":
        chosen[3] = ""
    if config.method.algorithm == "none":
        chosen[2] = chosen[4] = ""
    return tuple(chosen)


def _parts(config: Config) -> dict[str, Any]:
    """What decides a run's weights but for cell and seed."""
    parts = keys.train_parts(config, "", "")
    return {name: parts[name] for name in parts if name not in ("modality", "task", "seed")} | {
        "data": config.data
    }
