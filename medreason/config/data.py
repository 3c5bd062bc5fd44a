"""The keys of `data` that all data sets share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from medreason.config.rules import one_of


@dataclass
class Handling:
    """The keys of `data` that all data sets share; the others go to the function at `_target_`."""

    split: str = "published"
    """published (files without one are split by_patient), by_image, by_patient, joint (rows in the
    tests of both published families), low_data (600 and 300 published rows of each modality)."""
    test_share: float = 0.3
    """Share of each cell that is tested on, where we split."""
    seed: int = 0
    """Of the split, of option orders and of what the data set draws itself."""
    options: str = "as_published"
    """as_published, shuffled (training questions, anew in each epoch), or normalised (letter case,
    trailing period)."""
    questions: str = "all"
    """all, closed (with options), or open."""
    images: str = "decode"
    """decode reads every image before anything else; none looks at the annotations only."""
    bad_rows: str = "error"
    """error stops at bad rows; skip goes on without them."""

    def __post_init__(self) -> None:
        one_of(
            "data.split", self.split, ("published", "by_image", "by_patient", "joint", "low_data")
        )
        one_of("data.options", self.options, ("as_published", "shuffled", "normalised"))
        one_of("data.questions", self.questions, ("all", "closed", "open"))
        one_of("data.images", self.images, ("decode", "none"))
        one_of("data.bad_rows", self.bad_rows, ("error", "skip"))
        if not 0 <= self.test_share <= 1:
            raise ValueError(f"data.test_share={self.test_share}; needs a number from 0 to 1")


def handling(data: dict[str, Any]) -> tuple[Handling, dict[str, Any]]:
    """The keys of `data` that all data sets share, and the rest: what its function is called with.

    Raises:
        ValueError: a shared key has a value it does not know.
    """
    shared = [f.name for f in fields(Handling)]
    rest = {key: value for key, value in data.items() if key not in shared}
    return Handling(**{key: value for key, value in data.items() if key in shared}), rest
