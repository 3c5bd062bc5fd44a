"""SLAKE as released: three JSON files, images as `imgs/xmlab<n>/source.jpg`, English and Chinese.

Layout: med-vqa.com/slake; copies on the hub call the middle file validation.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from medreason.data import rows
from medreason.data.names import modality_of
from medreason.data.rows import LeftOut, Record, Row
from medreason.samples import Sample

_TASKS = {  # [ours]; types without a column in the matrix are attributes
    "modality": "modality_recognition",
    "organ": "anatomy",
    "position": "anatomy",
    "abnormality": "disease",
    "kg": "disease",
}
RELEASED_ROWS = {"train.json": 9_835, "valid*.json": 2_099, "test.json": 2_094}
_LANGUAGES = {"en": ("en",), "zh": ("zh",), "both": ("en", "zh")}


def read(
    root: Path | str | None,
    *,
    language: str = "en",
    validation: str | None = None,
    images_not_in: str | None = None,
) -> Iterator[Row]:
    """Rows in `language` (en, zh or both).

    Validation rows belong to the split `validation`; None leaves them out. Rows about images that
    the file `images_not_in` names (as xmlab12) are left out, too: Silvar-Med is made of SLAKE
    images, so a model that was trained on it has seen them. So are rows without an answer. Without
    train.json the set can be evaluated on, without test.json trained on by data.split=by_image.
    """
    root = rows.folder(root)
    if language not in _LANGUAGES:
        raise ValueError(f"data.language={language!r}; known: {', '.join(_LANGUAGES)}")
    files = {"train.json": "train", "test.json": "test"}
    released = "validate.json" if (root / "validate.json").is_file() else "validation.json"
    if validation:
        files[released] = validation
    yield from rows.of_one_side(root, files, {"train": ["train.json"], "test": ["test.json"]})
    names = Path(images_not_in).read_text() if images_not_in else ""
    left_out = set(re.findall(r"xmlab\d+", names))

    def build(split: str) -> Callable[[str, Record], Sample | LeftOut]:
        return lambda name, row: _row(root, name, row, _LANGUAGES[language], left_out, split)

    for file, split in files.items():
        if (root / file).is_file():
            yield from rows.each(file, rows.json_array(root / file), build(split))
    if not validation and (root / released).is_file():
        yield from rows.of_validation(
            released, rows.json_array(root / released), build("validation")
        )


def _row(
    root: Path,
    name: str,
    row: Record,
    languages: Sequence[str],
    left_out: Collection[str],
    split: str,
) -> Sample | LeftOut:
    image, language = rows.inside(rows.text(row, "img_name")), rows.text(row, "q_lang")
    file, _, index = name.rpartition(":")
    if language not in languages:
        return LeftOut(file, int(index), f"is in {language!r}", "of another data.language")
    if image.split("/")[0] in left_out:
        return LeftOut(file, int(index), f"about {image}", "about images of data.images_not_in")
    if row.get("answer") == "":
        return LeftOut(file, int(index), "its answer is empty", "released without an answer")
    kind = rows.answer_type(row)
    options, answer = rows.yes_or_no(rows.text_or_number(row, "answer"), kind)
    modality = modality_of(rows.text(row, "modality"))
    if not modality:
        raise ValueError(f'"modality" is {row["modality"]!r}; SLAKE has CT, MRI and X-Ray')
    return Sample(
        id=name,
        image=root / "imgs" / image,
        question=rows.text(row, "question").strip(),
        options=options,
        answer=answer,
        explanation=None,
        modality=modality,
        task=_TASKS.get(rows.text(row, "content_type").strip().lower(), "attributes"),
        source="SLAKE",
        patient=None,
        split=split,
        answer_type=kind,
    )
