"""The files that Med-R1 publishes: JSON arrays of `image`, `problem`, `solution`.

Format, names and their typing errors: PAPERS section 1 "Data".
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medreason.data import images as image_files
from medreason.data.splits import split_by_group
from medreason.replies import published_answer
from medreason.samples import LETTERS, MODALITIES, TASKS, Sample

# Beginnings of the published names in lower case without spaces and signs.
_MODALITY_NAMES = {
    "ct": ("ct", "computedtomography"),
    "mri": ("mr", "magnetic"),
    "xray": ("xray", "radiograph"),
    "ultrasound": ("ultrasound",),
    "dermoscopy": ("dermoscop",),
    "fundus": ("fundus",),
    "oct": ("oct", "opticalcoherence"),
    "microscopy": ("microscop",),
    "unknown": ("unknown",),
}
_TASK_NAMES = {
    "anatomy": ("anatomy",),
    "disease": ("disease",),
    "grading": ("lesiongrading", "grading"),
    "modality_recognition": ("modality",),
    "attributes": ("otherbiological", "biological", "attribute"),
    "unknown": ("unknown",),
}


@dataclass(frozen=True)
class BadRow:
    """A row that gives no sample, and why."""

    file: str
    """Path below the root."""
    row: int
    """Index in the array; the first row is 0."""
    problem: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.problem}"


@dataclass(frozen=True)
class Loaded:
    """What files hold: the samples, and the rows that give none."""

    samples: list[Sample]
    bad_rows: list[BadRow]


def load(
    root: Path | str | None,
    files: Sequence[str] = (),
    *,
    labels_from: Sequence[str] = (),
    patients: str | None = None,
    test_share: float | None = None,
    resplit: bool = False,
    seed: int = 0,
    images: bool = True,
    bad_rows: str = "error",
) -> list[Sample]:
    """Samples of these files (see `read`); `bad_rows` says whether bad ones stop or are skipped.

    Files named `_train` and `_test` keep the published split. Others, and with `resplit` these too,
    are split by image and patient at `test_share`. Raises ValueError with the first ten bad rows.
    """
    if bad_rows not in ("error", "skip"):
        raise ValueError(f"data.bad_rows={bad_rows!r}; known: 'error', 'skip'")
    loaded = read(root, files, labels_from=labels_from, patients=patients, images=images)
    if loaded.bad_rows and (bad_rows == "error" or not loaded.samples):
        listed = "\n  ".join(str(row) for row in loaded.bad_rows[:10])
        raise ValueError(
            f"{len(loaded.bad_rows)} bad rows below {root}, the first:\n  {listed}\n"
            "repair them, or leave them out with data.bad_rows=skip where others remain"
        )
    unsplit = [sample for sample in loaded.samples if not sample.split]
    if not unsplit and not resplit:
        return loaded.samples
    if test_share is None or (len(unsplit) < len(loaded.samples) and not resplit):
        name = (unsplit or loaded.samples)[0].id.rpartition(":")[0]
        raise ValueError(
            f"{name} has no published split (_train.json, _test.json) or is to be split again; set"
            " data.test_share, and data.resplit=true to split it together with published files"
        )
    return split_by_group(loaded.samples, test_share=test_share, seed=seed)


def read(
    root: Path | str | None,
    files: Sequence[str] = (),
    *,
    labels_from: Sequence[str] = (),
    patients: str | None = None,
    images: bool = True,
) -> Loaded:
    """Read files below the root, given by path or glob pattern; none given means all.

    Modality and task come from the row, else from the file name, else from the row with the same
    image and problem in `labels_from` (the published files of the other family), else they are
    "unknown". `patients` is a CSV file below the root with `image` and `patient_or_source_id`.
    `images` decodes every image. `split` is empty where the file name says none. Raises ValueError
    for a file that cannot be read at all.
    """
    if root is None or not Path(root).is_dir():
        raise ValueError(f"data.root={root} is not a folder; set data.root to the data")
    root = Path(root)
    known = _cells(root, labels_from)
    owners = _patients(root, patients)
    loaded = Loaded([], [])
    for path in _paths(root, files):
        file = path.relative_to(root).as_posix()
        for index, row in enumerate(_rows(path)):
            try:
                loaded.samples.append(_sample(root, file, index, row, known, owners))
            except ValueError as error:
                loaded.bad_rows.append(BadRow(file, index, str(error)))
    return _with_readable_images(root, loaded) if images else loaded


def split_options(problem: str) -> tuple[str, tuple[str, ...]]:
    """Question and option texts of `Which? A)CT, B)MRI`; no options where ` A)` is missing.

    Source: PAPERS section 1 "Data": ` A)`, then `, B)`, `, C)`, `, D)` in sequence.
    """
    question, separator, rest = problem.partition(" A)")
    options = []
    for letter in LETTERS[1:]:
        option, following, after = rest.partition(f", {letter})")
        if not following:
            break
        options.append(option)
        rest = after
    return question.strip(), tuple(text.strip() for text in (*options, rest)) if separator else ()


def _sample(
    root: Path,
    file: str,
    index: int,
    row: Any,  # noqa: ANN401  whatever JSON holds
    known: dict[tuple[str, str], dict[str, str]],
    owners: dict[str, str],
) -> Sample:
    image, problem, solution = (_text(row, key) for key in ("image", "problem", "solution"))
    if image.startswith("/") or ".." in image.split("/"):
        raise ValueError(f"image {image!r} leaves the data root; give a path below it")
    question, options = split_options(problem)
    if len(options) < 2 or not all(options):
        raise ValueError(f"no options of the form ' A).., B)..' in problem {problem!r}")
    cell = _cell(row, file)
    cell = {**known.get((image, problem), {}), **cell}
    return Sample(
        id=f"{file}:{index}",
        image=root / image,
        question=question,
        options=options,
        answer=_gold(solution, options),
        explanation=None,
        modality=cell.get("modality", "unknown"),
        task=cell.get("task", "unknown"),
        source=_source(row.get("source") or image),
        patient=owners.get(image),
        split=_split_of(file),
    )


def _text(row: Any, key: str) -> str:  # noqa: ANN401
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, not an object with 'image', 'problem' ...")
    if key not in row:
        raise ValueError(f'no "{key}"; keys are {list(row)}')
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f'"{key}" is {row[key]!r}; needs a text')
    return row[key]


def _gold(solution: str, options: tuple[str, ...]) -> str:
    """The letter of `<answer> C </answer>`, `C`, `C) CT` or of an option's exact text."""
    gold = published_answer(solution)
    letters = LETTERS[: len(options)]
    if gold in options and gold not in letters:
        return LETTERS[options.index(gold)]
    form = re.fullmatch(r"([A-Z])(?:\)\s*(.*))?", gold, re.DOTALL)
    if form is None:
        raise ValueError(
            f"solution {solution!r} is neither a capital letter nor one of {list(options)}"
        )
    if form[1] not in letters:
        raise ValueError(f"solution {solution!r} is beyond the options A to {letters[-1]}")
    if form[2] and form[2] != options[letters.index(form[1])]:
        raise ValueError(f"solution {solution!r} is none of the options {list(options)}")
    return form[1]


def _cell(row: dict[str, Any], file: str) -> dict[str, str]:
    """What row and file name say of modality and task."""
    cell = {}
    name = Path(file).stem
    for key, names in (("modality", _MODALITY_NAMES), ("task", _TASK_NAMES)):
        if key in row:
            cell[key] = _named(_text(row, key), names)
            if not cell[key]:
                shown = ", ".join(MODALITIES if key == "modality" else TASKS)
                raise ValueError(f'"{key}" is {row[key]!r}; known: {shown}, unknown')
        elif (found := _named(name, names)) not in ("", "unknown"):
            cell[key] = found
    return cell


def _named(name: str, names: dict[str, tuple[str, ...]]) -> str:
    plain = re.sub(r"[\W_]", "", name).lower()
    return next((key for key, starts in names.items() if plain.startswith(starts)), "")


def _source(text: str) -> str:
    """The original data set: `Images/<data set>/...`, `VQA-RAD qid 12`."""
    folder = re.search(r"Images/([^/]+)/", text)
    return folder[1] if folder else re.split(r" qid |/", text)[0]


def _split_of(file: str) -> str:
    found = re.search(r"_(train|test)\.json$", file)
    return found[1] if found else ""


def _cells(root: Path, files: Sequence[str]) -> dict[tuple[str, str], dict[str, str]]:
    if not files:
        return {}
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for path in _paths(root, files):
        for row in _rows(path):
            key = (_text(row, "image"), _text(row, "problem"))
            cells.setdefault(key, {}).update(_cell(row, path.name))
    return cells


def _patients(root: Path, file: str | None) -> dict[str, str]:
    if file is None:
        return {}
    path = root / file
    if not path.is_file():
        raise ValueError(f"data.patients: no file {path}; give its path below {root}")
    owners: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        if missing := {"image", "patient_or_source_id"} - set(rows.fieldnames or ()):
            raise ValueError(f"{path}: no column {sorted(missing)}; columns are {rows.fieldnames}")
        for row in rows:
            patient = (row["patient_or_source_id"] or "").strip()
            if patient and owners.setdefault(row["image"], patient) != patient:
                raise ValueError(
                    f"{path}: image {row['image']!r} has the patients {owners[row['image']]!r}"
                    f" and {patient!r}; keep one"
                )
    return owners


def _paths(root: Path, files: Sequence[str]) -> list[Path]:
    if not files:
        every = sorted(root.rglob("*.json"))
        if not every:
            raise ValueError(f"data.root={root} holds no *.json; set data.root to the annotations")
        return [path for path in every if _split_of(path.name)] or every
    found: dict[Path, None] = {}
    for entry in files:
        if entry.startswith("/") or ".." in entry.split("/"):
            raise ValueError(f"data.files: {entry!r} leaves {root}; give a path below it")
        matches = [root / entry] if (root / entry).is_file() else sorted(root.glob(entry))
        if not matches:
            known = ", ".join(path.name for path in sorted(root.rglob("*.json"))[:5])
            raise ValueError(f"data.files: no file {entry!r} below {root}; there are: {known}")
        found.update(dict.fromkeys(matches))
    return list(found)


def _rows(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: broken JSON ({error}); download the file again") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds {type(rows).__name__}, not an array of objects")
    if not rows:
        raise ValueError(f"{path}: holds no rows; remove it from data.files")
    return rows


def _with_readable_images(root: Path, loaded: Loaded) -> Loaded:
    problems = _image_problems(root, {sample.image for sample in loaded.samples})
    good, bad = [], list(loaded.bad_rows)
    for sample in loaded.samples:
        if problem := problems.get(sample.image):
            file, _, row = sample.id.rpartition(":")
            bad.append(BadRow(file, int(row), problem))
        else:
            good.append(sample)
    return Loaded(good, sorted(bad, key=lambda row: (row.file, row.row)))


def _image_problems(root: Path, paths: Iterable[Path]) -> dict[Path, str]:
    inside = root.resolve()

    def problem(path: Path) -> str:
        try:
            target = path.resolve()
            path.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # endless link, NUL, name too long
            return f"image {str(path)!r} is no path ({error}); correct it"
        if not target.is_relative_to(inside):
            return f"image {path} leaves the data root by a link; copy it below {root}"
        try:
            image_files.check(path)
        except ValueError as error:
            return f"image {error}"
        return ""

    todo = list(paths)
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        found = zip(todo, pool.map(problem, todo), strict=True)
        return {path: text for path, text in found if text}
