"""The jobs of a sweep, and their configurations without composing each of a thousand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from medreason import config as configuration
from medreason.config import Config, steps

_AXES = ("modality", "task", "seed")
"""Overrides that change nothing but the part of the configuration they name."""
_STEP_GROUPS = ("method=", "model=", "model/", "~model/", "experiment=", "+experiment=")
"""Starts of overrides that decide which file of `conf/model/steps` applies."""


def split_jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job, as Hydra's own sweeper takes a sweep apart.

    Raises:
        SystemExit: another sweeper decides as it goes.
    """
    target = config.hydra.sweeper["_target_"]
    if not target.endswith("basic_sweeper.BasicSweeper"):
        raise SystemExit(f"medreason: hydra/sweeper={target}: only Hydra's basic sweeper is known")
    # Unresolved: a job's `${...}` means that job's values.
    params = config.hydra.sweeper.params
    params = OmegaConf.to_container(params, resolve=False) if params else {}
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(params, dict)
    assert isinstance(typed, list)
    given = [*(f"{key}={value}" for key, value in params.items()), *map(str, typed)]
    parsed = OverridesParser.create().parse_overrides(given)
    (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None) or [[]]
    return [list(job) for job in batch]


def first_value(override: str) -> str:
    """The first of the values of a swept override; any other as it is."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:  # Hydra says what is wrong with it
        return override
    if not parsed.is_discrete_sweep():
        return override
    values = parsed.sweep_string_iterator()
    return next((f"{parsed.get_key_element()}={value}" for value in values), override)


def compose_jobs(config: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Config]:
    """The configuration of each job.

    Jobs that differ in modality, task and seed alone are put together from one composition for each
    option. The last of each such family is composed in full as a check; where the two differ, an
    option says more than its own part, and the family is composed one by one.
    """
    families: dict[tuple[str, ...], list[int]] = {}
    for i, job in enumerate(jobs):
        families.setdefault(tuple(o for o in job if _axis(o) is None), []).append(i)
    found: dict[int, Config] = {}
    for members in families.values():
        found |= _family(config, jobs, members)
    return [found[i] for i in range(len(jobs))]


def step_lines(config: DictConfig, jobs: Sequence[Sequence[str]]) -> list[str]:
    """What `config.steps` says of the jobs: a line for each file that applies to any of them."""
    examples: dict[tuple[str, ...], Sequence[str]] = {}
    for job in jobs:
        examples.setdefault(tuple(o for o in job if o.startswith(_STEP_GROUPS)), job)
    lines: list[str | None] = []
    for job in examples.values():
        name = config.hydra.job.config_name
        try:
            composed = compose(name, overrides=list(job), return_hydra_config=True)
        except HydraException:  # the launch of the sweep says what is wrong
            continue
        lines.append(steps.line(composed, composed.hydra.runtime))
    return list(dict.fromkeys(filter(None, lines)))


def _family(
    config: DictConfig, jobs: Sequence[Sequence[str]], members: Sequence[int]
) -> dict[int, Config]:
    first = jobs[members[0]]
    parts: dict[str, Config] = {}

    def with_option(override: str) -> Config:
        """The first job with one of its axes changed; composed once for each option."""
        if override not in parts:
            swapped = [override if _axis(o) == _axis(override) else o for o in first]
            parts[override] = _compose(config, swapped)
        return parts[override]

    start = _compose(config, first)

    def assembled(job: Sequence[str]) -> Config:
        changes = {}
        for override, usual in zip(job, first, strict=True):
            if override == usual:
                continue
            axis, value = override.split("=", 1)
            plain = axis == "seed" and value.isdecimal()
            changes[axis] = int(value) if plain else getattr(with_option(override), axis)
        choices = start.choices | {a: c.name for a, c in changes.items() if a != "seed"}
        return replace(start, **changes, choices=choices) if changes else start

    if len(members) < 3 or any(len(jobs[i]) != len(first) for i in members):
        return {i: _compose(config, jobs[i]) for i in members}
    found = {i: assembled(jobs[i]) for i in members}
    checked = _compose(config, jobs[members[-1]])
    if replace(found[members[-1]], choices={}) != replace(checked, choices={}):
        return {i: _compose(config, jobs[i]) for i in members}
    return found


def _axis(override: str) -> str | None:
    name, _, value = override.partition("=")
    return name if name in _AXES and value else None


def _compose(config: DictConfig, overrides: Sequence[str]) -> Config:
    composed = compose(config.hydra.job.config_name, overrides=list(overrides))
    return configuration.load(composed)
