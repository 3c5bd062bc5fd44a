"""PathVQA as released (folder `pvqa`): pickled lists of image, question, answer, and JPEG files.

Layout: github.com/UCSD-AI4H/PathVQA. It names no question types, so all rows are attributes (ours).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from medreason.config.rules import kind_of
from medreason.data import rows
from medreason.data.rows import Record, Row
from medreason.samples import Sample

_VALIDATION = "qas/val/val_qa.pkl"
RELEASED_ROWS = {"qas/train/*": 19_755, "qas/test/*": 6_761}


def read(root: Path | str | None, *, validation: str | None = None) -> Iterator[Row]:
    """Rows of train and test; rows of val go to the split `validation`, or nowhere if None.

    Without those of train the set can be evaluated on, without those of test trained on by
    data.split=by_image.
    """
    root = rows.folder(root)
    splits = {"train": "train", "test": "test"} | ({"val": validation} if validation else {})
    files = {f"qas/{name}/{name}_qa.pkl": name for name in splits}
    yield from rows.of_one_side(
        root, files, {name: [f"qas/{name}/{name}_qa.pkl"] for name in ("train", "test")}
    )
    if not validation and (root / _VALIDATION).is_file():
        yield from rows.of_validation(
            _VALIDATION,
            _pickled(root / _VALIDATION),
            lambda id, row: _sample(root, id, row, "val", "validation"),
        )
    for file, name in files.items():
        if not (root / file).is_file():
            continue
        yield from rows.each(
            file,
            _pickled(root / file),
            lambda id, row, name=name: _sample(root, id, row, name, splits[name]),
        )


def _sample(root: Path, id: str, row: Record, name: str, split: str) -> Sample:
    image = rows.inside(rows.text(row, "image"))
    options, answer = rows.yes_or_no(rows.text_or_number(row, "answer"))
    return Sample(
        id=id,
        image=root / "images" / name / f"{image}.jpg",
        question=rows.text(row, "question").strip(),
        options=options,
        answer=answer,
        explanation=None,
        modality="microscopy",
        task="attributes",
        source="PathVQA",
        patient=None,
        split=split,
    )


class _Plain(pickle.Unpickler):
    """Loads lists, dictionaries and texts only: a downloaded pickle could run any program."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def _pickled(path: Path) -> list[Record]:
    try:
        content = _Plain(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise ValueError(
            f"{path}: not a pickled list of plain rows ({error}); download the file again"
        ) from error
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: holds {kind_of(content)}, not a list of rows")
    return content
