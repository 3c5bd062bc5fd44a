"""The command that adds a run's start model to its sweep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medreason.config import Config
from medreason.console import command, outputs_word

_PARTS = (
    "experiment",
    "data",
    "model",
    "prompt",
    "evaluation",
    "statistics",
    "outputs",
    "hardware",
)
"""First parts of the overrides that the run of a start model takes from another's command."""


def how_to_add_base(config: Config, *words: str, outputs: Path | None = None) -> str:
    """The command that evaluates the start model of a run as the run was evaluated, by the words
    that were typed for it; `words` win. A folder of an earlier commit does not know them, which is
    said. `outputs` is where the run lies now, where that may be another folder than it was made
    in."""
    words = (*words, *outputs_word(outputs or config.folder))
    named = {"outputs", *(word.partition("=")[0] for word in words)}
    typed = words_of_start_model(config.typed)
    kept = [word for word in typed if word.partition("=")[0] not in named]
    sweep = [f"sweep={config.sweep}"] if config.sweep != "runs" else []
    flags = _flags(kept)
    told = command([*kept[:flags], "method=base", *kept[flags:], *words, *sweep])
    lacks = ", with the words for data, model, prompt and evaluation that these runs were given"
    return f"`{told}` adds it{'' if config.typed else lacks}"


def words_of_start_model(typed: Sequence[str]) -> list[str]:
    """Of the words of a command those that its start model needs, flags first."""
    first = _flags(typed)
    parts = (re.split(r"[=./@]", word.lstrip("+~"))[0] for word in typed[first:])
    kept = [word for word, part in zip(typed[first:], parts, strict=True) if part in _PARTS]
    return [*typed[:first], *kept]


def _flags(typed: Sequence[str]) -> int:
    """How many words `--config-dir DIR` takes at the beginning."""
    return 2 * sum(word == "--config-dir" for word in typed)
