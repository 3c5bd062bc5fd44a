"""Hydra's callback for a sweep, with any launcher: at its end, a table and all outcomes.

Each job writes `outcome.json` in its folder of the sweep, since jobs may run in other processes and
on other machines. A job that fails leaves the others running.
"""

from __future__ import annotations

import atexit
import errno
import importlib
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from medreason.config import Config, Statistics, Tracking, composing, hydra_errors, options
from medreason.console import command, counted, notice, report_command, show
from medreason.execution import supervision
from medreason.report import published_file
from medreason.runs import interrupts, lock, parent_watch
from medreason.runs.files import read_json, write_json
from medreason.runs.interrupts import InterruptedRunError
from medreason.runs.outcomes import BusyError, NoDataError, Outcome, explained
from medreason.runs.progress import duration
from medreason.runs.run_folder import EvaluationFolder, evaluations_by_sweep, unsynced
from medreason.sweeps.jobs import (
    UncomposableError,
    base_lines,
    compose_jobs,
    drop_typed_params,
    idle_lines,
    labels,
    split_jobs,
    step_lines,
)
from medreason.sweeps.search import (
    BASIC,
    Search,
    Study,
    as_trial,
    chosen_trial,
    is_search,
    label,
    open_study,
    random_line,
    refuse_without_packages,
)

EXPECTED = (ValueError, RuntimeError, OSError, OmegaConfBaseException)
"""Errors a user can mend: the message is enough. Others are shown with their traceback."""

_SAID = "said"
_MOST_ROWS = 24  # of the table at the end; a longer one is for the report
_SWEEP_BYTES = 2**20  # of the files that Hydra and this callback write about the sweep itself
_NAMES = {
    "done": "done",
    "shared": "same evaluation as another job",
    "skipped": "already finished",
    "empty": "without data",
    "busy": "left to another process",
    "failed": "failed",
    "lost": "interrupted",
    "unreached": "not reached",
}


class Sweep(Callback):
    """`hydra.callbacks.sweep`."""

    def __init__(self) -> None:
        self._folder = Path()
        self._jobs: list[list[str]] = []
        """Of a search the overrides that its trials share, as one job."""
        self._search: Search | None = None
        self._study: Study | None = None
        self._started = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Jobs in other processes get the callback without the lock that this one holds."""
        return self.__dict__ | {"_study": None}

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Before Hydra makes the folder it changes to."""
        try:
            Path(config.hydra.run.dir).mkdir(parents=True, exist_ok=True)
        except OmegaConfBaseException:  # Hydra resolves the key next, and its error is explained
            return
        except OSError as error:
            sys.exit(
                f"medreason: hydra.run.dir={config.hydra.run.dir}: {error}; leave it out, and set "
                "outputs=... to where results are to lie"
            )

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Before Hydra launches the jobs. A plan and a report end here."""
        try:
            drop_typed_params(config)
            self._search = Search.of(config) if is_search(config) else None
            if self._search and config.action.name == "train":
                refuse_without_packages(config)  # before what else there is to say
            self._jobs = [self._search.fixed] if self._search else split_jobs(config)
            if not self._jobs:
                raise ValueError(f"the sweep is empty: {' '.join(config.hydra.overrides.task)}")
            for line in step_lines(config, self._jobs):
                notice(line)
            if self._search and (line := random_line(config.hydra.sweeper)):
                notice(line)
            if self._search is None and config.action.name in ("train", "plan"):
                _warn_of_jobs(config, self._jobs)
            if config.report.published:
                published_file.read(config.report.published)
            if _is_done_here(config, self._jobs, self._search):
                sys.exit()
            self._folder, self._started = Path(config.hydra.sweep.dir), time.monotonic()
            if self._search:
                (fixed,) = compose_jobs(config, self._jobs)
                self._search.refuse_unusable(fixed)
                self._study = open_study(config, self._search, fixed)
            self._prepare(config)
        except OmegaConfBaseException as error:
            sys.exit(f"medreason: {hydra_errors.explained(error, (), ())}")
        except EXPECTED as error:
            sys.exit(f"medreason: {explained(error, config.outputs)}")
        # Hydra calls on_multirun_end only if its launcher raised nothing.
        atexit.register(self._end, config)
        _import_for_end()

    def _prepare(self, config: DictConfig) -> None:
        """Write what jobs need to know of their launcher, and try disk and MLflow."""
        self._folder.mkdir(parents=True)
        launcher = {
            "boot": lock.boot_id(),
            "pid": os.getpid(),
            "outlived": _is_outlived(config),
            "labels": [] if self._search else labels(self._jobs),
            "searched": self._search.keys if self._search else [],
            "trials": OmegaConf.select(config, "hydra.sweeper.n_trials") or 0,
        }
        write_json(self._folder / "launcher.json", launcher)
        if "joblib" in config.hydra.launcher["_target_"].lower():
            _make_jobs_watch_launcher(config.hydra.launcher)
            interrupts.before_end(lambda: supervision.finish_jobs(config.runs.grace_seconds))
        if shutil.disk_usage(self._folder).free < _SWEEP_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        _prepare_mlflow(config)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Let the job end with its launcher, unless a queue runs it."""
        path = Path(config.hydra.sweep.dir) / "launcher.json"
        if config.hydra.mode is not RunMode.MULTIRUN or not path.exists():
            return
        launcher = read_json(path)
        from_this_machine = launcher["boot"] == lock.boot_id() and launcher["pid"] != os.getpid()
        if from_this_machine and not launcher["outlived"]:
            parent_watch.end_with(launcher["pid"])

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Write the outcome. Hydra sees success, or it would drop the results of the other jobs."""
        if config.hydra.mode is not RunMode.MULTIRUN:
            return
        outcome = _outcome(job_return, config.outputs)
        # A search takes what is no number for a failed trial.
        value = outcome.state if outcome.score is None else outcome.score
        job_return.status = JobStatus.COMPLETED
        job_return.return_value = value if is_search(config) else outcome.state
        write_json(Path(config.hydra.runtime.output_dir) / "outcome.json", asdict(outcome))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        atexit.unregister(self._end)
        failed = self._search is not None and not self._test_chosen(config)
        if self._end(config) or failed:
            sys.exit(1)

    def _test_chosen(self, config: DictConfig) -> bool:
        """Test the best trial of the search; whether that worked."""
        if _is_outlived(config):
            notice(f"type `{report_command(config.sweep, config.outputs)}` to see the best")
            return True
        evaluations = evaluations_by_sweep(Path(config.outputs) / "runs").get(config.sweep, [])
        from medreason.actions import train  # numpy, which the command line spares

        try:
            if chosen := chosen_trial(config, evaluations):
                train.run(chosen, "the chosen trial", self._folder / _SAID)
        except EXPECTED as error:
            notice(f"the chosen trial is not tested: {explained(error, config.outputs)}")
            return False
        return True

    def _end(self, config: DictConfig) -> bool:
        """Bring MLflow up to date and print the tables; whether any job failed or was lost."""
        if self._study:
            self._study.close()
        runs = Path(config.outputs) / "runs"
        evaluations = evaluations_by_sweep(runs).get(config.sweep, [])
        if config.action.name in ("train", "evaluate"):
            _send_to_mlflow(config, evaluations)
            if config.runs.show_table and 0 < len(evaluations) <= _MOST_ROWS:
                _show_table(evaluations, config)
        return self._show_summary(config)

    def _show_summary(self, config: DictConfig) -> bool:
        jobs = self._jobs
        if self._search:  # as many as the sweeper made, all with the same overrides and more
            jobs = [self._search.fixed for path in self._folder.glob("*") if path.name.isdigit()]
            if self._study and self._study.finished:
                notice(f"finished before: {counted(self._study.finished, 'trial')}")
        elif not any((self._folder / str(i)).exists() for i in range(len(jobs))):
            return True  # Hydra refused the sweep, and says why
        outcomes = _mark_shared(
            [_read_outcome(self._folder / str(i), job) for i, job in enumerate(jobs)]
        )
        counts = Counter(outcome.state for outcome in outcomes)
        states = ", ".join(f"{counts[state]} {_NAMES[state]}" for state in _NAMES if counts[state])
        took = duration(time.monotonic() - self._started)
        states = f": {states}" if states else ""  # of a search that was finished before
        notice(f"sweep {config.sweep}: {counted(len(outcomes), 'job')} in {took}{states}")
        reasons = Counter((o.state, o.error) for o in outcomes if o.error)
        for outcome in outcomes:
            if outcome.error and (count := reasons.pop((outcome.state, outcome.error), 0)):
                same = f" and {count - 1} more" if count > 1 else ""
                typed = self._typed(config, outcome.overrides)
                notice(f"{_NAMES[outcome.state]}: {typed}{same}")
                notice(f"  {outcome.error}")
        if (counts["lost"] or counts["unreached"]) and not interrupts.interrupted():
            notice(f"to resume: {options.started_command()}")
        if config.action.name in ("train", "evaluate") and counts["done"] + counts["skipped"]:
            notice(f"report: {report_command(config.sweep, config.outputs)}")
        return any(counts[state] for state in ("failed", "lost", "unreached"))

    def _typed(self, config: DictConfig, overrides: list[str]) -> str:
        """The command of a job alone; of a trial what it is of, since alone it would be tested."""
        words = [*composing.folder_flags(config.hydra), *map(options.as_typed, overrides)]
        if self._search:
            return shlex.join(words)
        words += [o for o in config.hydra.overrides.hydra if "hydra.searchpath=" in o]
        return command(words)


def job_label(config: Config) -> str:
    """Which job of how many this process runs and what tells it from the others, as `[3/8] grpo
    learning_rate=1e-5`; empty outside a sweep."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return ""
    launcher = read_json(Path(hydra.sweep.dir) / "launcher.json")
    if all_labels := launcher["labels"]:
        words, count = all_labels[hydra.job.num].split(), len(all_labels)
    else:
        words, count = label(hydra.overrides.task, launcher["searched"]), launcher["trials"]
    if config.method.name not in words:
        words.insert(0, config.method.name)
    number = f"{hydra.job.num + 1}/{count}" if count else f"{hydra.job.num + 1}"
    return f"[{number}] {' '.join(words)}"


def said_by_jobs() -> Path | None:
    """Where the jobs of this sweep note what one of them has said; None outside a sweep."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir) / _SAID if hydra.mode is RunMode.MULTIRUN else None


def as_job(config: Config) -> Config:
    """The configuration of a job: as it is, or as a trial of a search."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN or hydra.sweeper["_target_"].endswith(BASIC):
        return config
    return as_trial(config)


def _warn_of_jobs(config: DictConfig, jobs: list[list[str]]) -> None:
    """Say which settings change nothing, and which trainings are not compared with the start model;
    nothing where a job has a wrong value, which fails alone when it begins.

    Raises:
        UncomposableError: Hydra cannot compose a job.
    """
    try:
        configs = compose_jobs(config, jobs)
        flags = composing.folder_flags(config.hydra)
        for line in [*idle_lines(configs, jobs), *base_lines(configs, jobs, flags)]:
            notice(line)
    except UncomposableError:
        raise
    except EXPECTED:
        return


def _is_done_here(config: DictConfig, jobs: list[list[str]], search: Search | None) -> bool:
    """Do an action that takes the sweep as a whole; False where each job acts for itself."""
    match config.action.name:
        case "plan":
            from medreason.actions import plan

            configs = compose_jobs(config, jobs)
            if search is None:
                fits = plan.run_all(configs, labels(jobs))
            else:
                trials = plan.Trials(max(search.trials, 1), search.at_a_time)
                fits = plan.run_all([as_trial(trial) for trial in configs], labels(jobs), trials)
                if not search.trials:
                    notice("of one trial; how many it makes, this sweeper does not say")
            if not fits:
                sys.exit(1)
        case "report":
            from medreason.actions import report

            report.run(compose_jobs(config, jobs[:1])[0])
        case _:
            return False
    return True


def _outcome(job_return: JobReturn, outputs: str) -> Outcome:
    overrides = list(job_return.overrides or [])
    value = job_return._return_value  # the property would raise what the job raised
    if not isinstance(value, BaseException):
        outcome = value if isinstance(value, Outcome) else Outcome("done")
        return replace(outcome, overrides=overrides)
    if not isinstance(value, EXPECTED):
        traceback.print_exception(value)
    first_line = next(iter(explained(value, outputs).splitlines()), "")
    kind = "" if isinstance(value, EXPECTED) else f"{type(value).__name__}: "
    match value:
        case NoDataError():
            outcome = Outcome("empty")
        case InterruptedRunError():
            outcome = Outcome("lost")
        case BusyError():
            outcome = Outcome("busy", run=value.run, evaluation=value.evaluation)
        case _:
            outcome = Outcome("failed")
    return replace(outcome, error=f"{kind}{first_line}", overrides=overrides)


def _read_outcome(folder: Path, overrides: list[str]) -> Outcome:
    try:
        return Outcome(**read_json(folder / "outcome.json"))
    except (FileNotFoundError, ValueError):
        # Hydra makes the folder of a job when it begins.
        return Outcome("lost" if folder.exists() else "unreached", overrides=overrides)


def _mark_shared(outcomes: list[Outcome]) -> list[Outcome]:
    """Name as shared what another job of the same sweep did, or is doing."""
    done = {(o.run, o.evaluation) for o in outcomes if o.state == "done"}
    finished = done | {(o.run, o.evaluation) for o in outcomes if o.state == "skipped"}
    others = {"skipped": done, "busy": finished}
    return [
        replace(o, state="shared", error="")
        if (o.run, o.evaluation) in others.get(o.state, ())
        else o
        for o in outcomes
    ]


def _show_table(evaluations: list[EvaluationFolder], config: DictConfig) -> None:
    statistics = OmegaConf.to_object(config.statistics)
    assert isinstance(statistics, Statistics)
    try:
        # pandas, half a second
        from medreason.report import arms, domains, matrices, runs, summary, table, tables

        rows = runs.load(evaluations, statistics)
        table.show_rows(table.rows_of(rows))
        members = matrices.arms(rows)
        found = tables.Tables(members, {}, (), domains.gather(members))
        arms.show_differences(found.domains)
        if line := summary.caution(rows, found):
            show(line)
    except ValueError as error:  # a damaged folder; the summary is still to come
        notice(error)


def _send_to_mlflow(config: DictConfig, evaluations: list[EvaluationFolder]) -> None:
    """Send what MLflow lacks: killed runs, finished runs that are new to this sweep, and names."""
    if not config.tracking.uri or not evaluations:
        return
    from medreason import tracking  # MLflow, seconds

    settings = OmegaConf.to_object(config.tracking)
    assert isinstance(settings, Tracking)
    sweep = Path(config.outputs), config.sweep
    missing = [each for each in evaluations if unsynced(each, config.sweep)]
    if tracking.catch_up(settings, *sweep, missing):
        tracking.name_runs(settings, *sweep, evaluations)


def _is_outlived(config: DictConfig) -> bool:
    """Whether jobs go on when the launcher ends: those of a queue, on other machines."""
    return "slurm" in config.hydra.launcher["_target_"].lower()


def _import_for_end() -> None:
    """Import what a process that ends cannot: the tables at the end of a sweep need it."""
    for name in ("concurrent.futures.process", "concurrent.futures.thread"):
        importlib.import_module(name)


def _make_jobs_watch_launcher(launcher: DictConfig) -> None:
    """End joblib's processes with the launcher; without this they wait forever for a first job."""
    os.environ[parent_watch.LAUNCHER] = str(os.getpid())
    # It leaves SIGINT and SIGTERM to the launcher; SIGHUP would end it, and joblib's jobs with it.
    tracker = importlib.import_module("joblib.externals.loky.backend.resource_tracker")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    tracker.ensure_running()
    signal.signal(signal.SIGHUP, before)
    begin = f"{interrupts.__name__}.{interrupts.start_job_process.__name__}"
    with read_write(launcher), open_dict(launcher):  # joblib.Parallel's, not in the schema
        launcher.initializer = {"_target_": "hydra.utils.get_method", "path": begin}


def _prepare_mlflow(config: DictConfig) -> None:
    if config.action.name not in ("train", "evaluate") or not config.tracking.uri:
        return
    from mlflow.exceptions import MlflowException  # seconds

    from medreason import tracking

    settings = OmegaConf.to_object(config.tracking)
    assert isinstance(settings, Tracking)
    try:
        tracking.prepare(settings, Path(config.outputs), config.sweep)
    except MlflowException as error:
        tracking.warn_unreached(settings, error, "the sweep runs without it")
