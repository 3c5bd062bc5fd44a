"""Sets of image, question and answer on the Hugging Face hub; `datasets` downloads them once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from medreason.data import rows
from medreason.data.rows import Record, Row
from medreason.runs.files import atomic
from medreason.samples import Sample


def read(
    hub: str,
    cache: Path,
    *,
    modality: str = "unknown",
    task: str = "unknown",
    revision: str | None = None,
    validation: str | None = None,
) -> Iterator[Row]:
    """Rows of a hub id, or of a folder that holds its files.

    All rows get the same `modality` and `task`, since they have none of their own. Validation rows
    belong to the split `validation`; None leaves them out. Images are written to `cache` under the
    hash of their content, so that an image in train and test is known to be the same.

    Raises:
        ValueError: the hub cannot be reached and the set is not in the local cache.
    """
    # datasets, seconds
    from datasets import DatasetDict, Image, load_dataset

    try:
        dataset = load_dataset(hub, revision=revision)
    except (OSError, ValueError) as error:  # what `datasets` raises where it does not find one
        raise ValueError(
            f"data.hub={hub!r} cannot be loaded ({error}); with a network it is downloaded once, "
            "without one give a folder that holds its files"
        ) from error
    assert isinstance(dataset, DatasetDict)
    splits = {"train": "train", "test": "test"} | ({"validation": validation} if validation else {})
    folder = cache / "hub" / hub.strip("/").replace("/", "--")
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in dataset.items():
        if name in splits:
            records = part.cast_column("image", Image(decode=False))
            yield from rows.each(
                str(name),
                cast(Iterable[Record], records),
                lambda id, row, split=splits[str(name)]: _sample(
                    folder, id, row, hub, (modality, task), split
                ),
            )


def _sample(
    folder: Path, name: str, row: Record, hub: str, cell: tuple[str, str], split: str
) -> Sample:
    options, answer = rows.yes_or_no(rows.text(row, "answer"))
    return Sample(
        id=name,
        image=_stored(row["image"]["bytes"], row["image"]["path"], folder),
        question=rows.text(row, "question").strip(),
        options=options,
        answer=answer,
        explanation=None,
        modality=cell[0],
        task=cell[1],
        source=hub.rstrip("/").rpartition("/")[2],
        patient=None,
        split=split,
    )


def _stored(content: bytes | None, path: str | None, folder: Path) -> Path:
    """The image as a file of the folder."""
    content = content if content is not None else Path(str(path)).read_bytes()
    target = folder / f"{hashlib.sha256(content).hexdigest()[:20]}{Path(path or '').suffix}"
    if not target.exists():
        with atomic(target, sync=False) as unfinished:
            unfinished.write_bytes(content)
    return target
