"""The command that adds a run's start model to its sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import yaml

from medreason.config import CONF, Config
from medreason.config.data import Handling
from medreason.console import command

_GROUPS = ("data", "model", "prompt", "evaluation")
"""Whose options decide what a start model is asked."""
_USUAL = {"sweep": "runs", "outputs": "outputs"}
"""What conf/config.yaml sets, so that a command need not."""


def command_of_base(config: Config, *words: str) -> str:
    """What to type to evaluate the start model of a run as the run was evaluated, by its options
    and the values of `data`; `words` win."""
    values = {"sweep": config.sweep, "outputs": config.outputs}
    kept = [f"{key}={value}" for key, value in values.items() if value != _USUAL[key]]
    named = {word.partition("=")[0] for word in words}
    options = (o for o in _options(config) if o.partition("=")[0] not in named)
    return command(["method=base", *options, *words, *kept])


def _options(config: Config) -> Iterator[str]:
    entries = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    usual = {group: option for e in entries if isinstance(e, dict) for group, option in e.items()}
    for group in _GROUPS:
        option = config.choices.get(group)
        if option and option != usual[group]:
            yield f"{group}={option}"
        if group == "data" and option:
            yield from _data_values(config.data, option)


def _data_values(data: dict[str, Any], option: str) -> Iterator[str]:
    """The values that the option does not set, where one word can."""
    path = CONF / f"data/{option}.yaml"
    content = yaml.safe_load(path.read_text()) if path.is_file() else {}
    known = asdict(Handling()) | content
    inherits = "defaults" in content or not path.is_file()
    for key, value in data.items():
        is_known = known[key] == value if key in known else inherits
        if not (is_known or key.startswith("_") or isinstance(value, list | dict | None)):
            yield f"data.{key}={str(value).lower() if isinstance(value, bool) else value}"
