"""Features of images from a vision tower that is not trained, kept in memory and on disk.

The name of a file is the digest of the processed image (so of the image and of the processor's
settings) in a folder named by the digest of the tower: its weights, precision and attention. Files
are written whole or not at all and read by any number of processes; one that is damaged or was
taken away is made again.
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
from transformers.modeling_outputs import BaseModelOutputWithPooling

from medreason.runs.files import atomic

_IN_MEMORY = 64
"""Images whose features are held; those of a step with its passes are what matters."""
_WRITES_BETWEEN_COUNTS = 32
_KEPT = 0.9
"""Share of the limit that is left when the oldest files are removed."""


class VisionCache:
    """What a model's forward takes as `mm_encoder_outputs` in place of pixel values."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        precision: str,
        folder: Path | None,
        limit_bytes: int,
    ) -> None:
        """`model` is one that `takes_features`; without a folder nothing is kept on disk."""
        self._model = model
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
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
        """Of images of (patches, values) and (1, 3) each."""
        names = [_digest(p, g) for p, g in zip(pixel_values, grids, strict=True)]
        found = {name: features for name in names if (features := self._known(name)) is not None}
        new = [i for i, name in enumerate(names) if name not in found and name not in names[:i]]
        if new:
            pixels = torch.cat([pixel_values[i] for i in new])
            outputs = self._model.get_image_features(
                pixels, torch.cat([grids[i] for i in new]), return_dict=True
            )
            self.encoded += len(new)
            for i, features in zip(new, outputs.pooler_output, strict=True):
                # Cloned: the pieces of a batch share one storage, which they would keep alive.
                found[names[i]] = features.clone()
                self._write(names[i], features)
        for name in dict.fromkeys(names):
            self._kept[name] = found[name]
            self._kept.move_to_end(name)
        while len(self._kept) > max(_IN_MEMORY, len(names)):
            self._kept.popitem(last=False)
        outputs = BaseModelOutputWithPooling(pooler_output=tuple(found[name] for name in names))  # pyright: ignore[reportArgumentType]
        return {"image": outputs}

    def _known(self, name: str) -> Tensor | None:
        if name in self._kept:
            return self._kept[name]
        if self._folder is None:
            return None
        path = self._folder / f"{name}.safetensors"
        try:
            features = safetensors.torch.load_file(path)["features"]
            os.utime(path)  # the oldest files are those not used for longest
        except (FileNotFoundError, SafetensorError, KeyError):
            return None
        return features.to(next(self._model.parameters()).device)

    def _write(self, name: str, features: Tensor) -> None:
        if self._folder is None:
            return
        path = self._folder / f"{name}.safetensors"
        with atomic(path, sync=False) as unfinished:
            safetensors.torch.save_file({"features": features.cpu().clone()}, unfinished)
        if self._writes % _WRITES_BETWEEN_COUNTS == 0:
            self._make_room()
        self._writes += 1

    def _make_room(self) -> None:
        """Removes the files not used for longest, of any tower, where all are over the limit.

        Between two counts a process writes a few files more.
        """
        assert self._root is not None
        found = []
        for path in self._root.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                if path.is_file():
                    stat = path.stat()
                    found.append((stat.st_mtime, stat.st_size, path))
        size = sum(size for _, size, _ in found)
        if size <= self._limit:
            return
        for _, bytes_, path in sorted(found):
            if size <= _KEPT * self._limit:
                return
            path.unlink(missing_ok=True)
            size -= bytes_


def takes_features(model: nn.Module) -> bool:
    """Whether the model's forward takes the features of images in place of their pixels.

    Not where features enter several layers of the language model, as in Qwen3-VL: not built.
    """
    vision = getattr(model.config, "vision_config", None)
    takes = "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters
    return takes and not hasattr(vision, "deepstack_visual_indexes")


def frozen(model: nn.Module) -> bool:
    """Whether no weight of the vision tower is trained."""
    tower = [p for name, p in model.named_parameters() if ".visual." in f".{name}"]
    return bool(tower) and not any(p.requires_grad for p in tower)


def _digest(pixel_values: Tensor, grid: Tensor) -> str:
    found = hashlib.sha256(repr(grid.tolist()).encode())
    found.update(_bytes(pixel_values))
    return found.hexdigest()[:32]


def _digest_of_tower(model: Any, precision: str) -> str:  # noqa: ANN401
    tower = {name: p for name, p in model.named_parameters() if ".visual." in f".{name}"}
    kind = (model.device.type, model.config._attn_implementation, precision)
    found = hashlib.sha256(repr(kind).encode())
    for name in sorted(tower):
        found.update(name.encode())
        found.update(_bytes(tower[name].detach()))
    return found.hexdigest()[:16]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).cpu().numpy().data
