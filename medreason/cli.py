"""The command line: Hydra composes, `config.load` checks, one module of `actions` runs."""

from __future__ import annotations

import logging
import sys
import warnings
from argparse import Namespace
from string import Template

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from medreason import config as configuration
from medreason.config import CONF, Config
from medreason.runs.outcomes import Outcome, explained
from medreason.sweeps.callback import EXPECTED, place
from medreason.sweeps.jobs import first_value

ConfigStore.instance().store(name="schema", node=Config)


def main() -> None:
    """The command line as it is typed."""
    given, _ = get_args_parser().parse_known_args()
    if given.help and not given.config_dir:
        print(_help())  # noqa: T201
        return
    sys.argv[1:] = _meant(sys.argv[1:], given)
    # Nothing in what is typed changes these: names to be renamed, a kernel that has a substitute.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    job()


def _help() -> str:
    """What Hydra prints for `--help`, which spends most of two seconds on the list of groups."""
    folders = sorted({file.parent.relative_to(CONF) for file in CONF.rglob("*.yaml")})
    groups = [
        f"{folder}: {', '.join(sorted(file.stem for file in (CONF / folder).glob('*.yaml')))}"
        for folder in folders
        if folder.parts and folder.parts[0] != "hydra"
    ]
    told = OmegaConf.load(CONF / "config.yaml").hydra.help
    return Template(told.template).substitute(APP_CONFIG_GROUPS="\n".join(groups) + "\n")


def _meant(arguments: list[str], given: Namespace) -> list[str]:
    """What is meant, where Hydra would complain of something else."""
    if given.cfg is not None or given.info is not None:
        # It shows one configuration: that of the first job.
        kept = [argument for argument in arguments if argument not in ("-m", "--multirun")]
        return [first_value(a) if a in given.overrides else a for a in kept]
    recipe = any(override.startswith("experiment=") for override in given.overrides)
    if recipe and not given.multirun and any(first_value(o) != o for o in given.overrides):
        # It finds a recipe's hydra.mode only where all else is right, and would name the swept
        # values instead of the wrong one.
        return ["-m", *arguments]
    return arguments


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def job(composed: DictConfig) -> Outcome | None:
    """Run one job of the command line; a sweep comes here once for each.

    What a job raises in a sweep is noted by `runs.sweep`, and the others go on.
    """
    choices = {
        group.rpartition("@")[2]: option  # judge@second_judge: MLflow takes no @ in a name
        for group, option in HydraConfig.get().runtime.choices.items()
        if not group.startswith("hydra/") and isinstance(option, str)
    }
    sweeps = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        return _run(configuration.load(composed, choices))
    except EXPECTED as error:
        if sweeps:
            raise
        sys.exit(f"medreason: {explained(error, composed.outputs)}")


def _run(config: Config) -> Outcome | None:
    match config.action.name:
        case "train":
            from medreason.actions import train

            return train.run(config, place())
        case "evaluate":
            from medreason.actions import evaluate

            return evaluate.run(config, place())
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
