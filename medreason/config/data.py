"""The keys of `data` that all data sets share."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from medreason.config.annotations import accepts, form, in_words
from medreason.config.rules import one_of
from medreason.samples import WINDOWS, Window


@dataclass
class Handling:
    """The keys of `data` that all data sets share; the others go to the function at `_target_`."""

    split: str = "published"
    """published (a data set without a published split is split by_patient), by_image, by_patient,
    joint (test rows are those in the tests of both published families), or low_data (of the
    published split, 600 training and 300 test rows of each modality)."""
    test_share: float = 0.3
    """Share of each cell that goes to the test split, where medreason splits."""
    seed: int = 0
    """Of the split, of the order of options, and of the data set's own random choices."""
    options: str = "as_published"
    """as_published, shuffled (training questions, in each epoch another order), or normalised
    (letter case and trailing period)."""
    questions: str = "all"
    """all, closed (by the release's answer type, else with options), or open."""
    images: str = "decode"
    """decode decodes every image once, before anything else, to find damaged ones; none does not.
    The digest of each image's content is taken either way."""
    window: str | list[float] = "soft_tissue"
    """Hounsfield units that CT images in DICOM show, where the file names no window: soft_tissue,
    lung, bone, brain, or [center, width]."""
    window_from: str = "file"
    """file takes the window that a DICOM file names, and data.window where a CT file names none;
    data takes data.window for every CT file, so that one value has one grey in all of them."""
    bad_rows: str = "error"
    """error stops at rows that cannot be used; skip leaves them out."""
    contradictions: str = "leave_out"
    """What happens to closed questions that are asked twice about one image with different
    answers, such as 14 of PathVQA: leave_out counts all their rows as contradicting and uses none
    of them; error stops before any image is read."""

    def __post_init__(self) -> None:
        for field in fields(self):
            key, value, annotation = (
                f"data.{field.name}",
                getattr(self, field.name),
                str(field.type),
            )
            if not accepts(annotation, value):
                expected = f"it takes {in_words(annotation)}{form(key, value, annotation)}"
                raise ValueError(f"{key}={value!r}; {expected}")
        one_of(
            "data.split", self.split, ("published", "by_image", "by_patient", "joint", "low_data")
        )
        one_of("data.options", self.options, ("as_published", "shuffled", "normalised"))
        one_of("data.questions", self.questions, ("all", "closed", "open"))
        one_of("data.images", self.images, ("decode", "none"))
        one_of("data.bad_rows", self.bad_rows, ("error", "skip"))
        one_of("data.contradictions", self.contradictions, ("leave_out", "error"))
        if not 0 <= self.test_share <= 1:
            raise ValueError(f"data.test_share={self.test_share}; needs a number from 0 to 1")
        if self.seed < 0:
            raise ValueError(f"data.seed={self.seed}; give 0 or more")
        one_of("data.window_from", self.window_from, ("file", "data"))
        if isinstance(self.window, str):
            one_of("data.window", self.window, tuple(WINDOWS))
        elif len(self.window) != 2 or not (
            all(map(math.isfinite, self.window)) and self.window[1] >= 1
        ):
            raise ValueError(
                f"data.window={self.window}; needs {', '.join(WINDOWS)} or [center, width] with a "
                "width of 1 or more"
            )

    @property
    def ct_window(self) -> Window:
        """`window` and `window_from`, for the images of samples."""
        if isinstance(self.window, str):
            window = WINDOWS[self.window]
        else:
            center, width = self.window
            window = Window(float(center), float(width))
        return replace(window, replaces_that_of_files=self.window_from == "data")


def handling(data: dict[str, Any]) -> tuple[Handling, dict[str, Any]]:
    """Split `data`: the keys that all data sets share, and the settings of its own function.

    Raises:
        ValueError: a shared key has a value it does not know.
    """
    shared = {field.name for field in fields(Handling)} & data.keys()
    own = {key: value for key, value in data.items() if key not in shared}
    return Handling(**{key: data[key] for key in shared}), own
