"""The folder of a search below `outputs`: its study, and what the report of its trials needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medreason.runs.files import read_json, write_json

_FILE = "logarithmic.json"


def folder_of(outputs: Path, sweep: str) -> Path:
    return outputs / "searches" / sweep


def write_logarithmic(folder: Path, keys: Sequence[str]) -> None:
    """Keep the keys whose values are chosen by their logarithm."""
    write_json(folder / _FILE, {"keys": list(keys)})


def logarithmic(outputs: Path, sweep: str) -> list[str]:
    """The keys that a search chose by the logarithm of their values; none of another sweep."""
    path = folder_of(outputs, sweep) / _FILE
    return read_json(path)["keys"] if path.exists() else []
