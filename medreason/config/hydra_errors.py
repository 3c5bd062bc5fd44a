"""What Hydra says of a command line that it cannot compose, in the words of our messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from medreason.config import options
from medreason.console import install_command

_NOTHING_TO_DELETE = re.compile(r"Could not delete (?:from config\. )?'(.+?)'")

NOT_INSTALLED = "is not installed"
_NO_PLUGIN = re.compile(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'")
_EXTRAS = {
    ("launcher", "ray"): "ray",
    ("launcher", "ray_aws"): "ray",
    ("launcher", "ray_cluster"): "ray",
    ("sweeper", "optuna"): "search",
    ("sweeper", "search"): "search",
}
"""Hydra's plugins -> the extra of this package that installs them."""


def explained(error: BaseException, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """Key, value and remedy of an error of Hydra or OmegaConf. `overrides` are those of the command
    or of one job, `folders` hold the options."""
    try:
        if not any("hydra.searchpath=" in override for override in overrides):
            options.check(overrides, folders)
    except ValueError as known:
        return str(known)
    if deleted := _NOTHING_TO_DELETE.search(str(error)):
        return f"~{deleted[1]}: there is no {deleted[1]} to leave out; take this word away"
    if plugin := _NO_PLUGIN.search(str(error)):
        group, option = plugin.groups()
        if extra := _EXTRAS.get((group, option)):
            return f"hydra/{group}={option} {NOT_INSTALLED}; `{install_command(extra)}`"
    if isinstance(error, OmegaConfBaseException):
        key = f"{error.full_key}: " if error.full_key else ""
        return f"{key}{str(error).partition(chr(10))[0]}; set that key, or this one itself"
    cause = error.__cause__
    text = " ".join(f"{error} {cause or ''}".partition("Config search path")[0].split())
    return f"{text}; correct it, or leave it out (--cfg job prints every key)"
