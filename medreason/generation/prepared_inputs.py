"""Token ids and processed images of questions that are asked again and again: a validation's."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

_MOST_BYTES = 2**28
"""Of images; those that come when it is full are processed each time."""

PromptText = tuple[str, bool, str]
"""A prompt, whether it is about an image, and what follows it."""
Key = TypeVar("Key", bound=Hashable)
ProcessedImage = tuple[Tensor, Tensor]
"""Pixels (patches, values) and grid (1, 3)."""


class PreparedInputs:
    """What does not change while a model is trained: a validation asks the same as the one
    before."""

    def __init__(self, sizes: Mapping[Path, tuple[int, int]] | None = None) -> None:
        """`sizes` (width, height) of images that are known; others are read from their files."""
        self._ids: dict[PromptText, array[int]] = {}
        self._images: dict[Hashable, ProcessedImage] = {}
        self._bytes = 0
        self.sizes = dict(sizes or {})

    def ids(
        self,
        texts: Sequence[PromptText],
        tokenize: Callable[[Sequence[PromptText]], Sequence[Sequence[int]]],
    ) -> list[list[int]]:
        """Those of each text; `tokenize` is asked for the ones that are new."""
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        if new:
            self._ids |= {
                text: array("i", ids) for text, ids in zip(new, tokenize(new), strict=True)
            }
        return [self._ids[text].tolist() for text in texts]

    def images(
        self, keys: Sequence[Key], process: Callable[[Sequence[Key]], Sequence[ProcessedImage]]
    ) -> list[ProcessedImage]:
        """The processed image of each key; `process` is asked for the new ones. Threads may ask at
        once."""
        new = [key for key in dict.fromkeys(keys) if key not in self._images]
        made = dict(zip(new, process(new), strict=True)) if new else {}
        for key, image in made.items():
            size = sum(part.nbytes for part in image)
            if self._bytes + size <= _MOST_BYTES:
                self._images[key] = image
                self._bytes += size
        return [made[key] if key in made else self._images[key] for key in keys]
