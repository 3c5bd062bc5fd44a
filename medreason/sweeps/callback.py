"""A sweep as Hydra sees it, whatever its launcher: at its end one table of what every job came to.

Each job leaves `outcome.json` in its folder of the sweep, since jobs may run in other processes and
on other machines. What failed in one leaves the others running.
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
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

from medreason.config import Tracking
from medreason.console import notice
from medreason.runs import lock, parent_watch
from medreason.runs.files import read_json, write_json
from medreason.runs.outcomes import BusyError, NoDataError, Outcome, explained
from medreason.runs.progress import duration
from medreason.runs.run_folder import RunFolder, run_folders, sweeps_of, unsynced
from medreason.sweeps.jobs import compose_jobs, split_jobs, step_lines

EXPECTED = (ValueError, RuntimeError, OSError, OmegaConfBaseException)
"""What a user can mend: its message is enough. Anything else is shown with its traceback."""

_MOST_ROWS = 24  # runs in the table at the end; beyond it the report is the place
_OWN_BYTES = 2**20  # of what Hydra and we write about the sweep itself
_ORDER = ("done", "shared", "skipped", "empty", "busy", "failed", "lost")
_NAMES = {
    "done": "done",
    "shared": "same run as another job",
    "skipped": "done before",
    "empty": "without data",
    "busy": "left to another process",
    "failed": "failed",
    "lost": "lost or not reached",
}


class Sweep(Callback):
    """`hydra.callbacks.sweep`."""

    def __init__(self) -> None:
        self._folder = Path()
        self._jobs: list[list[str]] = []
        self._began = 0.0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Before Hydra takes the sweep apart: a plan ends here, and nothing is launched."""
        self._jobs = split_jobs(config)
        if not self._jobs:
            sys.exit(f"medreason: the sweep is empty: {' '.join(config.hydra.overrides.task)}")
        for line in step_lines(config, self._jobs):
            notice(line)
        if config.action.name == "plan":
            from medreason.actions import plan

            try:
                plan.run_all(compose_jobs(config, self._jobs), self._jobs)
            except EXPECTED as error:
                sys.exit(f"medreason: {error}")
            sys.exit()
        if config.action.name == "report":
            from medreason.actions import report

            report.run(compose_jobs(config, self._jobs[:1])[0])
            sys.exit()
        self._folder, self._began = Path(config.hydra.sweep.dir), time.monotonic()
        try:
            self._folder.mkdir(parents=True)
            slurm = "slurm" in config.hydra.launcher["_target_"].lower()
            launcher = {
                **{"boot": lock.boot_id(), "pid": os.getpid(), "outlived": slurm},
                "jobs": len(self._jobs),
            }
            write_json(self._folder / "launcher.json", launcher)
            _let_jobs_watch(config.hydra.launcher)
            if shutil.disk_usage(self._folder).free < _OWN_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
            _prepare_mlflow(config)
        except (OSError, ValueError) as error:
            sys.exit(f"medreason: {explained(error, config.outputs)}")
        # Hydra calls on_multirun_end only where its launcher came through.
        atexit.register(self._end, config)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Jobs end with their launcher, except in a queue, which has them by now."""
        path = Path(config.hydra.sweep.dir) / "launcher.json"
        if config.hydra.mode is not RunMode.MULTIRUN or not path.exists():
            return
        launcher = read_json(path)
        here = launcher["boot"] == lock.boot_id() and launcher["pid"] != os.getpid()
        if here and not launcher["outlived"]:
            parent_watch.end_with(launcher["pid"])

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Note what the job came to; Hydra sees success, else it would drop the others' results."""
        if config.hydra.mode is not RunMode.MULTIRUN:
            return
        outcome = _outcome(job_return, config.outputs)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, outcome.state
        write_json(Path(config.hydra.runtime.output_dir) / "outcome.json", asdict(outcome))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        atexit.unregister(self._end)
        if self._end(config):
            sys.exit(1)

    def _end(self, config: DictConfig) -> bool:
        """Bring MLflow up to date, print the table, say whether any job failed."""
        folders = run_folders(Path(config.outputs) / "runs")
        ours = [folder for folder in folders if config.sweep in sweeps_of(folder)]
        if config.action.name in ("train", "evaluate"):
            _bring_into_mlflow(config, ours)
            if config.runs.show_table and len(ours) <= _MOST_ROWS:
                _show(ours, config.sweep)
        return self._summary(config)

    def _summary(self, config: DictConfig) -> bool:
        if not any((self._folder / str(i)).exists() for i in range(len(self._jobs))):
            return True  # Hydra refused the sweep, and says why
        found = [_read(self._folder / str(i), job) for i, job in enumerate(self._jobs)]
        of = {state: {o.run for o in found if o.state == state} for state in ("done", "skipped")}
        others = {"skipped": of["done"], "busy": of["done"] | of["skipped"]}
        found = [
            replace(o, state="shared", error="") if o.run in others.get(o.state, ()) else o
            for o in found
        ]
        counts = Counter(outcome.state for outcome in found)
        told = ", ".join(f"{counts[state]} {_NAMES[state]}" for state in _ORDER if counts[state])
        took = duration(time.monotonic() - self._began)
        jobs = "1 job" if len(found) == 1 else f"{len(found)} jobs"
        said = [f"sweep {config.sweep}: {jobs} in {took}: {told}"]
        reasons = Counter((o.state, o.error) for o in found if o.error)
        for outcome in found:
            if outcome.error and (count := reasons.pop((outcome.state, outcome.error), 0)):
                same = f" and {count - 1} more" if count > 1 else ""
                said.append(f"{_NAMES[outcome.state]}: {' '.join(outcome.overrides)}{same}")
                said.append(f"  {outcome.error}")
        if counts["lost"]:
            said.append("the same command goes on with what is missing")
        print("\n".join(said), file=sys.stderr, flush=True)  # noqa: T201
        return bool(counts["failed"] or counts["lost"])


def place() -> str:
    """Which job of how many this process does, `[17/121] `; empty outside of a sweep."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return ""
    jobs = read_json(Path(hydra.sweep.dir) / "launcher.json")["jobs"]
    return f"[{hydra.job.num + 1}/{jobs}] "


def _outcome(job_return: JobReturn, outputs: str) -> Outcome:
    overrides = list(job_return.overrides or [])
    value = job_return._return_value  # the property would raise what the job raised
    if not isinstance(value, BaseException):
        told = value if isinstance(value, Outcome) else Outcome("done")
        return replace(told, overrides=overrides)
    if not isinstance(value, EXPECTED):
        traceback.print_exception(value)
    first = next(iter(explained(value, outputs).splitlines()), "")
    kind = "" if isinstance(value, EXPECTED) else f"{type(value).__name__}: "
    match value:
        case NoDataError():
            told = Outcome("empty")
        case BusyError():
            told = Outcome("busy", run=value.run)
        case _:
            told = Outcome("failed")
    return replace(told, error=f"{kind}{first}", overrides=overrides)


def _read(folder: Path, overrides: list[str]) -> Outcome:
    try:
        return Outcome(**read_json(folder / "outcome.json"))
    except (FileNotFoundError, ValueError):
        return Outcome("lost", overrides=overrides)


def _show(folders: list[RunFolder], sweep: str) -> None:
    try:
        from medreason.report import table  # pyarrow, a third of a second

        table.show(folders, sweep)
    except ValueError as error:  # a folder that was damaged since must not cost the summary
        print(error, file=sys.stderr)  # noqa: T201


def _bring_into_mlflow(config: DictConfig, folders: list[RunFolder]) -> None:
    """What MLflow does not show yet: of killed runs, of finished runs new to this sweep."""
    if config.tracking.uri and any(unsynced(f, config.sweep) for f in folders):
        from medreason import tracking  # MLflow, seconds

        settings = OmegaConf.to_object(config.tracking)
        assert isinstance(settings, Tracking)
        tracking.catch_up(settings, Path(config.outputs), config.sweep, folders)


def _let_jobs_watch(launcher: DictConfig) -> None:
    """joblib's processes wait for their first job, and for that of a killed launcher for ever."""
    if "joblib" in launcher["_target_"].lower():
        os.environ[parent_watch.LAUNCHER] = str(os.getpid())
        begin = f"{parent_watch.__name__}.{parent_watch.end_with_launcher.__name__}"
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
        print(  # noqa: T201
            f"MLflow at {config.tracking.uri} not reached ({error}); the sweep goes on without",
            file=sys.stderr,
        )
