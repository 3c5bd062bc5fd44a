"""The border between YAML and code: past `load` nothing sees OmegaConf, and nothing imports torch.

`schema`, `hardware`, `judge` and `data` hold the classes of the groups, `checks` the rules between
groups. `options` checks the command line before Hydra composes; `composing` does so from Python;
`files` loads, reads and writes;
`targets` imports the functions that YAML names; `machine` compares a profile with this machine.
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
    Selection,
    Statistics,
    Tracking,
    Validation,
)
from medreason.config.targets import function, target

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
    "Selection",
    "Statistics",
    "Tracking",
    "Validation",
    "function",
    "handling",
    "load",
    "read",
    "target",
    "write",
]
