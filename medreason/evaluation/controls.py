"""Controls: the same questions without their image, with another one, or with their options turned.

An accuracy is read beside those of the controls. A control changes the samples, the image that is
shown, or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medreason.samples import Sample


def questions_of(
    test: Sequence[Sample], controls: Sequence[str], answers: Sequence[str]
) -> list[tuple[str, Sample]]:
    """(`original` or a control, sample) of every question of an evaluation.

    `answers` are those of `evaluation.answers`: option likelihoods alone leave out questions
    without options.
    """
    asked = test if "generated" in answers else [sample for sample in test if sample.options]
    return [
        (control, sample)
        for control in ("original", *controls)
        for sample in samples_under(control, asked)
    ]


def samples_under(control: str, samples: Sequence[Sample]) -> list[Sample]:
    """The samples as a control asks them, in their order."""
    match control:
        case "shuffled_image":
            return with_another_image(samples)
        case "permuted_options":
            return [rotated for sample in samples for rotated in rotations(sample)]
        case _:
            return list(samples)


def with_another_image(samples: Sequence[Sample]) -> list[Sample]:
    """Each sample with the image of another patient of its cell, the same one every time.

    Where patients are not known, with another image. A sample whose cell has no other is left out.
    """
    cells: dict[tuple[str, str], list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.id):
        cells.setdefault(sample.cell, []).append(sample)
    # One order a cell, in which each sample takes the next image: so every image is shown about as
    # often as before, where independent draws would show some often and others never.
    orders = {
        cell: [members[i] for i in np.random.default_rng(len(members)).permutation(len(members))]
        for cell, members in cells.items()
    }
    places = {sample.id: i for order in orders.values() for i, sample in enumerate(order)}
    shown = []
    for sample in samples:
        order, place = orders[sample.cell], places[sample.id]
        others = (order[(place + step) % len(order)] for step in range(1, len(order)))
        if other := next((other for other in others if _is_another(sample, other)), None):
            shown.append(replace(sample, image=other.image))
    return shown


def rotations(sample: Sample) -> list[Sample]:
    """The sample with its options turned by 1, 2, ...: with the sample itself, all rotations."""
    count = len(sample.options)
    return [sample.reordered([*range(n, count), *range(n)]) for n in range(1, count)]


def _is_another(sample: Sample, other: Sample) -> bool:
    known = sample.patient is not None and other.patient is not None
    return other.image != sample.image and not (known and other.patient == sample.patient)
