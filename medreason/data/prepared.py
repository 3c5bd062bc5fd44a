"""Reads and writes the folder of `action=prepare`: images of one size, a table, its digest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from medreason.config import CONF
from medreason.console import command, outputs_word
from medreason.data import rows
from medreason.data.rows import Row
from medreason.runs import keys
from medreason.runs.files import read_json, read_parquet, write_json, write_parquet
from medreason.samples import Sample

TABLE = "samples.parquet"
SUMMARY = "prepared.json"
_SETTINGS = "settings.json"

_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("id", "image", "question")],
        ("options", pa.list_(pa.string())),
        *[(name, pa.string()) for name in ("answer", "explanation", "modality", "task")],
        *[(name, pa.string()) for name in ("source", "patient", "split")],
        ("alternatives", pa.list_(pa.string())),
        ("answer_type", pa.string()),
    ]
)


def read(root: Path | str | None) -> Iterator[Row]:
    """The samples of a prepared folder, which may have been moved.

    Raises ValueError where the folder was not prepared to the end, or its table is damaged.
    """
    if root is not None and not Path(root).is_dir():
        raise ValueError(
            f"data.root={root} is not a folder: action=prepare writes one; run "
            f"`{to_prepare(root)}`, or set data.root to what it wrote"
        )
    root = rows.folder(root)
    if not (root / SUMMARY).is_file():
        raise ValueError(
            f"data.root={root} has no {SUMMARY}: it is not a prepared folder, or action=prepare "
            "did not finish; re-run the same command to resume"
        )
    for row in read_parquet(root / TABLE).to_pylist():
        texts = {key: tuple(row[key]) for key in ("options", "alternatives") if key in row}
        yield Sample(**{**row, "image": root / row["image"], **texts})


def to_prepare(root: Path | str) -> str:
    """What to type for the folder, whose name says data set, size and form; `outputs=` where it
    lies in the `prepared` of another."""
    named = re.fullmatch(r"(.+)-(\d+)-(stretch|pad)", Path(root).name)
    data, size, resize = named.groups() if named else ("NAME", "384", "stretch")
    words = [f"prepare.size={size}"] * (size != "384") + ["prepare.resize=pad"] * (resize == "pad")
    own = named and not (CONF / "data" / f"{data}.yaml").exists()
    flags = ["--config-dir", "DIR"] * bool(own)
    above = Path(root).parent
    words += outputs_word(above.parent) if named and above.name == "prepared" else []
    return f"{command([*flags, 'action=prepare', f'data={data}', *words])} data.root=FOLDER"


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Mark the folder as unfinished and as of these settings.

    Raises:
        ValueError: it holds, or was to hold, a set of other settings.
    """
    recorded = read_json(folder / _SETTINGS) if (folder / _SETTINGS).exists() else settings
    if differences := list(keys.differences(recorded, json.loads(json.dumps(settings)))):
        theirs = ", ".join(f"{key}={value!r}" for key, value, _ in differences)
        ours = ", ".join(f"{key}={value!r}" for key, _, value in differences)
        summary = folder / SUMMARY
        digest = f", digest {read_json(summary)['digest']}" if summary.exists() else ", unfinished"
        raise ValueError(
            f"{folder} is of another set ({theirs}{digest}), this command prepares {ours}; set "
            "prepare.folder=... to another folder, or delete this one"
        )
    (folder / SUMMARY).unlink(missing_ok=True)  # written last, once all is there
    write_json(folder / _SETTINGS, settings)


def write(folder: Path, samples: Sequence[Sample], summary: dict[str, Any]) -> None:
    """Write table and summary; the summary comes last and marks the folder as complete."""
    rows = [asdict(s) | {"image": s.image.relative_to(folder).as_posix()} for s in samples]
    write_parquet(folder / TABLE, pa.Table.from_pylist(rows, schema=_SCHEMA))
    write_json(folder / SUMMARY, summary)
