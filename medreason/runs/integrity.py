"""Whether a run folder holds what was written to it: edited, copied, cut off or lost files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from medreason import config as configuration
from medreason.console import as_typed
from medreason.runs import keys
from medreason.runs.files import read_json, write_json
from medreason.runs.run_folder import RunFolder, State

_SEAL = "sealed.json"
_FILES = ("config.yaml", "data.json", "predictions.parquet", "metrics.json")


def seal(folder: RunFolder, evaluation_key: str) -> None:
    """Write down the digests of a finished evaluation."""
    evaluation = folder.evaluation(evaluation_key)
    write_json(evaluation / _SEAL, {name: _digest(evaluation / name) for name in _FILES})


def is_whole(folder: RunFolder, evaluation_key: str) -> bool:
    """Whether the files of a finished evaluation are those that were sealed."""
    evaluation = folder.evaluation(evaluation_key)
    try:
        sealed = read_json(evaluation / _SEAL)
        return all(_digest(evaluation / name) == sealed.get(name) for name in _FILES)
    except (FileNotFoundError, ValueError):
        return False


def refuse_changed(folder: RunFolder, evaluation_key: str) -> None:
    """Compare the files of a finished evaluation with its seal, where it has one.

    Raises:
        ValueError: naming the first that was changed, cut off or lost.
    """
    evaluation = folder.evaluation(evaluation_key)
    if not (evaluation / _SEAL).exists():
        return
    sealed = read_json(evaluation / _SEAL)
    for path in (evaluation / name for name in _FILES):
        if not path.is_file() or _digest(path) != sealed.get(path.name):
            raise ValueError(
                f"{path}: changed, cut off or lost since it was evaluated; put it back, or re-run "
                f"the command of {folder.path}, which evaluates again"
            )


def refuse_other_state(folder: RunFolder, state: State, parts: dict[str, Any]) -> None:
    """Compare the parts of the train key that state.json records with those of this command.

    Raises:
        ValueError: with the key and both values.
    """
    if state.train_parts:
        written_as = json.loads(json.dumps(parts))
        _refuse_difference(folder.path / "state.json", state.train_parts, written_as)


def refuse_other_config(folder: RunFolder, parts: dict[str, Any]) -> None:
    """Compare what decides the weights in a folder's config.yaml and in this command.

    What a configuration cannot say, the digests of data and model, is taken from `parts`.

    Raises:
        ValueError: with the key and both values, or since config.yaml cannot be read.
    """
    try:
        frozen = configuration.read(folder.config)
    except ValueError as error:
        raise ValueError(f"{error}; move the folder away to run again") from error
    data_digest, fingerprint = parts.get("data", ""), parts["model"]["fingerprint"]
    asked = parts.get("validation", {}).get("questions_digest", "")
    frozen_parts = keys.train_parts(frozen, data_digest, fingerprint, asked)
    _refuse_difference(folder.config, frozen_parts, parts)


def _refuse_difference(path: Path, recorded: dict[str, Any], parts: dict[str, Any]) -> None:
    for key, before, now in keys.differences(recorded, parts):
        raise ValueError(
            f"{path} says {key}={_text(before)}, this command {_text(now)}; the folder was edited "
            "or copied: put that back to go on, or move the folder away to run again"
        )


def _text(value: object) -> str:
    return as_typed(value) if isinstance(value, float) else repr(value)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
