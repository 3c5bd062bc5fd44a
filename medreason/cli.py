"""The command line: Hydra composes, `config.load` checks, a module of `actions` runs."""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from string import Template

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medreason import config as configuration
from medreason.config import CONF, Config, composing, flags, options, steps
from medreason.console import (
    command,
    notice,
    quiet_libraries,
    results_are_lost,
    show,
    work_without_readers,
)
from medreason.report import published_file
from medreason.runs import interrupts
from medreason.runs.outcomes import Outcome, explained
from medreason.sweeps.callback import EXPECTED, as_job, job_label, said_by_jobs
from medreason.sweeps.jobs import composition_problem, first_value, idle_lines

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MPI_LOCALRANKID")
_LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_")
"""What torchrun, MPI and `accelerate launch` tell their processes, as accelerate reads it."""


def main() -> None:
    """Run the command line; Ctrl-C, SIGTERM and SIGHUP end it in one line, with what to type to
    go on. Where `head` behind a pipe has ended, it does its work to the end, without a word, and
    exits as tools do that SIGPIPE ends."""
    interrupts.listen()
    work_without_readers()
    try:
        _run_command_line()
        _exit_without_reader()
    except BrokenPipeError:  # of what a library prints
        _exit_without_reader(is_broken=True)
        raise
    except SystemExit as error:
        if not error.code:
            _exit_without_reader()
        raise
    except KeyboardInterrupt as error:
        interrupts.leave()
        kept = str(error) or "what was finished is kept"
        number = signal.Signals(interrupts.first())
        stopped = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
        after = "\n" if sys.stderr.isatty() else ""  # the terminal's ^C
        notice(f"{after}medreason: {stopped}; {kept}; to go on: {options.started_command()}")
        sys.exit(128 + interrupts.first())


def _exit_without_reader(*, is_broken: bool = False) -> None:
    """Raise SystemExit where nobody read the results to their end."""
    if results_are_lost(is_broken=is_broken):
        sys.exit(128 + signal.SIGPIPE)


def _run_command_line() -> None:
    """Check it and hand it to Hydra, which calls `job`."""
    sys.argv[1:] = options.joined_sweeps(sys.argv[1:])
    try:
        arguments = flags.parse(options.options([CONF]))
    except ValueError as error:
        sys.exit(f"medreason: {error}")
    if not _has_other_folders(arguments):
        if arguments.config_dir and not Path(arguments.config_dir).is_dir():
            sys.exit(f"medreason: --config-dir {arguments.config_dir}: no such folder")
        folders = [CONF, *map(Path, filter(None, [arguments.config_dir]))]
        if arguments.help or len(sys.argv) == 1:
            show(_help(folders))
            return
        try:
            options.check(arguments.overrides, folders)
            if not _may_sweep(arguments):
                options.refuse_sweep(arguments.overrides)
            if "action=rehearse" in arguments.overrides:  # it starts commands of its own
                from medreason.actions import rehearse

                rehearse.run([o for o in arguments.overrides if o != "action=rehearse"])
                return
        except ValueError as error:
            sys.exit(f"medreason: {error}")
    elif "action=rehearse" in arguments.overrides:
        sys.exit(
            "medreason: action=rehearse knows the recipes of the package alone; leave out "
            "hydra.searchpath=..., --config-path and --config-name"
        )
    sys.argv[1:] = _for_hydra(sys.argv[1:], arguments)
    quiet_libraries()
    _compose_and_run(arguments)


_FULL_ERROR = "HYDRA_FULL_ERROR"


def _compose_and_run(arguments: Namespace) -> None:
    """Let Hydra call `job`; what it cannot compose ends in one line, unless its variable asks for
    all of the error."""
    if _FULL_ERROR in os.environ:
        job()
        return
    os.environ[_FULL_ERROR] = "1"  # it raises, and does not print; `job` takes it away
    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        folders = [CONF, *map(Path, filter(None, [arguments.config_dir]))]
        sys.exit(f"medreason: {composition_problem(error, arguments.overrides, folders)}")
    finally:
        os.environ.pop(_FULL_ERROR, None)


def _help(folders: Sequence[Path]) -> str:
    """What Hydra prints for `--help`, without its search for plugins, which takes two seconds."""
    groups = [f"{group}: {', '.join(names)}" for group, names in options.options(folders).items()]
    page = OmegaConf.load(CONF / "config.yaml").hydra.help
    text = Template(page.template).substitute(APP_CONFIG_GROUPS="\n".join(groups) + "\n")
    return text.replace("python -m medreason", command())


def _has_other_folders(arguments: Namespace) -> bool:
    """Whether options may lie in folders that Hydra alone can name."""
    search = any(o.lstrip("+").startswith("hydra.searchpath=") for o in arguments.overrides)
    return bool(search or arguments.config_path or arguments.config_name)


def _may_sweep(arguments: Namespace) -> bool:
    """Whether several values of a key are right: a sweep, or what shows its first job alone."""
    shown = arguments.cfg is not None or arguments.info is not None
    starts = ("experiment=", "+experiment=", "hydra.mode=")
    return arguments.multirun or shown or any(o.startswith(starts) for o in arguments.overrides)


def _for_hydra(typed: list[str], arguments: Namespace) -> list[str]:
    """The command line for Hydra, changed where it would complain of something else."""
    flagged = [word for word in typed if word not in arguments.overrides]
    overrides = [options.for_hydra(override) for override in arguments.overrides]
    typed = [*flagged, *overrides]  # a=1 -m b=2
    if arguments.cfg is not None or arguments.info is not None:
        # It shows one configuration: that of the first job.
        single = [word for word in typed if word not in ("-m", "--multirun")]
        return [first_value(word) if word in overrides else word for word in single]
    recipe = any(override.startswith("experiment=") for override in overrides)
    if recipe and not arguments.multirun and any(first_value(o) != o for o in overrides):
        # It finds a recipe's hydra.mode only where all else is right, and would name the swept
        # values instead of the wrong one.
        return ["-m", *typed]
    return typed


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def job(composed: DictConfig) -> Outcome | None:
    """Run one job of the command line; a sweep comes here once for each.

    What a job of a sweep raises is recorded by `sweeps.callback`, and the others go on.
    """
    os.environ.pop(_FULL_ERROR, None)
    work_without_readers()  # joblib runs it in a process of its own
    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    try:
        _leave_other_launchers()
        chosen = composing.choices(hydra_config.runtime.choices)
        config = as_job(configuration.load(composed, chosen, composing.typed(hydra_config)))
        if not in_sweep and (line := steps.line(composed, hydra_config.runtime)):
            notice(line)
        if not in_sweep:
            for line in idle_lines([config], [config.typed]):
                notice(line)
            if config.report.published:
                published_file.read(config.report.published)
        return _run(config)
    except EXPECTED as error:
        if in_sweep:
            raise
        values = OmegaConf.to_container(composed)
        assert isinstance(values, dict)
        outputs = str(values["outputs"])  # as typed, since this may be what is wrong
        sys.exit(f"medreason: {explained(error, outputs)}")


def _leave_other_launchers() -> None:
    """Remove from the environment what other launchers left there.

    Ranks, precision and sharding are those of the hardware profile. A worker would else take itself
    for a rank, and two runs at once would listen on one port.

    Raises:
        ValueError: torchrun or `accelerate launch` started this process among several.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            f"torchrun or accelerate started this as one of {os.environ['WORLD_SIZE']} processes; "
            "medreason starts its own, as many as the profile says: "
            f"{command(['hardware=gpu_x2'])}"
        )
    others = [
        name
        for name in os.environ
        if name in _RANK_VARIABLES or name.startswith(_LAUNCHER_PREFIXES)
    ]
    for name in others:
        del os.environ[name]
    if others:
        notice(f"ignored, since hardware= decides: {', '.join(sorted(others))} of the environment")


def _run(config: Config) -> Outcome | None:
    match config.action.name:
        case "train":
            from medreason.actions import train

            return train.run(config, job_label(config), said_by_jobs())
        case "evaluate":
            from medreason.actions import evaluate

            return evaluate.run(config, job_label(config), said_by_jobs())
        case "audit":
            from medreason.actions import audit as action
        case "prepare":
            from medreason.actions import prepare as action
        case "report":
            from medreason.actions import report as action
        case "plan":
            from medreason.actions import plan as action
        case "bench":
            from medreason.actions import bench as action
        case "judge":
            from medreason.actions import judge as action
        case "predict":
            from medreason.actions import predict as action
        case "export":
            from medreason.actions import export as action
        case name:
            raise AssertionError(name)  # Action knows no other
    action.run(config)
    return None
