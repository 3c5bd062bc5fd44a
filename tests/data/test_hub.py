"""Sets of the hub in the columns that users have, and what is said of other columns."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset
from PIL import Image

from medreason import data
from medreason.config import Config
from medreason.data.rows import Loaded
from medreason.execution.request import run_request
from medreason.runs.outcomes import NoDataError
from medreason.samples import Sample


def image(number: int) -> dict[str, Any]:
    content = io.BytesIO()
    Image.new("L", (16, 16), number).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{number}.png"}


def write(root: Path, **sides: list[dict[str, Any]]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for side, rows in sides.items():
        pq.write_table(pa.Table.from_pylist(rows), root / f"{side}-00000-of-00001.parquet")
    return root


def load(root: Path, **more: object) -> tuple[Sample, ...]:
    data._load.cache_clear()
    spec = {"_target_": "medreason.data.hub.read", "hub": str(root), "images": "none"}
    return data.load(spec | more, root.parent / "cache")


def row(number: int, **changes: object) -> dict[str, Any]:
    return {"image": image(number), "question": f"is it {number}?", "answer": "yes", **changes}


OPTIONS = ["CT", "MRI", "X-ray", "PET"]


@pytest.mark.parametrize(
    ("columns", "answer"),
    [
        ({"options": OPTIONS}, "B"),
        ({"choices": OPTIONS}, "MRI"),
        ({"options": OPTIONS}, "B) MRI"),
        ({"options": OPTIONS}, 1),
        ({f"option_{letter}": text for letter, text in zip("ABCD", OPTIONS, strict=True)}, "B"),
        (dict(zip("ABCD", OPTIONS, strict=True)), "MRI"),
    ],
)
def test_columns_of_options_make_multiple_choice(
    columns: dict[str, Any], answer: object, tmp_path: Path
) -> None:
    root = write(tmp_path / "set", train=[row(0, **columns, answer=answer)] * 2)
    first = load(root)[0]
    assert (first.options, first.answer) == (tuple(OPTIONS), "B")


def test_answers_that_are_letters_without_options_are_refused(tmp_path: Path) -> None:
    rows = [row(i, answer="ABC"[i], variants=OPTIONS) for i in range(3)]
    root = write(tmp_path / "set", train=rows)
    with pytest.raises(
        ValueError, match=r"answers are letters \(A, B, C\).*data\.columns\.options"
    ):
        load(root)
    assert [s.answer for s in load(root, columns={"options": "variants"})] == ["A", "B", "C"]


def test_an_unknown_column_is_named_with_those_there_are_and_the_remedy_works(
    tmp_path: Path,
) -> None:
    rows = [row(i, picture=image(i)) for i in range(3)]
    for member in rows:
        del member["image"]
    root = write(tmp_path / "set", train=rows)
    with pytest.raises(
        ValueError, match=r"no column 'image'; columns are .*'picture'.*set data\.columns\.image"
    ):
        load(root)
    assert len(load(root, columns={"image": "picture"})) == 3


def test_paths_lists_numbers_and_missing_images(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    paths = write(tmp_path / "paths", test=[row(0, image="a.png", answer=3)])
    (sample,) = load(paths, image_folder=str(tmp_path))
    assert (sample.image, sample.answer, sample.options) == (tmp_path / "a.png", "3", ())
    lists = write(tmp_path / "lists", train=[{**row(0), "images": [image(0)]}])
    assert len(load(lists, columns={"image": "images"})) == 1
    two = write(
        tmp_path / "two", train=[row(0, image=[image(0), image(1)]), row(1, image=[image(1)])]
    )
    with pytest.raises(ValueError, match="train, row 0: has 2 images"):
        load(two)
    none = write(tmp_path / "none", train=[row(0), row(1, image=None), row(2)])
    with pytest.raises(ValueError, match="train, row 1: image is empty"):
        load(none)
    assert len(load(none, bad_rows="skip")) == 2


def test_rows_name_their_own_modality_and_answer_type(tmp_path: Path) -> None:
    rows = [
        row(0, kind="X-Ray", answer_type="OPEN"), row(1, kind=None), row(2, kind="CT"),
    ]  # fmt: skip
    root = write(tmp_path / "set", train=rows)
    samples = load(root, columns={"modality": "kind"}, modality="mri", task="disease")
    assert [s.cell for s in samples] == [("xray", "disease"), ("mri", "disease"), ("ct", "disease")]
    assert [s.closed for s in samples] == [False, True, True]
    assert {s.modality for s in load(root)} == {"unknown"}
    assert {s.cell for s in load(write(tmp_path / "path-vqa", train=[row(0)]))} == {
        ("microscopy", "attributes")
    }
    with pytest.raises(ValueError, match=r"data\.modality='mr'; known: ct, mri.*mean mri\?"):
        load(root, modality="mr")


def test_contradicting_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [row(0), row(0, answer="no"), row(1)]
    root = write(tmp_path / "set", train=rows, test=[row(2)])
    assert len(load(root)) == 2
    with pytest.raises(
        ValueError, match=r"published train, row 0 and published train, row 1 disagree"
    ):
        load(root, contradictions="error")


@pytest.mark.parametrize("bad_rows", ["error", "skip"])
def test_bad_rows_stand_before_a_split_that_they_leave_too_few_rows_for(
    bad_rows: str, tmp_path: Path
) -> None:
    faulty = [row(i, question="") for i in range(2)]
    root = write(tmp_path / "set", train=[*faulty, row(2), row(3)])
    spec = {"_target_": "medreason.data.hub.read", "hub": str(root), "images": "none"}
    spec |= {"split": "by_image", "test_share": 0.1, "bad_rows": bad_rows}
    with pytest.raises(
        ValueError, match=r"2 bad rows in .*/set, the first:(?s:.*)rows 0, 1: "
    ) as error:
        data.read(spec, tmp_path / "cache")
    *_, last = str(error.value).splitlines()
    assert last.startswith("data.test_share=0.1 of 2 samples in 2 groups")
    assert "change data.test_share" in last


def test_a_row_without_a_split_in_a_column_of_splits_is_bad(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"

    def read(*folds: str, split: str = "published") -> Loaded:
        lines = [f"{i}.png,{i}?,yes,{fold}" for i, fold in enumerate(folds)]
        table.write_text("\n".join(["image,question,answer,fold", *lines]))
        spec = {"_target_": "medreason.data.hub.read", "hub": str(table), "images": "none"}
        return data.read(spec | {"split": split}, tmp_path / "cache")

    folds = ("train", "test", "", "test", "train")
    loaded = read(*folds)
    assert loaded.counts["train"] == loaded.counts["test"] == 2
    (bad,) = loaded.bad_rows
    assert (bad.row, bad.problem) == (
        *(4, '"fold" is empty; write train, test or val, or take the row out'),
    )
    assert not read(*folds, split="by_image").bad_rows  # overrules the column
    loaded = read("", "", "")  # a column that says nothing is none
    assert not loaded.bad_rows
    assert not loaded.split_columns
    assert loaded.counts["train"] == 3


def test_a_set_of_one_side_is_evaluated_on_or_split(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    def config(root: Path, *words: str) -> Config:
        return composed(f"data.hub={root}", "data=hub", "data.images=none", *words)

    rows = [row(i) for i in range(12)]
    test = config(write(tmp_path / "test", test=rows), "method=base")
    assert len(run_request(test).test_samples) == 12
    with pytest.raises(NoDataError, match="12 rows and none in train; bring its train files"):
        run_request(config(tmp_path / "test", "method=sft"))
    train = write(tmp_path / "train", train=rows)
    with pytest.raises(NoDataError, match=r"none in test; .*data\.split=by_image"):
        run_request(config(train, "method=base"))
    named = [row(i, patient=f"p{i}") for i in range(12)]
    with pytest.raises(NoDataError, match=r"none in test; .*data\.split=by_patient"):
        run_request(config(write(tmp_path / "named", train=named), "method=base"))
    split = run_request(config(train, "method=base", "data.split=by_image"))
    assert len(split.test_samples) == 4
    of_ct = config(
        tmp_path / "test", "method=base", "data.modality=ct", "evaluation.modalities=[mri]"
    )
    with pytest.raises(NoDataError, match="its test rows have the modalities ct and the tasks"):
        run_request(of_ct)


@pytest.mark.parametrize(
    ("columns", "answer", "right"),
    [
        ({"options": {"C": "US", "A": "CT", "B": "MRI"}}, "B", "MRI"),
        ({"options": {"2": "MRI", "10": "US", "1": "CT"}}, "US", "US"),
        ({"option_A": "CT", "option_B": "MRI", "option_C": "US", "option_D": None}, "C", "US"),
        ({"options": ["A. CT", "B. MRI"]}, "B. MRI", "MRI"),
        ({"options": ["C. elegans", "E. coli"]}, "E. coli", "E. coli"),
        ({"options": OPTIONS}, 1.0, "MRI"),
        ({"options": OPTIONS}, "0", "CT"),
        ({"options": ["0", "1", "2"]}, 1, "1"),
        ({}, True, "Yes"),
    ],
)
def test_the_answer_is_the_text_that_the_set_means(
    tmp_path: Path, columns: dict[str, Any], answer: object, right: str
) -> None:
    (sample,) = load(write(tmp_path / "set", test=[row(0, answer=answer, **columns)]))
    assert sample.answer_text == right


@pytest.mark.parametrize(
    ("columns", "answer", "words"),
    [
        ({"options": {"A": "CT", "B": None, "C": "US"}}, "C", "option B has no text"),
        ({"A": "CT", "B": None, "C": "US"}, "C", "option B has no text"),
        ({"options": ["B. MRI", "A. CT"]}, "B", "have the letters B, A; give them in sequence"),
        ({"options": ["CT, B)MRI", "US"]}, "A", "not lettered in sequence"),
        ({"options": ["CT"]}, "A", "has one option"),
        ({"options": ["3", "2", "1"]}, 1, "the text of one option and the place of another"),
    ],
)
def test_an_answer_that_could_be_another_option_is_a_bad_row(
    tmp_path: Path, columns: dict[str, Any], answer: object, words: str
) -> None:
    root = write(tmp_path / "set", train=[row(0, answer=answer, **columns)])
    with pytest.raises(ValueError, match=f"train, row 0: .*{words}"):
        load(root)


def test_places_from_1_are_refused_whatever_is_done_about_bad_rows(tmp_path: Path) -> None:
    rows = [row(i, answer=i + 1, options=OPTIONS) for i in range(4)]
    with pytest.raises(ValueError, match=r"'answer' counts options from 1, .* subtract 1"):
        load(write(tmp_path / "set", train=rows), bad_rows="skip")


def test_classes_are_read_by_their_names(tmp_path: Path) -> None:
    rows = [row(i, answer=i, kind=i) for i in range(2)]
    part = Dataset.from_list(rows)
    for column, names in {"answer": ["no", "yes"], "kind": ["CT", "MRI"]}.items():
        part = part.cast_column(column, ClassLabel(names=names))
    (tmp_path / "set").mkdir()
    part.to_parquet(tmp_path / "set/train.parquet")
    samples = load(tmp_path / "set", columns={"modality": "kind"})
    assert [(s.answer_text, s.modality) for s in samples] == [("No", "ct"), ("Yes", "mri")]


def test_an_unknown_key_of_columns_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set", train=[row(0)])
    with pytest.raises(ValueError, match=r"data\.columns\.img is unknown; known: image"):
        load(root, columns={"img": "image"})
