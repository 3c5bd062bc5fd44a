"""OmniMedVQA's open-access part as released: 42 JSON files, one a source data set.

Layout: experiments/med_r1/README.md, "Data"; one row of `Chest CT Scan.json` calls `modality_type`
`modality`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medreason.data import med_r1, rows
from medreason.data.names import modality_of, task_of
from medreason.data.rows import Record, Row
from medreason.samples import MODALITIES, TASKS, Sample, letter_at

FOLDER = "QA_information/Open-access"
SOURCES = (
    *("ACRIMA", "ALL Challenge", "Adam Challenge", "BioMediTech", "Blood Cell", "BreakHis"),
    *("COVIDx CXR-4", "CRC100k", "Chest CT Scan", "Chest X-Ray PA", "CoronaHack", "Covid CT"),
    *("Covid-19 tianchi", "Covid19 heywhale", "DRIMDB", "DeepDRiD", "Diabetic Retinopathy"),
    *("Fitzpatrick 17k", "HuSHeM", "ISBI2016", "ISIC2018", "ISIC2019", "ISIC2020", "JSIEC"),
    *("Knee Osteoarthritis", "MAlig Lymph", "MHSMA", "MIAS", "Monkeypox Skin Image 2022", "Mura"),
    *("NLM- Malaria Data", "OCT & X-Ray 2017", "OLIVES", "PAD-UFES-20", "PALM2019"),
    *("Pulmonary Chest MC", "Pulmonary Chest Shenzhen", "RUS CHN", "RadImageNet"),
    *("Retinal OCT-C8", "SARS-CoV-2 CT-scan", "Yangxi"),
)
"""The 42 source data sets; files and image folders are named after them."""

RELEASED_ROWS = {f"{FOLDER}/*.json": 88_996}
_OPTION_KEYS = ("option_A", "option_B", "option_C", "option_D")

_Question = tuple[str, str, tuple[str, ...]]


def read(
    root: Path | str | None, files: Sequence[str] = (), *, splits_from: Sequence[str] = ()
) -> Iterator[Row]:
    """Rows of `files`, paths or glob patterns below the root; empty means all 42.

    The published split is that of `splits_from`, the files of one family that Med-R1 publishes,
    below the root; without them rows have none. Raises ValueError where files are missing.
    """
    root = rows.folder(root)
    paths = (
        med_r1.paths(root, files)
        if files
        else rows.release_files(
            root,
            [f"{FOLDER}/{source}.json" for source in SOURCES],
            else_do="name in data.files those to read",
        )
    )
    published = _published_splits(root, splits_from)
    for path in paths:
        file = path.relative_to(root).as_posix()
        yield from rows.each(
            file, rows.json_array(path), lambda name, row: _sample(root, name, row, published)
        )


def _sample(
    root: Path, name: str, row: Record, published: Mapping[_Question, str] | None
) -> Sample:
    image, question = rows.inside(rows.text(row, "image_path")), rows.text(row, "question").strip()
    options = tuple(rows.text(row, key).strip() for key in _OPTION_KEYS if row.get(key) is not None)
    gold = rows.text(row, "gt_answer").strip()
    if gold not in options or len(options) < 2:
        raise ValueError(f'"gt_answer" {gold!r} is none of the options {list(options)}')
    modality_name = rows.text(row, "modality_type" if "modality_type" in row else "modality")
    modality, task = modality_of(modality_name), task_of(rows.text(row, "question_type"))
    if not modality or not task:
        raise ValueError(
            f'"modality_type" {modality_name!r}, "question_type" {row["question_type"]!r}; known: '
            f"{', '.join((*MODALITIES, *TASKS))}"
        )
    if published is not None and (image, question, options) not in published:
        raise ValueError("is in none of the files of data.splits_from; name all of one family")
    return Sample(
        id=name,
        image=root / image,
        question=question,
        options=options,
        answer=letter_at(options.index(gold)),
        explanation=None,
        modality=modality,
        task=task,
        source=rows.text(row, "dataset"),
        patient=None,
        split=published[image, question, options] if published is not None else "",
    )


def _published_splits(root: Path, files: Sequence[str]) -> dict[_Question, str] | None:
    """The published split of each question; None where no files are named."""
    if not files:
        return None
    splits: dict[_Question, str] = {}
    for row in med_r1.read(root, files):
        if isinstance(row, rows.BadRow):
            raise ValueError(f"data.splits_from: {row}")
        if not isinstance(row, Sample):  # a remark
            continue
        key = (row.image.relative_to(root).as_posix(), row.question, row.options)
        if splits.setdefault(key, row.split) != row.split:
            raise ValueError(
                f"data.splits_from: {row.id} puts a question in {row.split} that another file puts "
                f"in {splits[key]}; name the files of one family only"
            )
    return splits
