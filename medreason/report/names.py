"""Names of runs and arms in tables: as short as tells them apart."""

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
    """Names of arms, from one run's configuration of each: the method; where one has several arms,
    with the options in which they differ, or else the values."""
    facets = [_facets(config) for config in configs]
    names = []
    for options in facets:
        same_method = [other for other in facets if other[0] == options[0]]
        varying = [i for i in range(1, len(_FACETS)) if len({o[i] for o in same_method}) > 1]
        names.append(" ".join([options[0], *(options[i] for i in varying if options[i])]))
    unique_names = []
    for name, config in zip(names, configs, strict=True):
        parts = _parts(config)
        same_name = [other for other, n in zip(configs, names, strict=True) if n == name]
        differences = [d for other in same_name for d in keys.differences(parts, _parts(other))]
        values = {_leaf(path): str(value) for path, value, _ in differences}
        short = [f"{leaf}={value}" for leaf, value in values.items() if len(value) <= _LONGEST]
        unique_names.append(" ".join([name, *(short or values)]))
    return unique_names


def _leaf(path: str) -> str:
    return path.removesuffix(".name").rpartition(".")[2]


def run_names(folders: Sequence[RunFolder], configs: Sequence[Config | None]) -> list[str]:
    """Names of runs: the arm's; with cell, seed and at last the key where names are alike."""
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
    """Options that tell arms apart, empty where an option has no effect on the method."""
    chosen = [config.choices.get(name, "") for name in _FACETS]
    chosen[0], chosen[1] = config.method.name, config.model.name
    if config.method.algorithm != "grpo":
        chosen[3] = ""
    if config.method.algorithm == "none":
        chosen[2] = chosen[4] = ""
    return tuple(chosen)


def _parts(config: Config) -> dict[str, Any]:
    """The parts of a run's train key, except cell and seed."""
    parts = keys.train_parts(config, "", "")
    return {name: parts[name] for name in parts if name not in ("modality", "task", "seed")} | {
        "data": config.data
    }
