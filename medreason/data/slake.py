"""SLAKE as released: three JSON files, images as `imgs/xmlab<n>/source.jpg`, English and Chinese.

Layout: med-vqa.com/slake; copies on the hub call the middle file validation.json.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from medreason.data import rows
from medreason.data.names import modality_of
from medreason.data.rows import Row
from medreason.samples import Sample

_TASKS = {  # ours; what the matrix has no column for is attributes
    "modality": "modality_recognition",
    "organ": "anatomy",
    "position": "anatomy",
    "abnormality": "disease",
    "kg": "disease",
}
_LANGUAGES = {"en": ("en",), "zh": ("zh",), "both": ("en", "zh")}


def read(
    root: Path | str | None,
    *,
    language: str = "en",
    validation: str | None = None,
    images_not_in: str | None = None,
) -> Iterator[Row]:
    """Rows in `language` (en, zh or both).

    `validation` is the side on which validation rows are put, none leaves them out.
    `images_not_in` is a file that names images (xmlab12) whose rows are left out: Silvar-Med is
    made of SLAKE images, so what was trained on it has seen them.
    """
    root = rows.folder(root)
    if language not in _LANGUAGES:
        raise ValueError(f"data.language={language!r}; known: {', '.join(_LANGUAGES)}")
    files = {"train.json": "train", "test.json": "test"}
    if validation:
        alone = "validate.json" if (root / "validate.json").is_file() else "validation.json"
        files[alone] = validation
    rows.all_there(root, files)
    seen = set(re.findall(r"xmlab\d+", Path(images_not_in).read_text())) if images_not_in else set()
    for file, split in files.items():
        yield from rows.each(
            file,
            rows.json_array(root / file),
            lambda name, row, split=split: _sample(
                root, name, row, _LANGUAGES[language], seen, split
            ),
        )


def _sample(
    root: Path,
    name: str,
    row: Any,  # noqa: ANN401
    languages: Sequence[str],
    left_out: Collection[str],
    split: str,
) -> Sample | None:
    image = rows.inside(rows.text(row, "img_name"))
    if rows.text(row, "q_lang") not in languages or image.split("/")[0] in left_out:
        return None
    options, answer = rows.yes_or_no(rows.text(row, "answer"))
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
    )
