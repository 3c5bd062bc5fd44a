"""Model folders: where a model is on disk, whether it is complete, which one it is. No torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

EMBEDDED = Path(__file__).parent / "tiny" / "weights"
"""The tiny model that ships with the package."""

_READ_BYTES = 1 << 20
"""Of each end of a file: reading gigabytes of weights for a digest would take minutes."""


def resolve(path: str) -> str:
    """A folder, or a hub id where no folder of that name exists."""
    return str(EMBEDDED) if path == "tiny" else path


def check(path: str, key: str = "model.path") -> None:
    """Refuse a folder, the value of `key`, that cannot be loaded. A hub id is left to the hub.

    Raises:
        ValueError: the folder lacks its config or its weights.
    """
    folder = Path(resolve(path))
    if not folder.exists():
        if path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise ValueError(f"{key}={path!r}: no such folder, and not a hub id (owner/name)")
        return
    kinds = ("config.json", "adapter_config.json")
    if not any((folder / name).exists() for name in kinds):
        raise ValueError(f"{key}={path!r}: neither {kinds[0]} nor {kinds[1]} in the folder")
    weights = _weights(folder)
    if not weights:
        raise ValueError(
            f"{key}={path!r}: no weights (*.safetensors) in the folder; "
            "save the model with save_pretrained or copy its weights there"
        )
    for file in weights:
        if file.stat().st_size < 8:
            raise ValueError(f"{file}: empty or cut off; copy the weights again")
    for index in folder.glob("*.safetensors.index.json"):
        named = set(json.loads(index.read_text())["weight_map"].values())
        if absent := sorted(name for name in named if not (folder / name).exists()):
            raise ValueError(
                f"{index} names {absent[0]}, which is not in the folder; copy it there"
            )


def is_adapter(path: str) -> bool:
    return (Path(resolve(path)) / "adapter_config.json").exists()


def fingerprint(path: str) -> str:
    """A digest of a folder's model, by sizes and both ends of its files. Empty for a hub id."""
    folder = Path(resolve(path))
    if not folder.exists():
        return ""
    state = hashlib.sha256()
    for file in [*_weights(folder), *sorted([*folder.glob("*.json"), *folder.glob("*.jinja")])]:
        size = file.stat().st_size
        state.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            state.update(stream.read(_READ_BYTES))
            stream.seek(max(size - _READ_BYTES, 0))
            state.update(stream.read(_READ_BYTES))
    return state.hexdigest()[:16]


def size_on_disk(path: str) -> int:
    """Bytes of the weights, 0 where they are not downloaded yet."""
    folder = Path(resolve(path))
    return sum(file.stat().st_size for file in _weights(folder)) if folder.exists() else 0


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
