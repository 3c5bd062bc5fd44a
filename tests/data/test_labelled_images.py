"""A table of labelled images becomes questions that nobody answers without the image."""

from __future__ import annotations

import csv
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from medreason import data
from medreason.config import CONF
from medreason.data.rows import Loaded
from medreason.option_prior import fit_option_prior
from medreason.samples import Sample

SHARED = Path(__file__).parents[2].parent / "shared/data"
SPEC = yaml.safe_load((CONF / "data/labelled_images.yaml").read_text())
COLUMNS = ("image", "modality", "label", "label_group", "patient_or_source_id")


def read(root: Path, **more: object) -> Loaded:
    return data.read(SPEC | {"root": str(root), "images": "none"} | more, Path("unused"))


def write(root: Path, rows: list[tuple[str, ...]], *, separator: str = ",") -> Path:
    with (root / "labels.csv").open("w", newline="") as lines:
        csv.writer(lines, delimiter=separator).writerows([COLUMNS, *rows])
    return root


def uneven(patients: int = 60) -> list[tuple[str, ...]]:
    """Two images of each patient; some labels are ten times as frequent as others."""
    draw = random.Random(0)
    labels = ["cyst"] * 10 + ["tumor"] * 5 + ["normal"] * 5 + ["polyp"] * 3 + ["Polyp_x"]
    labels_of_patients = [draw.choice(labels) for _ in range(patients)]
    return [
        (f"{p}-{i}.png", "MRI", labels_of_patients[p], "disease", f"p{p}")
        for p in range(patients)
        for i in range(2)
    ]


def sets_of(samples: list[Sample]) -> dict[frozenset[str], Counter[str]]:
    """How often each option of a set of options is right."""
    right: dict[frozenset[str], Counter[str]] = defaultdict(Counter)
    for sample in samples:
        right[frozenset(sample.options)][sample.answer_text] += 1
    return right


@pytest.mark.parametrize("seed", range(4))
def test_every_option_of_a_set_is_right_equally_often(seed: int, tmp_path: Path) -> None:
    loaded = read(write(tmp_path, uneven()), seed=seed)
    for split in ("train", "test"):
        samples = [s for s in loaded.samples if s.split == split]
        assert len(samples) > 10
        for options, right in sets_of(samples).items():
            assert set(right) == options
            assert len(set(right.values())) == 1
        chance = sum(1 / len(s.options) for s in samples) / len(samples)
        train = [s for s in loaded.samples if s.split == "train"]
        assert fit_option_prior(train).accuracy(samples) == pytest.approx(chance, abs=0.1)
        letters = Counter(s.answer for s in samples if len(s.options) == 4)
        assert len(set(letters.values())) <= 1
    patients = defaultdict(set)
    for s in loaded.samples:
        patients[s.patient].add(s.split)
    assert {len(splits) for splits in patients.values()} == {1}


def test_rows_in_another_order_give_the_same_questions(tmp_path: Path) -> None:
    rows = uneven()

    def questions_of(rows: list[tuple[str, ...]]) -> set[tuple[object, ...]]:
        loaded = read(write(tmp_path, rows))
        return {(s.image.name, s.options, s.answer, s.split) for s in loaded.samples}

    assert questions_of(rows) == questions_of(random.Random(1).sample(rows, len(rows)))


def test_an_option_is_never_true_of_the_image_besides_the_right_one(tmp_path: Path) -> None:
    cells = ("red", "white", "plate", "other")
    rows = [
        (f"{i}.png", "Microscopy", cells[(i + k) % 4], "cell type", "") for i in range(24)
        for k in range(1 + i % 2)
    ]  # fmt: skip
    truth = defaultdict(set)
    for image, _, label, *_ in rows:
        truth[image].add(label)
    samples = read(write(tmp_path, rows)).samples
    assert len(samples) > 12
    for s in samples:
        assert truth[s.image.name] & set(s.options) == {s.answer_text}


def test_labels_that_differ_in_case_or_underscores_are_one(tmp_path: Path) -> None:
    labels = ["no_tumor", "No tumor", "glioma", "Glioma"]
    rows = [(f"{i}.png", "MRI", labels[i % 4], "disease", "") for i in range(40)]
    samples = read(write(tmp_path, rows)).samples
    assert {option for s in samples for option in s.options} == {"No tumor", "Glioma"}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([("x.png", "MRI", "rare", "disease", "q")], "'rare' has 1 mri images, fewer than data.mi"),
        ([("x.png", "CT", "only", "disease", "q")] * 1, "'only' is the only label of ct images"),
        ([("x.png", "PET", "cyst", "disease", "q")], "'modality' is 'PET'; known: ct, mri"),
        ([("../x.png", "MRI", "cyst", "disease", "q")], "leaves the data root"),
        ([("", "MRI", "cyst", "disease", "q")], "\"image\" is ''; needs a text"),
        ([("0-0.png", "MRI", uneven()[0][2], "disease", "q")], "repeats image and label"),
    ],
)
def test_bad_rows_are_named(rows: list[tuple[str, ...]], problem: str, tmp_path: Path) -> None:
    common = [row for row in uneven() if row[2] in ("cyst", "tumor", "normal")]
    (bad,) = read(write(tmp_path, [*common, *rows])).bad_rows
    assert (bad.file, bad.row) == ("labels.csv", len(common))
    assert problem in bad.problem


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("image;modality;label;label_group\n", {}, r"is its separator ';'\? set data\.separator"),
        (
            "image,label\na,b\n",
            {},
            r"no column \['label_group', 'modality'.* columns are \['image'",
        ),
        (",".join(COLUMNS), {}, "holds no rows"),
        (",".join(COLUMNS) + "\na,MRI,x,stage,p\n", {}, r"its groups are \['stage'\].*data\.ask"),
        (",".join(COLUMNS) + "\né,MRI,x,disease,p\n", {"encoding": "ascii"}, r"set data\.encoding"),
    ],
)
def test_tables_that_cannot_be_read_say_why(
    content: str, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **more)


def test_another_separator_and_encoding_are_read_when_named(tmp_path: Path) -> None:
    rows = [(f"é{i}.png", "MRI", "cyst" if i % 2 else "tumor", "disease", "") for i in range(20)]
    text = "\n".join(";".join(row) for row in (COLUMNS, *rows))
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    samples = read(tmp_path, separator=";", encoding="latin-1").samples
    assert samples
    assert all(s.image.name.startswith("é") for s in samples)


def test_the_real_pack_gives_questions_at_chance(tmp_path: Path) -> None:
    root = SHARED / "medvqa_mini"
    if not root.is_dir():
        pytest.skip(f"no real images at {root}")
    spec = SPEC | {"root": str(root), "bad_rows": "skip", "split": "by_patient"}
    samples = data.load(spec, tmp_path)
    train, test = ([s for s in samples if s.split == side] for side in ("train", "test"))
    assert len(train) > 250
    assert len(test) > 120
    chance = sum(1 / len(s.options) for s in test) / len(test)
    assert fit_option_prior(train).accuracy(test) == pytest.approx(chance, abs=0.03)
    assert not {s.patient for s in train if s.patient} & {s.patient for s in test if s.patient}
    assert not {s.image for s in train} & {s.image for s in test}
