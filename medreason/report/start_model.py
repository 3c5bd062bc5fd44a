"""The command that adds a run's start model to its sweep."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from medreason.config import CONF, Config
from medreason.config.data import Handling
from medreason.console import command

_GROUPS = ("data", "model", "prompt", "evaluation")
"""Whose options decide what a start model is asked."""
_WORDS = ("experiment", *_GROUPS, "statistics", "outputs", "hardware")
"""First parts of the overrides that the run of a start model takes from another's command."""
_USUAL = {"sweep": "runs", "outputs": "outputs"}
"""What conf/config.yaml sets, so that a command need not."""


def command_of_base(config: Config, *words: str) -> str:
    """What to type to evaluate the start model of a run as the run was evaluated: the words that
    were typed for it, or, of a folder that does not know them, its options and the values of
    `data`; `words` win."""
    named = {word.partition("=")[0] for word in words}
    known = words_of_start_model(config.typed) if config.typed else [*_options(config)]
    if config.sweep != _USUAL["sweep"]:
        words = (*words, f"sweep={config.sweep}")
    if not config.typed and config.outputs != _USUAL["outputs"]:
        words = (*words, f"outputs={config.outputs}")
    kept = [word for word in known if word.partition("=")[0] not in named]
    flags, kept = kept[: _flags(kept)], kept[_flags(kept) :]
    return command([*flags, "method=base", *kept, *words])


def how_to_add_base(config: Config) -> str:
    """The command, and what it lacks where the run's own is not known."""
    lacks = ", with the words for data, model, prompt and evaluation that these runs were given"
    return f"`{command_of_base(config)}` adds it{'' if config.typed else lacks}"


def words_of_start_model(typed: Sequence[str]) -> list[str]:
    """Of the words of a command those that its start model needs, flags first."""
    first = _flags(typed)
    parts = (re.split(r"[=./@]", word.lstrip("+~"))[0] for word in typed[first:])
    kept = [word for word, part in zip(typed[first:], parts, strict=True) if part in _WORDS]
    return [*typed[:first], *kept]


def _flags(typed: Sequence[str]) -> int:
    """How many words `--config-dir DIR` takes at the beginning."""
    return 2 * sum(word == "--config-dir" for word in typed)


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
