"""Silvar-Med: questions about abnormal SLAKE images with expert-checked explanations.

866 items [3rd] (experiments/rarl/README.md, "Recipe"). The paper gives no layout and copies differ:
the names of files and keys are values of `conf/data/silvar_med.yaml`. A row can hold one question
or a list of them; an answer can hold its explanation, from its second sentence on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medreason.data import rows
from medreason.data.names import modality_of
from medreason.data.rows import Record, Row
from medreason.samples import Sample, letter_at, letters_of, refuse_glued, split_problem

FILES = {"train.json": "train", "test.json": "test"}


RELEASED_ROWS = {"*.json": 866}  # [3rd]


def read(
    root: Path | str | None,
    keys: Mapping[str, str],
    *,
    files: Mapping[str, str] | None = None,
    image_folder: str = "images",
) -> Iterator[Row]:
    """Rows of JSON arrays; `files` maps each to its split, `keys` our names of keys to theirs.

    No files stand for FILES. A list of questions counts as that many rows. An image `a_1.jpg` that
    is not there is `a.jpg`, where that is.
    """
    root = rows.folder(root)
    files = files or FILES
    rows.release_files(root, files, else_do="name those you have: 'data.files={a.json: train}'")
    for file, split in files.items():
        yield from rows.each(
            file,
            _questions(rows.json_array(root / file), keys),
            lambda name, row, split=split: _sample(root / image_folder, name, row, keys, split),
        )


def _sample(
    images: Path,
    name: str,
    row: Record,
    keys: Mapping[str, str],
    split: str,
) -> Sample:
    if missing := [key for key in ("image", "question", "answer") if keys[key] not in row]:
        raise ValueError(
            f'no "{keys[missing[0]]}"; keys are {list(row)}; set data.keys.{missing[0]} to one'
        )
    problem, answer = (rows.text(row, keys[key]).strip() for key in ("question", "answer"))
    explanation = rows.text(row, key) if (key := keys["explanation"]) in row else None
    if explanation is None and (sentences := re.match(r"(.+?[.!?])\s+(.+)", answer, re.DOTALL)):
        answer, explanation = sentences[1], sentences[2]
    question, options = split_problem(problem)
    refuse_glued(options)
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
        image=_image(images, rows.inside(rows.text(row, keys["image"]))),
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


def _image(images: Path, name: str) -> Path:
    """The path of an image; copies number the questions about one image (`a_1.jpg`)."""
    unnumbered = re.sub(r"_\d+(\.\w+)$", r"\1", name)
    numbered_only = (images / unnumbered).is_file() and not (images / name).is_file()
    return images / (unnumbered if numbered_only else name)


def _questions(records: Sequence[Record], keys: Mapping[str, str]) -> Iterator[Record]:
    """The records, those with lists of questions and answers once for each question."""
    listed = [keys[key] for key in ("question", "answer", "explanation")]
    for record in records:
        lists = {
            key: record[key]
            for key in listed
            if isinstance(record, Mapping) and isinstance(record.get(key), list)
        }
        if listed[0] not in lists or len({len(values) for values in lists.values()}) > 1:
            yield record  # `_sample` names a list among texts, and lists that do not match
            continue
        for values in zip(*lists.values(), strict=True):
            yield {**record, **dict(zip(lists, values, strict=True))}
