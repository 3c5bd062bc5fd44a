"""PathVQA as released (folder `pvqa`): pickled lists of image, question, answer, and JPEG files.

Layout: github.com/UCSD-AI4H/PathVQA. It names no question types, so all rows are attributes (ours).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medreason.data import rows
from medreason.data.rows import Row
from medreason.samples import Sample


def read(root: Path | str | None, *, validation: str | None = None) -> Iterator[Row]:
    """Rows of train and test; `validation` is the side of the rows of val, none leaves them out."""
    root = rows.folder(root)
    sides = {"train": "train", "test": "test"} | ({"val": validation} if validation else {})
    files = {f"qas/{name}/{name}_qa.pkl": name for name in sides}
    rows.all_there(root, files)
    for file, name in files.items():
        yield from rows.each(
            file,
            _pickled(root / file),
            lambda id, row, name=name: _sample(root, id, row, name, sides[name]),
        )


def _sample(root: Path, id: str, row: Any, name: str, split: str) -> Sample:  # noqa: ANN401
    image = rows.inside(rows.text(row, "image"))
    options, answer = rows.yes_or_no(rows.text(row, "answer"))
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
    """Lists, dictionaries and texts only: a pickle from the net may otherwise run any program."""

    def find_class(self, module_name: str, global_name: str) -> Any:  # noqa: ANN401
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def _pickled(path: Path) -> list[Any]:
    try:
        found = _Plain(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise ValueError(
            f"{path}: not a pickled list of plain rows ({error}); download the file again"
        ) from error
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path}: holds {type(found).__name__}, not a list of rows")
    return found
