"""The border between YAML and code: behind `load` nothing sees OmegaConf. No torch.

`schema` has the classes of the groups, with `hardware` and `judge`; `checks` the rules between
groups; `files` reads and writes; `targets` finds the functions YAML names; `machine` compares a
profile with this machine.
"""

from medreason.config.data import Handling, handling
from medreason.config.files import CONF, load, read, write
from medreason.config.hardware import Hardware, Rollout
from medreason.config.judge import Judge, Rubric
from medreason.config.schema import (
    ANSWERS,
    CONTROLS,
    METHODS,
    Config,
    Evaluation,
    Method,
    Model,
    Prompt,
    Reward,
    Tracking,
)
from medreason.config.targets import call, target

__all__ = [
    "ANSWERS",
    "CONF",
    "CONTROLS",
    "METHODS",
    "Config",
    "Evaluation",
    "Handling",
    "Hardware",
    "Judge",
    "Method",
    "Model",
    "Prompt",
    "Reward",
    "Rollout",
    "Rubric",
    "Tracking",
    "call",
    "handling",
    "load",
    "read",
    "target",
    "write",
]
