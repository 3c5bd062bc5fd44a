"""The folder that `action=prepare` writes: images in one size, one cleaned table, its digest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medreason.data import rows
from medreason.data.rows import Row
from medreason.runs.files import atomic, write_json
from medreason.samples import Sample

TABLE = "samples.parquet"
SUMMARY = "prepared.json"

_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("id", "image", "question")],
        ("options", pa.list_(pa.string())),
        *[(name, pa.string()) for name in ("answer", "explanation", "modality", "task")],
        *[(name, pa.string()) for name in ("source", "patient", "split")],
    ]
)


def read(root: Path | str | None) -> Iterator[Row]:
    """The samples of a prepared folder, wherever it lies now.

    Raises:
        ValueError: the folder was not prepared to the end.
    """
    root = rows.folder(root)
    if not (root / SUMMARY).is_file():
        raise ValueError(
            f"data.root={root} has no {SUMMARY}: it is not a prepared folder, or action=prepare "
            "did not come to its end; the same command goes on where it stopped"
        )
    for row in pq.read_table(root / TABLE).to_pylist():
        image, options = root / row["image"], tuple(row["options"])
        yield Sample(**{**row, "image": image, "options": options})


def write(folder: Path, samples: Sequence[Sample], summary: dict[str, Any]) -> None:
    """Write table and summary, each in one step; the summary comes last and makes it whole."""
    relative = [replace(s, image=s.image.relative_to(folder)) for s in samples]
    found = [asdict(s) | {"image": s.image.as_posix()} for s in relative]
    with atomic(folder / TABLE) as unfinished:
        pq.write_table(pa.Table.from_pylist(found, schema=_SCHEMA), unfinished)
    write_json(folder / SUMMARY, summary)
