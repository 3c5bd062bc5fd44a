"""Reads and writes the folder of `action=prepare`: images of one size, a table, its digest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
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
    """The samples of a prepared folder, which may have been moved.

    Raises ValueError where the folder was not prepared to the end.
    """
    root = rows.folder(root)
    if not (root / SUMMARY).is_file():
        raise ValueError(
            f"data.root={root} has no {SUMMARY}: it is not a prepared folder, or action=prepare "
            "did not finish; re-run the same command to resume"
        )
    for row in pq.read_table(root / TABLE).to_pylist():
        image, options = root / row["image"], tuple(row["options"])
        yield Sample(**{**row, "image": image, "options": options})


def write(folder: Path, samples: Sequence[Sample], summary: dict[str, Any]) -> None:
    """Write table and summary; the summary comes last and marks the folder as complete."""
    rows = [asdict(s) | {"image": s.image.relative_to(folder).as_posix()} for s in samples]
    with atomic(folder / TABLE) as unfinished:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), unfinished)
    write_json(folder / SUMMARY, summary)
