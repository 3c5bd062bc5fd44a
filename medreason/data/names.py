"""Names of modalities and question types in releases, typing errors included."""

from __future__ import annotations

import re

# How names start, in lower case without spaces and signs.
# Source: experiments/med_r1/README.md, "Data".
_MODALITIES = {
    "ct": ("ct", "computedtomography"),
    "mri": ("mr", "magnetic"),
    "xray": ("xray", "radiograph"),
    "ultrasound": ("ultrasound",),
    "dermoscopy": ("dermoscop",),
    "fundus": ("fundus",),
    "oct": ("oct", "opticalcoherence"),
    "microscopy": ("microscop",),
    "unknown": ("unknown",),
}
_TASKS = {
    "anatomy": ("anatomy",),
    "disease": ("disease",),
    "grading": ("lesiongrading", "grading"),
    "modality_recognition": ("modality",),
    "attributes": ("otherbiological", "biological", "attribute"),
    "unknown": ("unknown",),
}


def modality_of(name: str) -> str:
    """The key of MODALITIES a published name stands for, "unknown", or "" for none of them."""
    return _key(name, _MODALITIES)


def task_of(name: str) -> str:
    """The key of TASKS a published name stands for, "unknown", or "" for none of them."""
    return _key(name, _TASKS)


def _key(name: str, names: dict[str, tuple[str, ...]]) -> str:
    plain = re.sub(r"[\W_]", "", name).lower()
    return next((key for key, starts in names.items() if plain.startswith(starts)), "")
