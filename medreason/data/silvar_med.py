"""Silvar-Med: questions about abnormal SLAKE images with expert-checked explanations.

The paper gives no layout (PAPERS section 2, 866 items), and copies differ: the names of files and
keys are values of `conf/data/silvar_med.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medreason.data import rows
from medreason.data.names import modality_of
from medreason.data.rows import Row
from medreason.samples import Sample, letter_at, letters_of, split_problem


def read(
    root: Path | str | None,
    files: Mapping[str, str],
    keys: Mapping[str, str],
    *,
    image_folder: str = "images",
) -> Iterator[Row]:
    """Rows of JSON arrays; `files` maps each to its side, `keys` says what its keys are called."""
    root = rows.folder(root)
    rows.all_there(root, files)
    for file, split in files.items():
        yield from rows.each(
            file,
            rows.json_array(root / file),
            lambda name, row, split=split: _sample(root / image_folder, name, row, keys, split),
        )


def _sample(
    images: Path,
    name: str,
    row: Any,  # noqa: ANN401
    keys: Mapping[str, str],
    split: str,
) -> Sample:
    image, asked, answer, explanation = (
        rows.text(row, keys[key]) for key in ("image", "question", "answer", "explanation")
    )
    question, options = split_problem(asked)
    if not options:
        options, answer = rows.yes_or_no(answer)
    elif answer.strip() in options:
        answer = letter_at(options.index(answer.strip()))
    elif answer.strip() not in letters_of(options):
        raise ValueError(f'"{keys["answer"]}" {answer!r} is none of the options {list(options)}')
    named = row.get(keys["modality"])
    modality = modality_of(named) if isinstance(named, str) else "unknown"
    return Sample(
        id=name,
        image=images / rows.inside(image),
        question=question,
        options=options,
        answer=answer.strip(),
        explanation=explanation.strip(),
        modality=modality or "unknown",
        task="disease",  # it asks about abnormalities
        source="Silvar-Med",
        patient=None,
        split=split,
    )
