"""Model folders: where a model is on disk, whether it is complete, which one it is. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from medreason.runs.files import read_json

EMBEDDED = Path(__file__).parent / "tiny" / "weights"
"""The tiny model that ships with the package."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
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
        if not _HUB_ID.fullmatch(path):
            hint = (
                "; name a revision by model.revision" if _HUB_ID.match(path) and "@" in path else ""
            )
            raise ValueError(f"{key}={path!r}: no such folder, and not a hub id (owner/name){hint}")
        return
    kinds = ("config.json", "adapter_config.json")
    if not any((folder / name).exists() for name in kinds):
        raise ValueError(f"{key}={path!r}: neither {kinds[0]} nor {kinds[1]} in the folder")
    name = "adapter_model" if (folder / kinds[1]).exists() else "model"
    read_json(folder / (kinds[1] if name == "adapter_model" else kinds[0]))
    _refuse_missing_weights(folder, name, key, path)
    for file in _weights(folder):
        tensors(file)


def _refuse_missing_weights(folder: Path, name: str, key: str, path: str) -> None:
    """Raise ValueError unless the weights are there under the names that are loaded."""
    if not _weights(folder):
        others = [f.name for f in sorted(folder.iterdir()) if f.suffix in (".bin", ".pt", ".gguf")]
        remedy = (
            f"{others[0]} is not read: load it where it opens, and save it with save_pretrained"
            if others
            else "save the model with save_pretrained or copy its weights there"
        )
        raise ValueError(f"{key}={path!r}: no weights (*.safetensors) in the folder; {remedy}")
    indices = list(folder.glob("*.safetensors.index.json"))
    for index in indices:
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise ValueError(f"{index}: has no weight_map; copy the file again")
        if absent := sorted(n for n in set(names.values()) if not (folder / n).exists()):
            raise ValueError(
                f"{index} names {absent[0]}, which is not in the folder; copy it there"
            )
    if not indices and not (folder / f"{name}.safetensors").exists():
        raise ValueError(
            f"{key}={path!r}: {_weights(folder)[0].name} is not loaded without "
            f"{name}.safetensors.index.json; copy that and all files that it names, or rename a "
            f"single file to {name}.safetensors"
        )


def tensors(file: Path) -> dict[str, list[int]]:
    """Tensor -> shape, from the header of a safetensors file.

    Raises ValueError where it is another file, or cut off.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise ValueError(f"{file}: a pointer of Git LFS, not the weights; run git lfs pull")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise ValueError(f"{file}: empty or cut off, or no safetensors; copy the weights again")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file}: no safetensors ({error}); copy the weights again") from error
    header.pop("__metadata__", None)
    expected = 8 + length + max((t["data_offsets"][1] for t in header.values()), default=0)
    if size != expected:
        raise ValueError(f"{file}: {size} bytes of {expected}; copy the weights again")
    return {name: tensor["shape"] for name, tensor in header.items()}


def refuse_text_only(path: str, key: str = "model.path") -> None:
    """Raise ValueError for a whole model in a folder that takes no images."""
    config = read_json(Path(resolve(path)) / "config.json")
    if not any(word in name for name in config for word in ("vision", "image", "vq")):
        raise ValueError(
            f"{key}={path!r}: config.json describes a model of text alone "
            f"({config.get('model_type')!r}); give one that takes images, such as "
            "Qwen/Qwen2-VL-2B-Instruct"
        )


def refuse_quantized(path: str, key: str = "model.path") -> None:
    """Raise ValueError for a folder whose weights are in few bits: they can't be trained, and an
    adapter merged into them is rounded away."""
    file = Path(resolve(path)) / "config.json"
    quantized = read_json(file).get("quantization_config") if file.exists() else None
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"{key}={path!r}: its weights are quantized ({method}), to be neither trained nor "
            "merged with an adapter; give the model that it was made of (adapter=qlora quantizes "
            "while it loads)"
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
