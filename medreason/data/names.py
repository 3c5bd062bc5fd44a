"""Names of modalities and question types in releases, typing errors included."""

from __future__ import annotations

import re

# How names start, in lower case without spaces and signs.
# Source: experiments/med_r1/README.md, "Data".
_MODALITIES = {
    "ct": ("ct", "computedtomography", "catscan"),
    "mri": ("mr", "magnetic"),
    "xray": (
        "xray",
        "radiograph",
        "chestxray",
        "chestradiograph",
        "digitalradiograph",
        "computedradiograph",
        "plainfilm",
        "plainradiograph",
        "mammogra",
    ),
    "ultrasound": ("ultrasound", "ultrasonogra", "sonogra", "echocardiogra"),
    "dermoscopy": ("dermoscop", "dermatoscop"),
    "fundus": ("fundus", "colorfundus", "colourfundus", "retinalfundus"),
    "oct": ("oct", "opticalcoherence"),
    "microscopy": ("microscop", "histolog", "histopatholog"),
    "unknown": ("unknown",),
}
_ABBREVIATIONS = {
    "ct": ("cbct", "hrct"),
    "mri": ("fmri",),
    "xray": ("cr", "cxr", "dr", "dx", "io", "mg", "px", "rf", "rg", "xa", "xr"),
    "ultrasound": ("ivus", "us", "usg"),
    "dermoscopy": ("dms",),
    "fundus": ("cfp",),
    "oct": ("opt",),
    "microscopy": ("gm", "sm", "wsi"),
}
"""Whole names, with those of DICOM's Modality (0008,0060) that are one of the eight: `OP` is also a
photograph of the front of the eye, `NM`, `PT` and `ES` are none of them. Source: DICOM PS3.3
C.7.3.1.1.1."""
OTHER_MODALITY_NAMES = "or another usual name of one, such as MR, CXR, DX, US or histology"
_TASKS = {
    "anatomy": ("anatomy",),
    "disease": ("disease",),
    "grading": ("lesiongrading", "grading"),
    "modality_recognition": ("modality",),
    "attributes": ("otherbiological", "biological", "attribute"),
    "unknown": ("unknown",),
}


MED_R1_FILES = {
    "CT(Computed Tomography)": (12_567, 3_241),
    "MR (Mag-netic Resonance Imaging)": (25_507, 6_370),
    "X-Ray": (6_301, 1_615),
    "ultrasound": (8_917, 2_074),
    "Dermoscopy": (5_373, 1_306),
    "Fundus Photography": (4_300, 1_098),
    "OCT (Optical Coherence Tomography": (3_798, 848),
    "Microscopy Images": (4_570, 1_110),
    "Anatomy Identification": (13_119, 3_329),
    "Disease Diagnosis": (44_329, 11_058),
    "Lesion Grading": (1_662, 436),
    "Modality Recognition": (9_173, 2_392),
    "Other Biological Attributes": (2_794, 704),
}
"""Name of Med-R1's files, without `_train.json` and `_test.json` -> rows of both, in the order of
MODALITIES and TASKS. Source: experiments/med_r1/README.md, "Data"."""


def split_family(sample: str) -> str:
    """Which family of Med-R1's split files the id of a sample is of: modality or question_type,
    which were drawn independently from the same questions; "" for neither."""
    file = sample.rpartition(":")[0].replace("\\", "/").rpartition("/")[2]
    name = re.sub(r"_(train|test)\.jsonl?$", "", file)
    if name not in MED_R1_FILES:
        return ""
    return "modality" if modality_of(name) else "question_type"


# How questions name what an image is.
_IN_QUESTIONS = {
    "ct": r"cta?\b|cat scan|computed tomography",
    "mri": r"mr[ia]?\b|magnetic|t[12]\b|flair\b|dwi\b|adc\b",
    "xray": r"xr\b|x-?rays?\b|plain film|radiograph|mammogra|angiogram|barium",
    "ultrasound": r"ultrasound",
}
_SUBJECT = r"\b(?:this|these|that|the)\b(?: [\w-]+){0,2} "
_ASKS_WHETHER = re.compile(r"(?:is|was|are) (?:this|it|that|(?:this|the) (?:image|picture|scan)) ")


def modality_of(name: str) -> str:
    """The key of MODALITIES a published name stands for, or "" for none of them.

    "unknown" where it says so or names several (`OCT & X-Ray`).
    """
    whole = _plain(name)
    short = (key for key, names in _ABBREVIATIONS.items() if whole in names)
    return next(short, "") or _key(name, _MODALITIES)


def task_of(name: str) -> str:
    """The key of TASKS a published name stands for, "unknown", or "" for none of them."""
    return _key(name, _TASKS)


def modality_in_question(question: str) -> str:
    """The key of the one modality that a question takes for granted, or "".

    `What is wrong in this CT?` does, `Is this a CT?` does not: its answer says so, and a facet must
    not come from an answer.
    """
    text = " ".join(question.lower().split())
    if _ASKS_WHETHER.match(text) and " or " not in text:
        return ""
    named = {key for key, words in _IN_QUESTIONS.items() if re.search(rf"\b(?:{words})", text)}
    said = {key for key in named if re.search(rf"{_SUBJECT}(?:{_IN_QUESTIONS[key]})", text)}
    return named.pop() if len(named) == 1 and named == said else ""


def _key(name: str, names: dict[str, tuple[str, ...]]) -> str:
    """By the start of the name; more than one modality named by its words make it unknown."""
    starts = [match.start() for match in re.finditer(r"(?<![^\W_])[^\W\d_]", name)]
    first, *others = [_start(name[start:], names) for start in starts] or [""]
    return "unknown" if first and {*others} - {first, ""} else first


def _start(name: str, names: dict[str, tuple[str, ...]]) -> str:
    return next((key for key, starts in names.items() if _plain(name).startswith(starts)), "")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
