"""Whether what a run folder calls finished is still what was written: edited, cut off, lost."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from medreason.config import Config
from medreason.runs import keys
from medreason.runs.files import read_json, write_json
from medreason.runs.run_folder import RunFolder

_SEAL = "sealed.json"
_FILES = ("predictions.parquet", "metrics.json")
_SCIENCE = ("method", "model", "modality", "task", "prompt", "reward", "adapter", "seed")


def seal(folder: RunFolder, evaluation_key: str) -> None:
    """Note the digests of a finished evaluation."""
    evaluation = folder.evaluation(evaluation_key)
    found = {name: _digest(evaluation / name) for name in _FILES}
    write_json(evaluation / _SEAL, found)


def is_whole(folder: RunFolder, evaluation_key: str) -> bool:
    """Whether a finished evaluation is what it was when it was sealed."""
    evaluation = folder.evaluation(evaluation_key)
    try:
        sealed = read_json(evaluation / _SEAL)
        return all(_digest(evaluation / name) == sealed.get(name) for name in _FILES)
    except (FileNotFoundError, ValueError):
        return False


def refuse_other_config(folder: RunFolder, config: Config) -> None:
    """Compare what decides the weights in a finished folder's config.yaml and in this command.

    Raises:
        ValueError: with the key and both values.
    """
    try:
        frozen = yaml.load(folder.config.read_text(), Loader=_LOADER)
    except (FileNotFoundError, yaml.YAMLError) as error:
        raise ValueError(
            f"{folder.config}: not a readable configuration ({' '.join(str(error).split())}); "
            "move the folder away to run again"
        ) from error
    if not isinstance(frozen, dict):
        raise ValueError(f"{folder.config}: empty or cut off; move the folder away to run again")
    there, here = (_science(values) for values in (frozen, asdict(config)))
    if config.method.algorithm == "none":
        there, here = ({"model": part["model"]} for part in (there, here))
    elif config.method.algorithm != "grpo":
        there["reward"] = here["reward"] = None
    for where, was, now in keys.differences(there, here):
        raise ValueError(
            f"{folder.config} says {where}={was!r}, this command {now!r}; the folder was edited "
            "or copied: move it away to run again"
        )


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster


def _science(values: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration decides the weights; where the start model lies does not."""
    chosen = {name: values.get(name) for name in _SCIENCE}
    model, prompt = dict(chosen["model"] or {}), dict(chosen["prompt"] or {})
    chosen["model"] = {name: value for name, value in model.items() if name != "path"}
    chosen["model"].setdefault("quantization", "none")  # of folders that are older than it
    chosen["prompt"] = {name: prompt.get(name) for name in ("style", "train")}
    for group in ("modality", "task"):
        chosen[group] = (chosen[group] or {}).get("members")
    return chosen


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
