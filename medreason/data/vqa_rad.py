"""VQA-RAD as released: one JSON file and a folder of radiology images.

Layout: osf.io/89kps. Chest images are X-rays, abdominal ones CT, heads CT or MRI (Lau et al. 2018,
doi:10.1038/sdata.2018.251).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medreason.data import rows
from medreason.data.rows import Row
from medreason.samples import Sample

FILE = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"

_MODALITY_OF_ORGAN = {"CHEST": "xray", "ABD": "ct"}
_TASKS = {  # ours; the set has more types than the matrix, and the rest is attributes
    "PRES": "disease",
    "ABN": "disease",
    "MODALITY": "modality_recognition",
    "ORGAN": "anatomy",
    "POS": "anatomy",
}


def read(root: Path | str | None) -> Iterator[Row]:
    """All rows; `test_freeform` and `test_para` are the published test."""
    root = rows.folder(root)
    (path,) = rows.all_there(root, [FILE])
    found = rows.json_array(path)
    heads = _heads(found)
    yield from rows.each(FILE, found, lambda name, row: _sample(root, name, row, heads))


def _sample(root: Path, name: str, row: Any, heads: Mapping[str, str]) -> Sample:  # noqa: ANN401
    image, question = rows.inside(rows.text(row, "image_name")), rows.text(row, "question")
    counts = isinstance(row.get("answer"), int)  # "how many?" is answered by a number
    options, answer = rows.yes_or_no(str(row["answer"]) if counts else rows.text(row, "answer"))
    organ = rows.text(row, "image_organ").strip().upper()
    return Sample(
        id=name,
        image=root / IMAGES / image,
        question=question.strip(),
        options=options,
        answer=answer,
        explanation=None,
        modality=_MODALITY_OF_ORGAN.get(organ) or heads.get(image, "unknown"),
        task=_task(rows.text(row, "question_type")),
        source="VQA-RAD",
        patient=None,
        split="test" if rows.text(row, "phrase_type").startswith("test") else "train",
    )


def _task(types: str) -> str:
    """Of `PRES` or of several, `PRES, POS`, the first that the matrix has."""
    named = [_TASKS.get(word.strip().upper()) for word in types.split(",")]
    return next((task for task in named if task), "attributes")


def _heads(found: list[Any]) -> dict[str, str]:
    """CT or MRI of each image, where a question about it says so."""
    modalities: dict[str, str] = {}
    for row in found:
        if isinstance(row, dict) and "MODALITY" in str(row.get("question_type", "")).upper():
            answer = str(row.get("answer", "")).strip().lower()
            says = str(row.get("question", "")).lower() if answer == "yes" else answer
            mri = re.search(r"\b(mri?|t1|t2|flair|dwi|diffusion|gadolinium)\b", says)
            ct = re.search(r"\b(ct|computed)\b", says)
            if bool(mri) != bool(ct):
                modalities.setdefault(str(row.get("image_name")), "mri" if mri else "ct")
    return modalities
