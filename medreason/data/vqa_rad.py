"""VQA-RAD as released: one JSON file and a folder of radiology images.

Layout: osf.io/89kps. Chest images are X-rays, abdominal ones CT, heads CT or MRI (Lau et al. 2018,
doi:10.1038/sdata.2018.251).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medreason.data import rows
from medreason.data.rows import Record, Row
from medreason.samples import Sample

FILE = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"

_MODALITY_OF_ORGAN = {"CHEST": "xray", "ABD": "ct"}
_TASKS = {  # [ours]; types without a column in the matrix are attributes
    "PRES": "disease",
    "ABN": "disease",
    "MODALITY": "modality_recognition",
    "ORGAN": "anatomy",
    "POS": "anatomy",
}


def read(root: Path | str | None) -> Iterator[Row]:
    """All rows; those of `test_freeform` and `test_para` are the published test."""
    root = rows.folder(root)
    (path,) = rows.release_files(root, [FILE])
    records = rows.json_array(path)
    heads = _head_modalities(records)
    yield from rows.each(FILE, records, lambda name, row: _sample(root, name, row, heads))


def _sample(root: Path, name: str, row: Record, heads: Mapping[str, str]) -> Sample:
    image, question = rows.inside(rows.text(row, "image_name")), rows.text(row, "question")
    is_number = isinstance(row.get("answer"), int)  # of "how many?"
    options, answer = rows.yes_or_no(str(row["answer"]) if is_number else rows.text(row, "answer"))
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
    """The first of one or several types (`PRES, POS`) that the matrix has."""
    tasks = [_TASKS.get(word.strip().upper()) for word in types.split(",")]
    return next((task for task in tasks if task), "attributes")


def _head_modalities(records: Sequence[Record]) -> dict[str, str]:
    """CT or MRI by image, where a question about it says so."""
    modalities: dict[str, str] = {}
    for row in records:
        if isinstance(row, dict) and "MODALITY" in str(row.get("question_type", "")).upper():
            answer = str(row.get("answer", "")).strip().lower()
            text = str(row.get("question", "")).lower() if answer == "yes" else answer
            mri = re.search(r"\b(mri?|t1|t2|flair|dwi|diffusion|gadolinium)\b", text)
            ct = re.search(r"\b(ct|computed)\b", text)
            if bool(mri) != bool(ct):
                modalities.setdefault(str(row.get("image_name")), "mri" if mri else "ct")
    return modalities
