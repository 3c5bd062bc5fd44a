"""The jobs of a sweep and their configurations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from medreason import config as configuration
from medreason.config import CONF, Config, composing, hydra_errors, options, steps
from medreason.console import as_typed, command
from medreason.report.start_model import words_of_start_model
from medreason.runs import keys

_AXES = ("modality", "task", "seed")
"""Groups and keys whose overrides change no other part of the configuration."""
_BARE = ("method", "modality", "task", "training_set")
"""Groups whose options say by themselves what they are."""
_STEP_GROUPS = ("method=", "model=", "model/", "~model/", "experiment=", "+experiment=")
"""Starts of overrides that decide which file of `conf/model/steps` applies."""


def drop_typed_params(config: DictConfig) -> None:
    """Leave to the command line what it gives with a `+` and the recipe sweeps, too: sweepers take
    `++method.trl.beta` and `method.trl.beta` for two keys, and would give a job both."""
    params, typed = config.hydra.sweeper.get("params"), config.hydra.overrides.task
    if not params:
        return
    parsed = OverridesParser.create().parse_overrides([*typed])
    keys = {each.get_key_element() for each in parsed}
    with read_write(config), open_dict(params):
        for key in {key.lstrip("+") for key in keys if key.startswith("+")} & {*params}:
            del params[key]


def split_jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job, split as Hydra's basic sweeper splits a sweep.

    Raises:
        ValueError: a job has a training set and another modality or task, or a key an interval.
    """
    # Unresolved, since `${...}` stands for values of the job.
    params = config.hydra.sweeper.params
    params = OmegaConf.to_container(params, resolve=False) if params else {}
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(params, dict)
    assert isinstance(typed, list)
    jobs = _split([*(f"{key}={value}" for key, value in params.items()), *map(str, typed)])
    for job in jobs:
        options.refuse_two_cells(job)
    return jobs


def _split(overrides: Sequence[str]) -> list[list[str]]:
    options.refuse_interval(overrides)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None) or [[]]
    return [list(job) for job in batch]


def labels(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What tells each job from the others, as `sft ct learning_rate=1e-5`; of one job nothing."""
    typed = [dict(_key_and_value(override) for override in job) for job in jobs]
    keys = dict.fromkeys(key for job in typed for key in job)
    varying = [key for key in keys if len({job.get(key) for job in typed}) > 1]
    leaves = Counter(key.rpartition(".")[2] for key in varying)

    def word(key: str, value: str) -> str:
        if key in _BARE:
            return value
        leaf = key.rpartition(".")[2]
        return f"{leaf if leaves[leaf] == 1 else key}={as_typed(value)}"

    return [" ".join(word(key, job[key]) for key in varying if key in job) for job in typed]


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def first_value(override: str) -> str:
    """The override with the first of its values, where it sweeps over several, or the lower end of
    what a search chooses from."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:  # Hydra says what is wrong with it
        return override
    if parsed.is_interval_sweep():
        interval = parsed.value()
        assert isinstance(interval, IntervalSweep)
        return f"{parsed.get_key_element()}={interval.start}"
    if not parsed.is_discrete_sweep():
        return override
    values = parsed.sweep_string_iterator()
    return next((f"{parsed.get_key_element()}={value}" for value in values), override)


def compose_jobs(config: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Config]:
    """The configuration of each job.

    A composition takes Hydra a third of a second. Jobs that differ only in modality, task and seed
    are assembled from one composition for each option. The last of each such family is composed in
    full as a check; where it differs, an option sets values outside its own group, and each job of
    the family is composed.

    Raises:
        UncomposableError: Hydra cannot compose one of them.
    """
    families: dict[tuple[str, ...], list[int]] = {}
    for i, job in enumerate(jobs):
        families.setdefault(tuple(o for o in job if _axis(o) is None), []).append(i)
    configs: dict[int, Config] = {}
    for members in families.values():
        try:
            configs |= _compose_family(config, jobs, members)
        except HydraException as error:
            raise _uncomposable(config, jobs, jobs[members[0]], error) from error
    return [configs[i] for i in range(len(jobs))]


class UncomposableError(ValueError):
    """A job has a key or an option that its method, reward or adapter has not: Hydra would end the
    sweep there, with the jobs before it done."""


def composition_problem(error: Exception, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """Why Hydra cannot compose what was typed, with the first job of a sweep that is at fault."""
    searches = any(override.startswith("hydra/sweeper=") for override in overrides)
    try:
        jobs = [] if searches else _split(overrides)
    except ValueError as problem:
        return str(problem)
    if len(jobs) < 2:
        return hydra_errors.explained(error, overrides, folders)
    for i, job in enumerate(jobs):
        try:
            options.check(job, folders)
        except ValueError as problem:
            return f"{_number(jobs, i)}{problem}; {_APART}"
    text = hydra_errors.explained(error, overrides, folders)
    if hydra_errors.NOT_INSTALLED in text:
        return text
    # It composes a sweep once without the groups that are swept over, and so without their keys.
    return f"{text}, or {_APART}"


_APART = "give the jobs that have it a command of their own"


def _number(jobs: Sequence[Sequence[str]], index: int) -> str:
    """`job 2 of 4 (sft): `; empty of one job."""
    label = labels(jobs)[index]
    return f"job {index + 1} of {len(jobs)}{label and f' ({label})'}: " if len(jobs) > 1 else ""


def _uncomposable(
    config: DictConfig,
    jobs: Sequence[Sequence[str]],
    job: Sequence[str],
    error: HydraException,
) -> UncomposableError:
    index = [list(other) for other in jobs].index(list(job))
    flags = composing.folder_flags(config.hydra)
    text = hydra_errors.explained(error, job, [CONF, *map(Path, flags[1::2])])
    apart = f"; {_APART}" if len(jobs) > 1 else ""
    return UncomposableError(f"{_number(jobs, index)}{text}{apart}")


def step_lines(config: DictConfig, jobs: Sequence[Sequence[str]]) -> list[str]:
    """`config.steps.line` of the jobs, each line once; brief where there may be several.

    Raises:
        UncomposableError: Hydra cannot compose one of them.
    """
    examples: dict[tuple[str, ...], Sequence[str]] = {}
    for job in jobs:
        examples.setdefault(tuple(o for o in job if o.startswith(_STEP_GROUPS)), job)
    lines: list[str | None] = []
    for job in examples.values():
        name = config.hydra.job.config_name
        try:
            composed = compose(name, overrides=list(job), return_hydra_config=True)
        except HydraException as error:
            raise _uncomposable(config, jobs, job, error) from error
        brief = len(examples) > 1
        lines.append(steps.line(composed, composed.hydra.runtime, brief=brief))
    return list(dict.fromkeys(filter(None, lines)))


def base_lines(
    configs: Sequence[Config], jobs: Sequence[Sequence[str]], flags: Sequence[str] = ()
) -> list[str]:
    """A warning for each prompt with which models are tested and their start model, which other
    jobs test, is not: no difference to it is shown. `flags` were typed before the overrides."""
    lines: dict[str, None] = {}
    bases = [config for config in configs if config.method.name == "base"]
    for config, job in zip(configs, jobs, strict=True):
        start = keys.start_parts(config)
        others = [base.prompt.name for base in bases if keys.start_parts(base) == start]
        name = config.prompt.name
        if config.method.algorithm == "none" or not others or name in others:
            continue
        kept = [o for o in words_of_start_model(job) if not o.startswith("prompt=")]
        words = [*flags, *kept, "method=base", f"prompt={name}", f"sweep={config.sweep}"]
        lines[
            f"! {config.method.name} is tested with prompt={name}, its start model with "
            f"prompt={', '.join(dict.fromkeys(others))}: not compared with it; "
            f"`{command(words)}` adds the start model with prompt={name}"
        ] = None
    return [*lines]


_FOR_TRAINING = ("method.trl", "method.prompts_per_step", "method.target")
_FOR_SAMPLING = ("rollout", "reward")
_NO_JUDGE = "judge=none grades nothing"


def idle_lines(configs: Sequence[Config], jobs: Sequence[Sequence[str]]) -> list[str]:
    """A warning for each override that changes nothing in any of the jobs, though TRL has the key:
    a sweep may set what some of its methods use alone."""
    reasons: dict[str, list[str]] = {}
    for config, job in zip(configs, jobs, strict=True):
        for override in job:
            reasons.setdefault(override, []).append(_why_idle(config, override))
    return [
        f"! {override.lstrip('+')} has no effect: {why[0]}; leave it out, or choose a "
        f"{'judge' if why[0] == _NO_JUDGE else 'method'} that uses it"
        for override, why in reasons.items()
        if all(why)
    ]


def _why_idle(config: Config, override: str) -> str:
    """Why an override changes nothing; empty where it does."""
    if config.action.name not in ("train", "plan"):
        return ""
    key = override.lstrip("+~").partition("=")[0]
    method, algorithm = f"method={config.method.name}", config.method.algorithm
    if algorithm == "none" and _is_below(key, _FOR_TRAINING):
        return f"{method} trains nothing"
    if algorithm != "grpo" and _is_below(key, _FOR_SAMPLING):
        return f"{method} samples no completions"
    if algorithm == "grpo" and key == "method.target":
        return f"{method} imitates nothing, as SFT does"
    if config.judge.kind == "none" and key.startswith("judge."):
        return _NO_JUDGE
    return ""


def _is_below(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _compose_family(
    config: DictConfig, jobs: Sequence[Sequence[str]], members: Sequence[int]
) -> dict[int, Config]:
    first = jobs[members[0]]
    composed: dict[str, Config] = {}

    def with_option(override: str) -> Config:
        """The first job with one of its axes changed; composed once for each option."""
        if override not in composed:
            swapped = [override if _axis(o) == _axis(override) else o for o in first]
            composed[override] = _compose(config, swapped)
        return composed[override]

    start = _compose(config, first)

    def assemble(job: Sequence[str]) -> Config:
        changes = {}
        for override, first_override in zip(job, first, strict=True):
            if override == first_override:
                continue
            axis, value = override.split("=", 1)
            is_number = axis == "seed" and value.isdecimal()
            changes[axis] = int(value) if is_number else getattr(with_option(override), axis)
        return replace(start, **changes) if changes else start

    if len(members) < 3 or any(len(jobs[i]) != len(first) for i in members):
        return {i: _compose(config, jobs[i]) for i in members}
    assembled = {i: assemble(jobs[i]) for i in members}
    last = _compose(config, jobs[members[-1]])
    if assembled[members[-1]] != last:
        return {i: _compose(config, jobs[i]) for i in members}
    return assembled


def _axis(override: str) -> str | None:
    name, _, value = override.partition("=")
    return name if name in _AXES and value else None


def _compose(config: DictConfig, overrides: Sequence[str]) -> Config:
    return configuration.load(compose(config.hydra.job.config_name, overrides=list(overrides)))
