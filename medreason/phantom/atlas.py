"""The facts of a phantom, and how a modality draws them and words its questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    """The facts drawn into one image: for each task an index into the options of the modality.

    `disease == 0` exactly where `grading == 0`: the finding is absent.
    """

    anatomy: int
    disease: int
    grading: int
    modality_recognition: int
    attributes: int


@dataclass(frozen=True)
class Facet:
    """One task in one modality."""

    questions: tuple[str, ...]
    """Wordings of the same question; each sample gets one at random."""
    options: tuple[str, ...]
    """The possible answers, indexed by the value in `Case`."""
    explanation: str
    """A sentence that states the answer, with `{answer}` in its place."""


@dataclass(frozen=True)
class Atlas:
    """One modality of the phantom."""

    anatomy: Facet
    """Which structure the arrow points at."""
    disease: Facet
    """Option 0 is the normal finding."""
    grading: Facet
    """How severe the finding is; option 0 is for the normal image."""
    modality_recognition: Facet
    """Which technique of this modality made the image (window, sequence, stain ...)."""
    attributes: Facet
    """Something always visible and independent of the disease: side, count, shape or colour."""
    draw: Callable[[Case, np.random.Generator, np.random.Generator], np.ndarray]
    """(case, body, noise) -> (SIZE, SIZE, 3) floats in 0..1. `body` is the random generator of the
    patient, with the same state for all images of one, `noise` that of the image."""
