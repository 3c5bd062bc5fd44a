"""Silvar-Med: questions about abnormal SLAKE images with expert-checked explanations.

866 items [3rd] (experiments/rarl/README.md, "Recipe"). The paper gives no layout and copies differ:
the names of files and keys are values of `conf/data/silvar_med.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from medreason.data import rows
from medreason.data.names import modality_of
from medreason.data.rows import Record, Row
from medreason.samples import Sample, letter_at, letters_of, split_problem


def read(
    root: Path | str | None,
    files: Mapping[str, str],
    keys: Mapping[str, str],
    *,
    image_folder: str = "images",
) -> Iterator[Row]:
    """Rows of JSON arrays; `files` maps each to its split, `keys` our names of keys to theirs."""
    root = rows.folder(root)
    rows.release_files(root, files)
    for file, split in files.items():
        yield from rows.each(
            file,
            rows.json_array(root / file),
            lambda name, row, split=split: _sample(root / image_folder, name, row, keys, split),
        )


def _sample(
    images: Path,
    name: str,
    row: Record,
    keys: Mapping[str, str],
    split: str,
) -> Sample:
    problem, answer, explanation = (
        rows.text(row, keys[key]).strip() for key in ("question", "answer", "explanation")
    )
    question, options = split_problem(problem)
    if not options:
        options, answer = rows.yes_or_no(answer)
    elif answer in options:
        answer = letter_at(options.index(answer))
    elif answer not in letters_of(options):
        raise ValueError(f'"{keys["answer"]}" {answer!r} is none of the options {list(options)}')
    name_of_modality = row.get(keys["modality"])
    modality = modality_of(name_of_modality) if isinstance(name_of_modality, str) else "unknown"
    return Sample(
        id=name,
        image=images / rows.inside(rows.text(row, keys["image"])),
        question=question,
        options=options,
        answer=answer,
        explanation=explanation,
        modality=modality or "unknown",
        task="disease",  # it asks about abnormalities
        source="Silvar-Med",
        patient=None,
        split=split,
    )
