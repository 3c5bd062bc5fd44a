"""Features of images from a vision tower that is not trained, kept in memory and on disk.

The name of a file is the digest of the processed image (so of the image and of the processor's
settings) in a folder named by the digest of the tower: its weights, precision and attention. Files
are written atomically and read by any number of processes; one that is damaged or was removed is
made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from medreason.models.patch_embedding import multiplies_patches
from medreason.runs.files import atomic, remove_unfinished

_IN_MEMORY = 64
"""Images whose features are held in memory: those of a few steps, each read in several passes."""
_WRITES_BETWEEN_COUNTS = 32
_LEFT = 0.9
"""Share of the limit that is left when the oldest files are removed."""


class VisionCache:
    """Images to what a model's forward takes as `mm_encoder_outputs` in place of pixel values."""

    def __init__(
        self, model: PreTrainedModel, precision: str, folder: Path | None, limit_bytes: int
    ) -> None:
        """`model` is one that `takes_vision_features`; without a folder nothing is kept on disk."""
        self._model: Any = model
        self._in_memory: OrderedDict[str, Tensor] = OrderedDict()
        self._folder = folder / _digest_of_tower(model, precision) if folder else None
        self._root, self._limit = folder, limit_bytes
        self._writes = 0
        self.encoded = 0
        """Images that went through the tower."""
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def __call__(
        self, pixel_values: Sequence[Tensor], grids: Sequence[Tensor]
    ) -> dict[str, BaseModelOutputWithPooling]:
        """Vision features of images of (patches, values) and (1, 3) each."""
        names = [_digest(p, g) for p, g in zip(pixel_values, grids, strict=True)]
        features = {name: cached for name in names if (cached := self._read(name)) is not None}
        for name, pixels, grid in zip(names, pixel_values, grids, strict=True):
            if name in features:
                continue
            # Each alone: beside others its features round differently, and which others there are
            # depends on what an earlier run has left here.
            outputs = self._model.get_image_features(pixels, grid, return_dict=True)
            (features[name],) = outputs.pooler_output
            self._write(name, features[name])
            self.encoded += 1
        for name in dict.fromkeys(names):
            self._in_memory[name] = features[name]
            self._in_memory.move_to_end(name)
        while len(self._in_memory) > max(_IN_MEMORY, len(names)):
            self._in_memory.popitem(last=False)
        in_order = tuple(features[name] for name in names)
        return {"image": BaseModelOutputWithPooling(pooler_output=in_order)}  # pyright: ignore[reportArgumentType]

    def _read(self, name: str) -> Tensor | None:
        if name in self._in_memory:
            return self._in_memory[name]
        if self._folder is None:
            return None
        path = self._folder / f"{name}.safetensors"
        try:
            features = safetensors.torch.load_file(path)["features"]
            # The time of last use, by which the oldest files are removed: many file systems are
            # mounted without times of access.
            os.utime(path)
        except (FileNotFoundError, SafetensorError, KeyError):
            # Removed by another process or damaged: encoding the image again is always right.
            return None
        return features.to(next(self._model.parameters()).device)

    def _write(self, name: str, features: Tensor) -> None:
        if self._folder is None:
            return
        path = self._folder / f"{name}.safetensors"
        with atomic(path, sync=False) as unfinished:
            safetensors.torch.save_file({"features": features.cpu().clone()}, unfinished)
        # Counting reads the size of every file, so not after each write.
        if self._writes % _WRITES_BETWEEN_COUNTS == 0:
            self._make_room()
        self._writes += 1

    def _make_room(self) -> None:
        """Where all files, of any tower, are over the limit, remove those not used for longest."""
        assert self._root is not None
        remove_unfinished(self._root)
        files = []
        # Not what others are writing, whose names end otherwise: the oldest by the clock of a
        # network drive may be the newest.
        for path in self._root.rglob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        if total <= self._limit:
            return
        for _, size, path in sorted(files):
            if total <= _LEFT * self._limit:
                return
            path.unlink(missing_ok=True)
            total -= size


def takes_vision_features(model: nn.Module) -> bool:
    """Whether the model's forward takes the features of images in place of their pixels."""
    vision = getattr(model.config, "vision_config", None)
    takes = "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters
    # Qwen3-VL's deepstack features enter several layers of the language model: not built here.
    return takes and not hasattr(vision, "deepstack_visual_indexes")


def vision_tower_is_frozen(model: nn.Module) -> bool:
    """Whether no weight of the vision tower is trained, so that its features stay valid."""
    tower = _tower_parameters(model).values()
    return bool(tower) and not any(p.requires_grad for p in tower)


def _tower_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".visual." in f".{name}"}


def _digest(pixel_values: Tensor, grid: Tensor) -> str:
    digest = hashlib.sha256(repr(grid.tolist()).encode())
    digest.update(_bytes(pixel_values))
    return digest.hexdigest()[:32]


def _digest_of_tower(model: PreTrainedModel, precision: str) -> str:
    # What rounds the features differently, too, even the number of threads: a training must not
    # depend on how earlier ones were run.
    attention, products = model.config._attn_implementation, multiplies_patches(model)
    kind = (_rounding_of(model.device), attention, precision, products, "alone")
    digest = hashlib.sha256(repr(kind).encode())
    for name, parameter in sorted(_tower_parameters(model).items()):
        digest.update(name.encode())
        digest.update(_bytes(parameter.detach()))
    return digest.hexdigest()[:16]


def _rounding_of(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).cpu().numpy().data
