"""VQA-RAD as released: one JSON file and a folder of radiology images; or as MEVF splits it.

Layout: osf.io/89kps. Chest images are X-rays, abdominal ones CT, heads CT or MRI (Lau et al. 2018,
doi:10.1038/sdata.2018.251), where only questions that take one for granted say which.
MEVF (github.com/aioz-ai/MICCAI19-MedVQA) has trainset.json and testset.json with the same rows and
others, whose side is that of their file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from medreason.data import rows
from medreason.data.names import modality_in_question
from medreason.data.rows import Record, Remark, Row
from medreason.samples import Sample

FILE = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"
RELEASED_ROWS = {FILE: 2_248}
MEVF_FILES = {"trainset.json": "train", "testset.json": "test"}
MEVF_IMAGES = "images"

_MODALITY_OF_ORGAN = {"CHEST": "xray", "ABD": "ct"}
_TASKS = {  # [ours]; types without a column in the matrix are attributes
    "PRES": "disease",
    "ABN": "disease",
    "MODALITY": "modality_recognition",
    "ORGAN": "anatomy",
    "POS": "anatomy",
    **dict.fromkeys(("ATTRIB", "SIZE", "PLANE", "COLOR", "COUNT", "OTHER"), "attributes"),
}
_MISSPELT = {"PRSE": "PRES", "ATRIB": "ATTRIB"}


def read(root: Path | str | None) -> Iterator[Row]:
    """All rows; those of `test_freeform` and `test_para` are the published test.

    Where the released file is not there, those of MEVF are read. Without training rows a set can be
    evaluated on, without test rows trained on by data.split=by_image.
    """
    root = rows.folder(root)
    files: dict[str, str | None] = {FILE: None}
    if not (root / FILE).is_file() and any((root / name).is_file() for name in MEVF_FILES):
        yield from rows.of_one_side(
            root, MEVF_FILES, {side: [name] for name, side in MEVF_FILES.items()}
        )
        files = {name: side for name, side in MEVF_FILES.items() if (root / name).is_file()}
    rows.release_files(root, files)
    records = {file: rows.json_array(root / file) for file in files}
    heads = _head_modalities([row for members in records.values() for row in members])
    if FILE in files:
        _refuse_without_test(root / FILE, records[FILE])
    folders = (IMAGES, MEVF_IMAGES) if FILE in files else (MEVF_IMAGES, IMAGES)
    images = root / next((name for name in folders if (root / name).is_dir()), folders[0])
    for file, side in files.items():
        yield from _misspelt(file, records[file])
        yield from rows.each(
            file,
            records[file],
            lambda name, row, side=side: _sample(images, name, row, heads, side),
        )


def _sample(
    images: Path, name: str, row: Record, heads: Mapping[str, str], side: str | None
) -> Sample:
    image, question = rows.inside(rows.text(row, "image_name")), rows.text(row, "question")
    kind = rows.answer_type(row)
    options, answer = rows.yes_or_no(rows.text_or_number(row, "answer"), kind)
    organ = rows.text(row, "image_organ").strip().upper()
    is_test = rows.text(row, "phrase_type").startswith("test")
    return Sample(
        id=name,
        image=images / image,
        question=question.strip(),
        options=options,
        answer=answer,
        explanation=None,
        modality=_MODALITY_OF_ORGAN.get(organ) or heads.get(image, "unknown"),
        task=_task(rows.text(row, "question_type")),
        source="VQA-RAD",
        patient=None,
        split=side or ("test" if is_test else "train"),
        answer_type=kind,
    )


def _types(types: object) -> list[str]:
    """One or several types: `PRES, POS`."""
    return [word.strip().upper() for word in str(types).split(",")]


def _task(types: str) -> str:
    """The first type that the matrix has a column for; else attributes."""
    words = [_MISSPELT.get(word, word) for word in _types(types)]
    if unknown := [word for word in words if word not in _TASKS]:
        raise ValueError(f'"question_type" is {unknown[0]!r}; known: {", ".join(_TASKS)}')
    tasks = [_TASKS[word] for word in words]
    return next((task for task in tasks if task != "attributes"), "attributes")


def _misspelt(file: str, records: Iterable[Record]) -> Iterator[Remark]:
    for index, row in enumerate(records):
        for word in _types(row.get("question_type")) if isinstance(row, Mapping) else ():
            if word in _MISSPELT:
                yield Remark(file, index, f"question_type {word} read as {_MISSPELT[word]}")


def _refuse_without_test(path: Path, records: Sequence[Record]) -> None:
    types = {str(row.get("phrase_type")) for row in records if isinstance(row, Mapping)}
    if not any(name.startswith("test") for name in types):
        raise ValueError(
            f"{path}: no row is of the test (phrase_type is {', '.join(sorted(types))}), so it is "
            "not the released file; one of MEVF is read under its own name, "
            f"{' or '.join(MEVF_FILES)}: rename it, or download the released one"
        )


def _head_modalities(records: Sequence[Record]) -> dict[str, str]:
    """CT or MRI by image, where the questions about it take one of them for granted."""
    named: dict[str, set[str]] = {}
    for row in records:
        if isinstance(row, Mapping):
            modality = modality_in_question(str(row.get("question", "")))
            if modality in ("ct", "mri"):
                named.setdefault(str(row.get("image_name")), set()).add(modality)
    return {image: names.pop() for image, names in named.items() if len(names) == 1}
