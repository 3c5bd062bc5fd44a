"""The files that Med-R1 publishes: JSON arrays of `image`, `problem`, `solution`.

Format, names and their typing errors: experiments/med_r1/README.md, "Data".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medreason.data import csv_table, rows
from medreason.data.names import MED_R1_FILES, modality_of, task_of
from medreason.data.rows import Record, Remark, Row
from medreason.replies import published_answer
from medreason.samples import (
    MODALITIES,
    TASKS,
    Sample,
    letter_at,
    lettered,
    refuse_glued,
    split_problem,
)

RELEASED_ROWS = {
    f"*{name}_{side}.json": count
    for name, counts in MED_R1_FILES.items()
    for side, count in zip(("train", "test"), counts, strict=True)
}
"""Files of the release that papers report on -> their rows, which `checks` compares."""


def read(
    root: Path | str | None,
    files: Sequence[str] = (),
    *,
    labels_from: Sequence[str] = (),
    patients: str | None = None,
) -> Iterator[Row]:
    """Rows of `files`, paths or glob patterns below the root; empty means all.

    Modality and task come from the row, else from the file name, else from the row with the same
    image and problem in `labels_from` (the published files of the other family), else they are
    "unknown". `patients` is a CSV file below the root with `image` and `patient_or_source_id`.
    `split` is empty where the file name has none. Raises ValueError for a file that cannot be read.
    """
    root = rows.folder(root)
    cells = _cells(root, labels_from)
    patient_of = _patients(root, patients)
    for copy in sorted(root.rglob("._*.json")):
        yield Remark(copy.relative_to(root).as_posix(), -1, "written by macOS, holds no rows")
    for path in paths(root, files):
        file = path.relative_to(root).as_posix()
        yield from rows.each(
            file,
            rows.json_array(path),
            lambda name, row: _sample(root, name, row, cells, patient_of),
        )


def paths(root: Path, files: Sequence[str]) -> list[Path]:
    """The files that paths or glob patterns below the root name; without any, those published.

    Those that macOS writes beside others (`._CT_train.json`) are no files of a release.
    """
    if not files:
        all_files = _annotations(root)
        if not all_files:
            raise ValueError(f"data.root={root} holds no *.json; set data.root to the annotations")
        arrays = [path for path in all_files if path.suffix == ".json"]
        return [path for path in all_files if _split_of(path.name)] or arrays or all_files
    selected: dict[Path, None] = {}
    for entry in files:
        if entry.startswith("/") or ".." in entry.split("/"):
            raise ValueError(f"data.files: {entry!r} leaves {root}; give a path below it")
        matches = [root / entry] if (root / entry).is_file() else _matches(root, entry)
        if not matches:
            others = ", ".join(path.name for path in _annotations(root)[:5])
            raise ValueError(f"data.files: no file {entry!r} below {root}; there are: {others}")
        selected.update(dict.fromkeys(matches))
    return list(selected)


def _annotations(root: Path) -> list[Path]:
    """Files of JSON arrays and of JSON lines."""
    suffixes = (".json", *rows.JSON_LINES)
    return sorted(path for suffix in suffixes for path in _matches(root, f"**/*{suffix}"))


def _matches(root: Path, pattern: str) -> list[Path]:
    return sorted(path for path in root.glob(pattern) if not path.name.startswith("._"))


def _sample(
    root: Path,
    name: str,
    row: Record,
    cells: Mapping[tuple[str, str], dict[str, str]],
    patient_of: Mapping[str, str],
) -> Sample:
    image, problem, solution = (rows.text(row, key) for key in ("image", "problem", "solution"))
    question, options = split_problem(problem)
    if len(options) < 2 or not all(options):
        raise ValueError(f"no options of the form ' A).., B)..' in problem {problem!r}")
    refuse_glued(options)
    file = name.rpartition(":")[0]
    cell = {**cells.get((image, problem), {}), **_cell(row, file)}
    return Sample(
        id=name,
        image=root / rows.inside(image),
        question=question,
        options=options,
        answer=letter(solution, options),
        explanation=None,
        modality=cell.get("modality", "unknown"),
        task=cell.get("task", "unknown"),
        source=_source(rows.text(row, "source") if row.get("source") else image),
        patient=patient_of.get(image),
        split=_split_of(file),
    )


def letter(solution: str, options: tuple[str, ...]) -> str:
    """The letter of `<answer> C </answer>`, `C`, `C) CT` or of an option's exact text.

    Raises ValueError where it is none of the options.
    """
    gold = published_answer(solution)
    texts = dict(lettered(options))
    if gold in options and gold not in texts:
        return letter_at(options.index(gold))
    form = re.fullmatch(r"([A-Z])(?:\)\s*(.*))?", gold, re.DOTALL)
    if form is None:
        raise ValueError(
            f"solution {solution!r} is neither a capital letter nor one of {list(options)}"
        )
    if form[1] not in texts:
        raise ValueError(f"solution {solution!r} is beyond the options A to {max(texts)}")
    if form[2] and form[2] != texts[form[1]]:
        raise ValueError(f"solution {solution!r} is none of the options {list(options)}")
    return form[1]


def _cell(row: Record, file: str) -> dict[str, str]:
    """Modality and task, as far as the row or the file name has them."""
    cell = {}
    name = Path(file).stem
    for key, key_of, known in (
        ("modality", modality_of, MODALITIES),
        ("task", task_of, TASKS),
    ):
        if key in row:
            cell[key] = key_of(rows.text(row, key))
            if not cell[key]:
                raise ValueError(f'"{key}" is {row[key]!r}; known: {", ".join(known)}, unknown')
        elif (value := key_of(name)) not in ("", "unknown"):
            cell[key] = value
    return cell


def _source(text: str) -> str:
    """The original data set: `Images/<data set>/...`, `VQA-RAD qid 12`."""
    folder = re.search(r"Images/([^/]+)/", text)
    return folder[1] if folder else re.split(r" qid |/", text)[0]


def _split_of(file: str) -> str:
    match = re.search(r"_(train|test)\.(json|jsonl|ndjson)$", file)
    return match[1] if match else ""


def _cells(root: Path, files: Sequence[str]) -> dict[tuple[str, str], dict[str, str]]:
    if not files:
        return {}
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for path in paths(root, files):
        for row in rows.json_array(path):
            key = (rows.text(row, "image"), rows.text(row, "problem"))
            cells.setdefault(key, {}).update(_cell(row, path.name))
    return cells


def _patients(root: Path, file: str | None) -> dict[str, str]:
    if file is None:
        return {}
    path = root / file
    if not path.is_file():
        raise ValueError(f"data.patients: no file {path}; give its path below {root}")
    patient_of: dict[str, str] = {}
    for row in csv_table.read(path, ("image", "patient_or_source_id")):
        if problem := csv_table.extra_problem(row):
            raise ValueError(f"{path}, row {row.line}: {problem}")
        patient = rows.patient(row["patient_or_source_id"])
        if patient and patient_of.setdefault(row["image"], patient) != patient:
            raise ValueError(
                f"{path}: image {row['image']!r} has the patients {patient_of[row['image']]!r}"
                f" and {patient!r}; keep one"
            )
    return patient_of
