"""Sets of image, question and answer: a table of one's own, or one of the Hugging Face hub.

Sets differ in their columns: `data.columns` names them, and those of the usual names need no key.
`question_files` finds and reads the files; `saved_sets` what the columns of R1-V and Med-R1 hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medreason.console import counted
from medreason.data import (
    csv_table,
    question_columns,
    question_files,
    question_options,
    rows,
    saved_sets,
)
from medreason.data.names import OTHER_MODALITY_NAMES
from medreason.data.question_columns import Found, Layout
from medreason.data.question_files import Part
from medreason.data.rows import LeftOut, Record, Remark, Row, SplitColumn
from medreason.runs.files import atomic
from medreason.samples import MODALITY_NAMES, TASK_NAMES, Sample

_CELLS = {"path-vqa": ("microscopy", "attributes")}
"""Modality and task of all rows, by the name of a known set."""


def read(
    hub: str,
    cache: Path,
    *,
    columns: Mapping[str, str | Sequence[str] | None] | None = None,
    names: Mapping[str, Mapping[str, str]] | None = None,
    modality: str | None = None,
    task: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    image_folder: str | None = None,
    validation: str | None = None,
    images: str = "decode",
    divided_anew: bool = False,
) -> Iterator[Row]:
    """Rows of a hub id, of a folder that holds its files, or of a table of one's own.

    `columns` maps our names (image, question, answer, options, answer_type, explanation, modality,
    task, source, patient, split, and alternatives: a list of texts that are as right as the answer
    of an open question) to the set's; null takes the usual name, where there is one. `options` may
    be a list of columns of one option each: A, B ... in this order. `names` maps words of the
    columns of modality and task to ours, where they are no usual names. Rows without
    modality and task of their own get those given, else those known of the set. Validation rows
    belong to the split `validation`; None leaves them out. Images are written to `cache` under the
    hash of their content, so that an image in train and test is known to be the same; where a
    column holds paths, they start from `image_folder`, by default the folder of the files. Where
    `images` is "decode", a set of which no image is there is refused. A row whose cell of the split
    is empty beside filled ones is a bad row, unless all rows are `divided_anew`.

    Raises:
        ValueError: the set cannot be found or read, or has no column of images, questions or
            answers.
    """
    for key, value, known in (("modality", modality, MODALITY_NAMES), ("task", task, TASK_NAMES)):
        if value not in (None, *known):
            meant = question_columns.FACETS[key][0](str(value))
            hint = f"; did you mean {meant}?" if meant else ""
            raise ValueError(f"data.{key}={value!r}; known: {', '.join(known)}{hint}")
    words = question_columns.checked_words(names or {})
    folder = _image_folder(hub, image_folder)
    path = Path(hub).resolve()  # of `.`, too
    source = path.stem if path.is_file() else path.name
    known_cell = _CELLS.get(source.lower(), ("unknown", "unknown"))
    splits = {"train": "train", "test": "test"} | ({"validation": validation} if validation else {})
    parts = question_files.read(hub, revision, subset)
    sides = [part.split for part in parts]
    if not splits.keys() & {*sides}:
        raise ValueError(
            f"data.hub={hub!r} has the splits {list(dict.fromkeys(sides))}, none of "
            f"{', '.join(splits)}; set data.validation=test where it has validation rows alone"
        )
    for part in parts:
        if part.split not in splits:
            is_validation = rows.FOLDS.get(part.split) == "validation"
            asked = f" ({rows.ASKED_WITH})" if is_validation else ""
            verb = "is" if part.count == 1 else "are"
            text = f"{counted(part.count, 'row')} of this split {verb} not read{asked}"
            yield Remark(part.name, -1, text)
            continue
        found = question_columns.find(hub, part, columns or {}, words=words)
        layout = Layout(
            **_without_empty_split(part, found)._asdict(),
            cell=(modality or known_cell[0], task or known_cell[1]),
            source=source,
            images=folder,
            cache=cache / "hub" / hub.strip("/").replace("/", "--"),
            words=words,
            needs_split=not divided_anew,
        )
        yield from question_columns.remarks(part, layout)
        if "split" in layout.columns:
            yield SplitColumn(part.name, layout.columns["split"])
        question_options.refuse_lost_options(part, layout)
        question_options.refuse_options_in_one_cell(part, layout)
        question_options.refuse_places_from_1(part, layout)
        if images == "decode":
            _refuse_absent_images(part, layout)
        yield from rows.each(
            part.name,
            part.records(part.columns),
            lambda id, row, layout=layout, split=part.split: _sample(
                layout, id, row, split, splits
            ),
            part.numbers,
        )


def _image_folder(hub: str, given: str | None) -> Path:
    """The folder that paths of images start from. Raises ValueError where the one given is none."""
    path = Path(hub)
    own = path.parent if path.is_file() else path if path.is_dir() else Path()
    if not given:
        return own
    if not Path(given).is_dir():
        below = (
            f"set {own / given}" if (own / given).is_dir() else "give the one that paths start from"
        )
        raise ValueError(f"data.image_folder={given} is not a folder; {below}")
    return Path(given)


def _refuse_absent_images(part: Part, layout: Layout) -> None:
    """Refuse paths of which none leads to an image: they start from another folder."""
    column = layout.columns["image"]
    paths = [row[column] for row in part.records([column]) if isinstance(row[column], str)]
    files = [layout.images / path.replace("\\", "/") for path in paths if "://" not in path]
    if files and not any(file.is_file() for file in files):
        raise ValueError(
            f"{part.where}: none of its {counted(len(files), 'image')} is there, such as "
            f"{files[0]}; set data.image_folder to the folder that paths such as {paths[0]!r} "
            "start from"
        )


def _without_empty_split(part: Part, found: Found) -> Found:
    """The columns without one of splits that says nothing of any row."""
    column = found.columns.get("split")
    if column is None or any(row[column] not in (None, "") for row in part.records([column])):
        return found
    return found._replace(
        columns={our: name for our, name in found.columns.items() if our != "split"}
    )


def _sample(
    layout: Layout, name: str, row: Record, split: str, splits: Mapping[str, str]
) -> Sample | LeftOut:
    """`split` is that of rows that name none, and `splits` what becomes of those that are read."""
    columns = layout.columns
    if problem := csv_table.extra_problem(row):
        raise ValueError(problem)
    if layout.needs_split and "split" in columns and _own(row, columns, "split") is None:
        raise ValueError(rows.EMPTY_SPLIT.format(columns["split"]))
    if (split := _facet(row, layout, "split", split)) not in splits:
        file, _, number = name.rpartition(":")
        reason = rows.left_out_of_validation(columns["split"], _own(row, columns, "split") or split)
        return LeftOut(file, int(number), reason, reason)
    kind = rows.answer_type(row, columns["answer_type"]) if "answer_type" in columns else ""
    options = question_options.options_of(row, layout)
    said = {key: question_columns.unusual(key, columns[key]) for key in ("question", "answer")}
    question = rows.text(row, columns["question"], said["question"]).strip()
    answer = rows.text_or_number(row, columns["answer"], said["answer"])
    if layout.has_problems and not options:
        question, options, answer = saved_sets.parts(question, answer)
    elif options:
        answer = question_options.letter(row[columns["answer"]], options)
    if not options:
        options, answer = rows.yes_or_no(answer, kind)
    return Sample(
        id=name,
        image=_image(row[columns["image"]], layout),
        question=question,
        options=options,
        answer=answer,
        explanation=_own(row, columns, "explanation"),
        modality=_facet(row, layout, "modality", layout.cell[0]),
        task=_facet(row, layout, "task", layout.cell[1]),
        source=_own(row, columns, "source") or layout.source,
        patient=rows.patient(_own(row, columns, "patient")),
        split=splits[split],
        alternatives=() if options else _alternatives(row, columns),
        answer_type=kind,
    )


def _alternatives(row: Record, columns: Mapping[str, str]) -> tuple[str, ...]:
    """Further right answers of an open question: a list of texts."""
    value = row[columns["alternatives"]] if "alternatives" in columns else None
    if not isinstance(value, list | None) or not all(isinstance(each, str) for each in value or ()):
        raise ValueError(f"{columns['alternatives']} is {value!r}; needs a list of texts")
    return tuple(value or ())


def _own(row: Record, columns: Mapping[str, str], key: str) -> str | None:
    """The text of an optional column; None where there is no column or no text."""
    if key not in columns or row[columns[key]] in (None, ""):
        return None
    return rows.text_or_number(row, columns[key], question_columns.unusual(key, columns[key]))


def _facet(row: Record, layout: Layout, key: str, of_all: str) -> str:
    """Modality, task or split: of the row where it says one, else of all rows."""
    columns = layout.columns
    name = _own(row, columns, key)
    if name is None:
        return of_all
    _, known = question_columns.FACETS[key]
    if not (value := question_columns.facet(key, name, layout.words)):
        others = f"; {OTHER_MODALITY_NAMES}" if key == "modality" else ""
        if key != "split":
            others += f"; 'data.names.{key}={{WORD: NAME}}' says which of them a word is"
        ours = rows.as_ours(columns[key], question_columns.unusual(key, columns[key]))
        raise ValueError(f'"{columns[key]}"{ours} is {name!r}; known: {", ".join(known)}{others}')
    return value


def _image(value: object, layout: Layout) -> Path:
    """The one image of a row, as a file. Raises ValueError where there is none or several."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 1:
            raise ValueError(f"has {len(value)} images; a question is about one")
        return _image(value[0], layout)
    if isinstance(value, str):
        named = f"the folder {layout.images.resolve()} (data.image_folder=... sets another)"
        return layout.images / rows.inside(value, layout.images, named)
    if not isinstance(value, Mapping) or value.get("bytes") is value.get("path") is None:
        raise ValueError(f"image is {rows.shown(value)}; needs an image or a path")
    return _stored(value.get("bytes"), value.get("path"), layout.cache)


def _stored(content: bytes | None, path: str | None, folder: Path) -> Path:
    """The image as a file of the folder."""
    if content is None and not Path(str(path)).is_file():
        raise ValueError(f"image {path} is not there; data.image_folder is where paths start from")
    content = content if content is not None else Path(str(path)).read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{hashlib.sha256(content).hexdigest()[:20]}{Path(path or '').suffix}"
    if not target.exists():
        with atomic(target, sync=False) as unfinished:
            unfinished.write_bytes(content)
    return target
