"""The command line: Hydra composes, `config.load` checks, one module of `actions` runs."""

from __future__ import annotations

import sys

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from medreason import config as configuration
from medreason.config import CONF, Config
from medreason.runs.outcomes import Outcome
from medreason.runs.sweep import EXPECTED

ConfigStore.instance().store(name="schema", node=Config)


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(composed: DictConfig) -> Outcome | None:
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
        sys.exit(f"medreason: {error}")


def _run(config: Config) -> Outcome | None:
    match config.action.name:
        case "train":
            from medreason.actions import train as action
        case "evaluate":
            from medreason.actions import evaluate as action
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
    return action.run(config)
