"""The disk space of a run, counted from the shapes of its model's weights. No torch."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medreason.config import Config, Hardware, hub
from medreason.models import layout, model_folder
from medreason.runs.files import free_bytes, read_json

CHECKPOINTS_AT_ONCE = 3
"""Those that `training.checkpoints` keeps, and the one that is being written."""

_FLOAT32, _BFLOAT16 = 4, 2
_MOMENTS = {"float32": 8.0, "8bit": 2 + 8 / 256}
"""Bytes of AdamW's two moments of a trained parameter; in 8 bits with a scale for 256 values."""
_SMALL = 4096
"""Parameters of a tensor below which bitsandbytes keeps float32, as it does for embeddings."""
_DEEPSPEED = 14
"""Of its checkpoints: weights in bfloat16; copies of them and both moments in float32."""
_REST = 100 * 2**20
"""Logs, tokenizers, predictions."""

Shapes = Mapping[str, list[int]]
"""Tensor -> shape."""


@dataclass(frozen=True)
class DiskSpace:
    """Bytes that a training takes."""

    kept: int
    """The finished model or adapter."""
    training: int
    """The most while it trains: checkpoints, at the end with the finished model."""
    download: int
    """Weights of a hub id that are not in the hub's cache."""


def disk_space(config: Config, published: Shapes | None = None) -> DiskSpace | None:
    """What the configured training takes; None where the hub does not say how large the model is.

    `published` stand in for what the hub would say, of weights in bfloat16 to download.

    Raises:
        ValueError: a file of the model's folder is cut off.
    """
    try:
        shapes, download = _base_shapes(config.model.path, config.model.revision)
    except OSError:
        if published is None:
            return None
        shapes, download = published, _BFLOAT16 * _count(published)
    if config.method.algorithm == "none":
        return DiskSpace(0, 0, download)
    hardware = config.hardware
    trained = _adapter_shapes(shapes, config.adapter) if config.adapter else shapes
    checkpoint = _checkpoint_bytes(trained, hardware)
    kept = _count(trained) * (_FLOAT32 if config.adapter else _finished_bytes(hardware))
    training = max(CHECKPOINTS_AT_ONCE * checkpoint, (CHECKPOINTS_AT_ONCE - 1) * checkpoint + kept)
    return DiskSpace(kept, round(training), download)


def refuse_full(config: Config, present: int = 0) -> None:
    """Raise ValueError where a training would fill the disk of `outputs`, or of the hub's cache.

    `present` bytes of checkpoints are there already.
    """
    space = disk_space(config)
    if space is None:  # the worker says why it cannot load the model
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    needed, cache = _REST + max(space.training - present, 0), Path(HF_HUB_CACHE)
    if space.download and _same_disk(config.folder, cache):
        needed += space.download
    elif space.download > (free := free_bytes(cache)):
        raise ValueError(
            f"model.path={config.model.path!r}: {_gib(free)} free in {cache}, "
            f"{_gib(space.download)} needed for its weights; free some space or set HF_HOME to "
            "another disk"
        )
    if needed > (free := free_bytes(config.folder)):
        raise ValueError(
            f"outputs={config.outputs}: {_gib(free)} free, about {_gib(needed)} needed, with "
            f"{CHECKPOINTS_AT_ONCE} checkpoints at once; free some space, set outputs=... to "
            f"another disk{less(config)}"
        )


def less(config: Config) -> str:
    """Overrides that take less space, as the end of a sentence."""
    if config.adapter or config.method.algorithm == "none":
        return ""
    states = config.hardware.parallel == "ddp" and config.hardware.optimizer_states == "float32"
    return f", or choose {'hardware.optimizer_states=8bit or ' if states else ''}adapter=lora_r8"


def _base_shapes(path: str, revision: str | None) -> tuple[Shapes, int]:
    """(shapes, bytes to download) of a model, or of the model that an adapter is for."""
    if model_folder.is_adapter(path):
        settings = read_json(Path(model_folder.resolve(path)) / "adapter_config.json")
        path, revision = str(settings["base_model_name_or_path"]), settings.get("revision")
    folder = Path(model_folder.resolve(path))
    return (model_folder.shapes(folder), 0) if folder.exists() else _hub_shapes(path, revision)


@functools.cache
def _hub_shapes(name: str, revision: str | None) -> tuple[Shapes, int]:
    """Of a hub id: from the hub's cache, else from the headers of the files on the hub.

    Raises:
        OSError: the hub cannot be reached, or has no such model in safetensors.
    """
    import huggingface_hub  # half a second
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        NotASafetensorsRepoError,
        SafetensorsParsingError,
    )

    for file in ("model.safetensors", "model.safetensors.index.json"):
        cached = huggingface_hub.try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str) and _has_all(Path(cached)):
            return model_folder.shapes(Path(cached).parent), 0
    hub.read_cache_if_unreached(f"model.path={name}")
    try:
        metadata = huggingface_hub.get_safetensors_metadata(name, revision=revision)
    except (HTTPError, NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise OSError(f"{name}: {error}") from error
    tensors = {n: t for file in metadata.files_metadata.values() for n, t in file.tensors.items()}
    size = sum(end - start for start, end in (t.data_offsets for t in tensors.values()))
    return {tensor: list(info.shape) for tensor, info in tensors.items()}, size


def _has_all(file: Path) -> bool:
    """Whether the files that an index names lie beside it; an interrupted download lacks some."""
    names = read_json(file)["weight_map"].values() if file.suffix == ".json" else ()
    return all((file.parent / name).exists() for name in names)


def _adapter_shapes(shapes: Shapes, adapter: Mapping[str, Any]) -> Shapes:
    """LoRA's matrices, and the layers that are trained whole; too many rather than too few."""
    targets, whole = adapter.get("target_modules"), adapter.get("modules_to_save") or []
    trained: dict[str, list[int]] = {}
    for tensor, shape in shapes.items():
        layer, _, kind = layout.renamed(tensor).rpartition(".")
        if any(layer == name or layer.endswith(f".{name}") for name in whole):
            trained[tensor] = shape
        elif kind == "weight" and len(shape) == 2 and _is_target(layer, targets):
            trained[f"{tensor}.lora_A"] = [adapter["r"], shape[1]]
            trained[f"{tensor}.lora_B"] = [shape[0], adapter["r"]]
    return trained


def _is_target(layer: str, targets: str | list[str] | None) -> bool:
    """As PEFT understands `target_modules`; where it is left out, PEFT chooses some of all."""
    if targets is None or targets == "all-linear":
        return "embed" not in layer
    if isinstance(targets, str):
        return re.fullmatch(targets, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in targets)


def _finished_bytes(hardware: Hardware) -> int:
    """Of a parameter of a finished model, which is saved as its evaluation loads it."""
    return _BFLOAT16 if hardware.precision == "bfloat16" else _FLOAT32


def _checkpoint_bytes(trained: Shapes, hardware: Hardware) -> float:
    if hardware.parallel in ("zero2", "zero3"):
        return _DEEPSPEED * _count(trained)
    return _FLOAT32 * _count(trained) + _moment_bytes(trained, hardware)


def _moment_bytes(trained: Shapes, hardware: Hardware) -> float:
    sizes = {tensor: math.prod(shape) for tensor, shape in trained.items()}
    in_float32 = [n for tensor, n in sizes.items() if n < _SMALL or "embed_tokens" in tensor]
    others = sum(sizes.values()) - sum(in_float32)
    return sum(in_float32) * _MOMENTS["float32"] + others * _MOMENTS[hardware.optimizer_states]


def _count(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


def _same_disk(folder: Path, other: Path) -> bool:
    return _existing(folder).stat().st_dev == _existing(other).stat().st_dev


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return folder if folder.exists() else _existing(folder.parent)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
