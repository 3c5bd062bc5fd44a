"""VQA-Med 2019 as released: lines of `image|question|answer` by category, and JPEG files.

Layout: github.com/abachaa/VQA-Med-2019. The modality of an image is not released: it is read from
the questions that take one for granted, never from answers, else it is "unknown".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from medreason.data import rows
from medreason.data.names import modality_in_question
from medreason.data.rows import Row
from medreason.samples import Sample

TRAINING = "ImageClef-2019-VQA-Med-Training"
_VALIDATION = "ImageClef-2019-VQA-Med-Validation"
TEST = "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt"
CATEGORIES = {"C1_Modality": "modality", "C2_Plane": "plane", "C3_Organ": "organ"} | {
    "C4_Abnormality": "abnormality"
}
RELEASED_ROWS = {f"{TRAINING}/*": 12_792, f"{_VALIDATION}/*": 2_000, TEST: 500}
_TASKS = {  # [ours]: a plane is a property of the image
    "modality": "modality_recognition",
    "plane": "attributes",
    "organ": "anatomy",
    "abnormality": "disease",
}


def read(
    root: Path | str | None, *, validation: str | None = None, encoding: str = "utf-8-sig"
) -> Iterator[Row]:
    """Training and test rows; validation rows go to the split `validation`, or nowhere if None.

    `#` separates references of which any is right, and what stands in parentheses may be left out
    of an answer. Without training files the set can be evaluated on, without the test's file
    trained on by data.split=by_image.
    """
    root = rows.folder(root)
    parts = [(TRAINING, "train", "Train_images", "train")]
    if validation:
        parts.append((_VALIDATION, "val", "Val_images", validation))
    else:
        yield from _left_out_of_validation(root, encoding)
    files = {
        f"{folder}/QAPairsByCategory/{name}_{suffix}.txt": (f"{folder}/{images}", category, split)
        for folder, suffix, images, split in parts
        for name, category in CATEGORIES.items()
    }
    files[TEST] = ("VQAMed2019Test/VQAMed2019_Test_Images", "", "test")
    train = [name for name in files if name.startswith(TRAINING)]
    yield from rows.of_one_side(root, files, {"train": train, "test": [TEST]})
    files = {file: facts for file, facts in files.items() if (root / file).is_file()}
    lines = {file: _lines(root / file, encoding) for file in files}
    modalities = _modalities(itertools.chain.from_iterable(lines.values()))
    for file, (images, category, split) in files.items():
        yield from rows.each(
            file,
            lines[file],
            lambda name, line, images=images, category=category, split=split: _sample(
                root / images, name, line, category, modalities, split
            ),
        )


def _left_out_of_validation(root: Path, encoding: str) -> Iterator[Row]:
    """The rows of those files for validation that are there."""
    for name, category in CATEGORIES.items():
        file = f"{_VALIDATION}/QAPairsByCategory/{name}_val.txt"
        if (root / file).is_file():
            yield from rows.of_validation(
                file,
                _lines(root / file, encoding),
                lambda id, line, category=category: _sample(root, id, line, category, {}, "val"),
            )


def _sample(
    images: Path, name: str, line: str, category: str, modalities: Mapping[str, str], split: str
) -> Sample:
    parts = line.split("|")
    form = "image|question|answer" if category else "image|category|question|answer"
    if len(parts) != form.count("|") + 1 or not all(part.strip() for part in parts):
        raise ValueError(f"{line!r} is not of the form {form}")
    image, question, answer = parts[0], *parts[-2:]
    kind = category or parts[1].strip().lower()
    if kind not in _TASKS:
        raise ValueError(f"category {parts[1]!r}; known: {', '.join(_TASKS)}")
    options, answer = rows.yes_or_no(answer)
    answer, alternatives = (answer, ()) if options else rows.references(answer)
    return Sample(
        id=name,
        image=images / f"{rows.inside(image)}.jpg",
        question=question.strip(),
        options=options,
        answer=answer,
        explanation=None,
        modality=modalities.get(image, "unknown"),
        task=_TASKS[kind],
        source="VQA-Med 2019",
        patient=None,
        split=split,
        alternatives=alternatives,
    )


def _modalities(lines: Iterable[str]) -> dict[str, str]:
    """The modality of each image whose questions take exactly one for granted."""
    named: dict[str, set[str]] = {}
    for image, *words in (line.split("|") for line in lines):
        if len(words) > 1 and (modality := modality_in_question(words[-2])):
            named.setdefault(image, set()).add(modality)
    return {image: names.pop() for image, names in named.items() if len(names) == 1}


def _lines(path: Path, encoding: str) -> list[str]:
    text = rows.decoded(path, encoding, "data.encoding")
    return [line for line in text.split("\n") if line.strip()]
