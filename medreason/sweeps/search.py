"""A search: a sweeper that chooses its jobs by the validation scores of those before, as Optuna's.

Its jobs are trials: trained, validated and not tested. The best of them alone is tested at the end.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from omegaconf import DictConfig, OmegaConf, read_write

from medreason import config as configuration
from medreason.config import Config
from medreason.console import counted, install_command, notice
from medreason.report.names import short, varying_values
from medreason.runs import keys, lock, search_folder, status
from medreason.runs.run_folder import EvaluationFolder
from medreason.training import selection

if TYPE_CHECKING:  # an extra
    from optuna import Study as OptunaStudy  # pyright: ignore[reportMissingImports]

BASIC = "basic_sweeper.BasicSweeper"
"""End of the class of Hydra's own sweeper, which needs no number from its jobs."""
_QUESTIONS = ("data", "validation", "evaluation", "modality", "task")
"""Groups that decide which questions a score is of."""


def _at_a_time(hydra: DictConfig) -> int:
    """Trials that are trained at the same time."""
    asked = OmegaConf.select(hydra, "sweeper.n_jobs") or 1
    launcher = hydra.launcher["_target_"].lower()
    if "basic" in launcher:
        return 1
    processes = OmegaConf.select(hydra, "launcher.n_jobs") if "joblib" in launcher else asked
    return max(min(asked, os.cpu_count() or 1 if processes == -1 else processes), 1)


def is_search(config: DictConfig) -> bool:
    """Whether the sweeper wants a number from each job."""
    return not config.hydra.sweeper["_target_"].endswith(BASIC)


def as_trial(config: Config) -> Config:
    """The configuration of a job of a search, which is not tested."""
    return replace(config, runs=replace(config.runs, test=False))


@dataclass(frozen=True)
class Search:
    """What a command searches over."""

    keys: list[str]
    """Keys and groups whose values the sweeper chooses."""
    fixed: list[str]
    """Overrides that all trials share."""
    trials: int
    """How many this command makes; 0 where the sweeper does not say."""
    at_a_time: int
    """As many as sweeper and launcher both allow."""
    logarithmic: Sequence[str] = ()
    """Those of `keys` whose values are chosen by their logarithm, as of `tag(log, ...)`."""

    @classmethod
    def of(cls, config: DictConfig) -> Search:
        """The search of a command with another sweeper than Hydra's basic one.

        Raises:
            ValueError: no key has a range or several values.
        """
        sweeper = config.hydra.sweeper
        params = OmegaConf.select(sweeper, "params") or OmegaConf.create()
        params = OmegaConf.to_container(params, resolve=False)
        typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        assert isinstance(params, dict)
        assert isinstance(typed, list)
        overrides = [*(f"{key}={value}" for key, value in params.items()), *map(str, typed)]
        parsed = OverridesParser.create().parse_overrides(overrides)
        # The command line wins over what a recipe searches, also where the key got a `+`.
        by_key = {each.get_key_element().lstrip("+"): each for each in parsed}
        searched = [key for key, each in by_key.items() if each.is_sweep_override()]
        if not searched:
            raise ValueError(
                "nothing to search: no key has a range or several values; give one, such as "
                "'method.trl.learning_rate=tag(log, interval(1e-5, 1e-3))', or leave "
                "hydra/sweeper out"
            )
        fixed = [str(e.input_line) for e in by_key.values() if not e.is_sweep_override()]
        trials = OmegaConf.select(sweeper, "n_trials") or 0
        logarithmic = [key for key in searched if _is_logarithmic(by_key[key])]
        return cls(searched, fixed, trials, _at_a_time(config.hydra), logarithmic)

    def refuse_unusable(self, config: Config) -> None:
        """Refuse what has no score, or whose scores do not compare.

        Raises:
            ValueError: with key, value and remedy.
        """
        sweeper = "a search chooses by validation scores"
        if config.action.name != "train":
            raise ValueError(f"action={config.action.name}: {sweeper}; leave hydra/sweeper out")
        if config.method.algorithm == "none":
            raise ValueError(
                f"method={config.method.name} has no score: {sweeper}, and it is not trained; "
                "choose a method that trains, or set hydra.mode=RUN to evaluate it by itself"
            )
        if not config.validation.every:
            remedy = "validation.every=auto" if config.validation.is_on else "validation=in_domain"
            raise ValueError(
                f"validation={config.validation.name} validation.every=null: {sweeper}, and "
                f"without them it would tune on the test; set {remedy}"
            )
        for key in self.keys:
            if key.partition(".")[0] in _QUESTIONS:
                raise ValueError(
                    f"{key} is searched, and decides which questions a score is of: scores of "
                    f"other questions do not compare; give {key} one value"
                )


def random_line(sweeper: DictConfig) -> str:
    """That no trial learns from those before, where there are too few; else empty."""
    trials = OmegaConf.select(sweeper, "n_trials") or 0
    key = "sampler.n_startup_trials"
    first = OmegaConf.select(sweeper, key) or 0
    if not trials or trials > first:
        return ""
    return (
        f"hydra.sweeper.n_trials={trials}: every trial is a random draw, since the sampler learns "
        f"from scores after hydra.sweeper.{key}={first}; set more trials, or fewer of those"
    )


def _is_logarithmic(override: Override) -> bool:
    value = override.value()
    return isinstance(value, Sweep) and "log" in value.tags


class Study:
    """Optuna's study of a search, in a file of the sweep, with which the same command goes on."""

    def __init__(self, config: DictConfig, search: Search, fixed: Config) -> None:
        """Hold the sweep's study and prepare it and the sweeper for the trials that are left.

        Raises:
            ValueError: another process is at it, or it is the study of another command.
        """
        self._held = ExitStack()
        folder = search_folder.folder_of(Path(config.outputs), config.sweep)
        if self._held.enter_context(lock.held(folder, f"sweep={config.sweep}")) is None:
            owner = lock.owner(folder)
            raise ValueError(f"{folder}: {owner} goes on with this search; left to it")
        optuna = importlib.import_module("optuna")  # an extra, seconds
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sweeper = config.hydra.sweeper
        storage = sweeper.storage or f"sqlite:///{quote(str((folder / 'study.db').resolve()))}"
        name = sweeper.study_name or config.sweep
        study: OptunaStudy = optuna.create_study(
            study_name=name, storage=storage, direction="maximize", load_if_exists=True
        )
        _refuse_other_command(study, search, fixed, folder)
        search_folder.write_logarithmic(folder, search.logarithmic)
        self.finished = _queue_unfinished(study)
        with read_write(config):
            sweeper.storage, sweeper.study_name = storage, name
            sweeper.direction = "maximize"  # the plugin's default is to minimise
            sweeper.n_trials = max(search.trials - self.finished, 0)
            if sweeper.sampler.get("seed") is not None:
                # Else a sampler that starts again would draw what it drew before.
                sweeper.sampler.seed += len(study.trials)

    def close(self) -> None:
        """Let another process go on with the search."""
        self._held.close()


def _refuse_other_command(study: OptunaStudy, search: Search, fixed: Config, folder: Path) -> None:
    """Scores of other trainings or of another space in one study would not compare."""
    parts = keys.training_parts(fixed) | {
        "cell": [fixed.modality.members, fixed.task.members],
        "seed": fixed.seed,
        "questions": fixed.validation.identity,
    }
    digest = keys.digest({"searched": sorted(search.keys), "parts": parts})
    if study.user_attrs.get(_COMMAND, digest) != digest:
        raise ValueError(
            f"sweep={fixed.sweep}: {folder} is the search of another command, whose scores do not "
            "compare with those of this one; set sweep=... to a new name"
        )
    study.set_user_attr(_COMMAND, digest)


_COMMAND = "medreason"


def _queue_unfinished(study: OptunaStudy) -> int:
    """Let the trials that a kill or an error ended be tried again with their values, before new
    ones; gives the number of those that are complete."""
    settled = [trial.params for trial in study.trials if trial.state.name in _SETTLED]
    for trial in study.trials:
        if trial.state.name == "RUNNING":
            study.tell(trial.number, state=type(trial.state).FAIL)
        if trial.state.name not in _SETTLED and trial.params and trial.params not in settled:
            study.enqueue_trial(trial.params)
            settled.append(trial.params)
    return sum(trial.state.name == "COMPLETE" for trial in study.trials)


_SETTLED = ("COMPLETE", "WAITING")


def open_study(config: DictConfig, search: Search, fixed: Config) -> Study | None:
    """The study of Optuna's sweeper; None of another one, which keeps its own.

    Raises:
        ValueError: Optuna is not installed, or see `Study`.
    """
    if not _is_optunas(config):
        return None
    refuse_without_packages(config)
    return Study(config, search, fixed)


def _is_optunas(config: DictConfig) -> bool:
    return "optuna" in config.hydra.sweeper["_target_"].lower()


def refuse_without_packages(config: DictConfig) -> None:
    """Raise ValueError where Optuna's sweeper is asked for and not installed."""
    if not _is_optunas(config):
        return
    for package in ("optuna", "hydra_plugins.hydra_optuna_sweeper"):
        if find_spec(package) is None:
            raise ValueError(
                "this search needs Optuna and Hydra's plugin for it; type "
                f"`{install_command('search')}`"
            )


def label(overrides: Sequence[str], searched: Sequence[str]) -> list[str]:
    """The values that tell a trial from the others, as `learning_rate=1.252e-5`."""
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    return [
        f"{key.rpartition('.')[2]}={short(value)}" for key, _, value in pairs if key in searched
    ]


def trials(evaluations: Sequence[EvaluationFolder]) -> Iterator[EvaluationFolder]:
    """Those of a sweep's evaluations whose run was trained as a trial."""
    return (e for e in evaluations if e.config.exists() and status.is_trial(e.run))


def chosen_trial(config: DictConfig, evaluations: Sequence[EvaluationFolder]) -> Config | None:
    """The configuration that evaluates the best trial of a sweep on the test split; None where no
    trial is trained."""
    by_folder = {each.run.path: each for each in trials(evaluations)}
    best = selection.best_run(each.run for each in by_folder.values())
    if best is None:
        return None
    configs = {path: configuration.read(each.config) for path, each in by_folder.items()}
    trial = configs[best.path]
    values = dict(zip(configs, varying_values([*configs.values()]), strict=True))[best.path]
    words = [f"{key.rpartition('.')[2]}={short(value)}" for key, value in values.items()]
    notice(
        f"chosen of {counted(len(by_folder), 'trial')} by validation: "
        f"{' '.join([*words, best.path.name])}, {best.state().chosen_because}; it alone is tested"
    )
    runs = replace(trial.runs, test=True)
    return replace(trial, runs=runs, outputs=config.outputs, sweep=config.sweep)
