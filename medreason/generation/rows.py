"""What one row of an evaluation asks, and what a model answers to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import Image

from medreason.data.images import blank, open_rgb
from medreason.samples import Sample

ImageOf = Callable[[Sample], Image.Image | None]
"""The image shown with a sample; None shows none, and then for every sample."""


def original_image(sample: Sample) -> Image.Image:
    return open_rgb(sample.image, sample.window)


def blank_image(sample: Sample) -> Image.Image:
    """A grey image in the size of the sample's."""
    return blank(open_rgb(sample.image, sample.window).size)


SHOWN_IMAGES: Mapping[str, ImageOf] = {"blank_image": blank_image, "no_image": lambda _: None}
"""The image that a control shows; the other controls show that of the sample they ask."""


FAILED = "failed"


@dataclass(frozen=True)
class EvaluationRow:
    """One row of an evaluation."""

    control: str
    """`original`, or a name of `config.CONTROLS`."""
    sample: Sample
    prompt: str

    @property
    def image_of(self) -> ImageOf:
        return SHOWN_IMAGES.get(self.control, original_image)


@dataclass(frozen=True)
class Completion:
    prompt: str
    text: str
    prompt_tokens: int
    """Image tokens included."""
    completion_tokens: int
    """The end token included."""
    finish_reason: str
    """stop, length where the token limit was hit, or FAILED where no reply came and the text says
    why."""
