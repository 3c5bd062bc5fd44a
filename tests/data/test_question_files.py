"""Tables of questions of one's own: what is read, and what is said of what cannot be."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from PIL import Image

from medreason import data
from medreason.config import Config, Validation
from medreason.data import checks, rows
from medreason.data.audit import audit, audit_run, warnings
from medreason.data.names import modality_of
from medreason.data.rows import Loaded
from medreason.models.model_folder import EMBEDDED
from medreason.report import audit as tables

HEADER = "image,question,option_A,option_B,answer,modality,task,patient,explanation"
ROWS = [
    f"images/{i}.png,Which is {i}?,normal,fracture,{'AB'[i % 2]},X-ray,disease,p{i // 2},seen"
    for i in range(12)
]


def table(root: Path, name: str = "questions.csv", text: str = "", **changes: str) -> Path:
    """A table of twelve questions, with changed texts, and its images."""
    text = text or "\n".join([HEADER, *ROWS])
    for old, new in changes.items():
        text = text.replace(old, new)
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i in range(12):
        Image.new("L", (16, 16), 20 * i).save(root / f"images/{i}.png")
    (root / name).write_text(text)
    return root / name


def read(hub: Path | str, *, cache: Path | None = None, **more: object) -> Loaded:
    spec = {"_target_": "medreason.data.hub.read", "hub": str(hub), "images": "none"}
    return data.read(spec | more, cache or Path(hub).parent / "cache")


def load(hub: Path | str, cache: Path, **more: object) -> None:
    data._load.cache_clear()
    data.load({"_target_": "medreason.data.hub.read", "hub": str(hub)} | more, cache)


def records() -> list[dict[str, Any]]:
    return [dict(zip(HEADER.split(","), row.split(","), strict=True)) for row in ROWS]


def test_a_csv_beside_its_pictures_needs_no_key(tmp_path: Path) -> None:
    file = table(tmp_path / "mydata")
    for hub in (file, tmp_path / "mydata"):
        loaded = read(hub)
        assert not loaded.bad_rows
        assert not loaded.remarks
        first = loaded.samples[0]
        assert first.image == tmp_path / "mydata/images/0.png"
        assert (first.options, first.answer) == (("normal", "fracture"), "A")
        assert (first.cell, first.patient) == (("xray", "disease"), "p0")
        assert (first.explanation, first.split) == ("seen", "train")
        assert first.id == "questions.csv:2"
    split = read(file, split="by_patient", test_share=0.5).samples
    assert {s.split for s in split} == {"train", "test"}
    assert len({(s.patient, s.split) for s in split}) == 6


@pytest.mark.parametrize("suffix", [".tsv", ".json", ".jsonl", ".parquet"])
def test_each_kind_of_file_gives_the_rows_of_the_csv(tmp_path: Path, suffix: str) -> None:
    expected = read(table(tmp_path)).samples
    file = tmp_path / f"questions{suffix}"
    rows = records()
    match suffix:
        case ".tsv":
            file.write_text("\n".join([HEADER, *ROWS]).replace(",", "\t"))
        case ".json":
            file.write_text(json.dumps(rows))
        case ".jsonl":
            file.write_text("\n\n".join(map(json.dumps, rows)))
        case _:
            pq.write_table(pa.Table.from_pylist(rows), file)
    samples = read(file).samples
    first = {".tsv": 2, ".jsonl": 1}.get(suffix, 0)
    assert samples[0].id == f"questions{suffix}:{first}"
    assert [{**vars(s), "id": 0} for s in samples] == [{**vars(s), "id": 0} for s in expected]


def test_json_rows_have_lists_and_columns_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"image": "0.png", "question": "Which?", "options": ["CT", "MRI"], "answer": 1},
        {"image": "1.png", "question": "How many?", "answer": 3, "modality": "CT"},
        {"image": "1.png", "question": "Normal?", "answer": False, "alternatives": None},
    ]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    closed, number, truth = read(tmp_path / "questions.json").samples
    assert (closed.options, closed.answer) == (("CT", "MRI"), "B")
    assert (number.answer, number.modality) == ("3", "ct")
    assert (truth.options, truth.answer_text) == (("Yes", "No"), "No")


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_a_table_is_read_whatever_separates_its_cells(tmp_path: Path, sign: str) -> None:
    file = table(tmp_path, text="\n".join([HEADER, *ROWS]).replace(",", sign))
    assert len(read(file).samples) == 12


def test_cells_are_read_as_they_are_written(tmp_path: Path) -> None:
    text = "image,question,answer,patient_id\n0.png,Which lesion?,None,007\n1.png,How many?,1.50,"
    (tmp_path / "a.csv").write_text(text)
    none, number = read(tmp_path / "a.csv").samples
    assert (none.answer, none.patient) == ("None", "007")
    assert (number.answer, number.patient) == ("1.50", None)
    (tmp_path / "a.csv").write_text(
        "image,question,answer\n0.png,Normal?,TRUE\n1.png,Normal?,FALSE"
    )
    assert [s.answer_text for s in read(tmp_path / "a.csv").samples] == ["Yes", "No"]


@pytest.mark.parametrize(
    ("options", "answer", "right"),
    [
        (["Yes", "No"], True, "Yes"),
        (["No", "Yes"], False, "No"),
        (["True", "False"], True, "True"),
        (["False", "True"], False, "False"),
    ],
)
def test_a_truth_is_no_place_of_an_option(
    tmp_path: Path, options: list[str], answer: bool, right: str
) -> None:
    row = {"image": "0.png", "question": "Is it?", "options": options, "answer": answer}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    assert [s.answer_text for s in read(tmp_path / "a.json").samples] == [right]


def test_sides_are_words_of_the_names_of_files(tmp_path: Path) -> None:
    for name in ("mri_test.csv", "training.csv", "contest.csv", "val.csv"):
        table(tmp_path, name)
    loaded = read(tmp_path)
    sides = {(s.id.partition(":")[0], s.split) for s in loaded.samples}
    assert sides == {("mri_test.csv", "test"), ("training.csv", "train"), ("contest.csv", "train")}
    said = f"val.csv: 12 rows of this split are not read ({rows.ASKED_WITH})"
    assert said in map(str, loaded.remarks)
    assert Counter(s.split for s in read(tmp_path, validation="train").samples)["train"] == 36


@pytest.mark.parametrize("typed", ["yse", "y", "1", "Nein"])
def test_a_mistyped_yes_or_no_is_named_with_its_row(tmp_path: Path, typed: str) -> None:
    answers = ("yes", "No", typed, "yes")
    lines = [f"{i}.png,Is it large?,{answer}" for i, answer in enumerate(answers)]
    file = table(tmp_path, text="\n".join(["image,question,answer", *lines]))
    (said,) = (str(remark) for remark in read(file).remarks if remark.is_warning)
    assert said.startswith(
        f"! {file.name}, row 4: 1 row without options whose question has Yes/No elsewhere, the "
        f"first with the answer {typed!r}"
    )


def test_open_questions_are_no_mistyped_yes_or_no(tmp_path: Path) -> None:
    lines = ["Is it large?,yes,closed", "Is it large?,a little,open", "How large?,3 mm,"]
    text = "\n".join(["image,question,answer,answer_type", *(f"0.png,{line}" for line in lines)])
    assert not any(remark.is_warning for remark in read(table(tmp_path, text=text)).remarks)


def test_a_column_of_folds_is_the_split(tmp_path: Path) -> None:
    folds = ["train", "Val", "test", "Training"] * 3
    lines = [f"{row},{fold}" for row, fold in zip(ROWS, folds, strict=True)]
    file = table(tmp_path, text="\n".join([f"{HEADER},fold", *lines]))
    loaded = read(file)
    of_column = rows.left_out_of_validation("fold", "Val")
    assert loaded.counts == {"train": 6, "test": 3, of_column: 3}
    assert "; 3 of fold=Val left out (validation" in rows.counts_text(loaded.counts)
    assert [row.row for row in loaded.left_out] == [3, 7, 11]
    assert read(file, validation="test").counts == {"train": 6, "test": 6}
    spec = {"_target_": "medreason.data.hub.read", "hub": str(file), "images": "none"}
    published = data.read(spec, tmp_path / "cache", Validation("in_domain", source="published"))
    assert published.counts == {"train": 6, "test": 3, "validation": 3}
    file = table(tmp_path, text="\n".join([f"{HEADER},fold", *lines]), Val="vaal")
    bad = read(file).bad_rows
    assert [row.row for row in bad] == [3, 7, 11]
    assert bad[0].problem == (
        "\"fold\" is 'vaal'; known: train, training, val, valid, validation, dev, test, testing"
    )
    numbered = "\n".join([f"{HEADER},fold", *(f"{row},{i}" for i, row in enumerate(ROWS))])
    (remark,) = read(table(tmp_path, text=numbered)).remarks
    assert "column 'fold' is not used: none of its values is one of train, training" in str(remark)
    assert remark.is_warning


def test_a_split_that_overrules_the_column_of_folds_is_said(
    tmp_path: Path, composed: Callable[..., Config]
) -> None:
    folds = ["train", "val", "test"] * 4
    lines = [f"{row},{fold}" for row, fold in zip(ROWS, folds, strict=True)]
    file = table(tmp_path, text="\n".join([f"{HEADER},fold", *lines]))
    assert not read(file).remarks
    loaded = read(file, split="by_patient", test_share=0.5)
    (remark,) = loaded.remarks
    sides = Counter(
        (folds[int(sample.id.rpartition(":")[2]) - 2], sample.split) for sample in loaded.samples
    )
    assert str(remark) == (
        "! questions.csv: data.split=by_patient overrules the split of the column 'fold': train "
        f"has {sides['test', 'train']} of its 4 test rows, test has {sides['train', 'test']} of "
        "its 4 train rows; data.split=published keeps it"
    )
    assert min(sides["test", "train"], sides["train", "test"]) > 0
    words = ["data=hub", f"data.hub={file}", "data.split=by_image", f"outputs={tmp_path}/outputs"]
    notes = data.reading_notes(composed(*words))
    (said,) = (note for note in notes if "overrules the split of the column 'fold'" in note)
    assert said.startswith("! ")
    assert said[2:] in audit_run([], [], "digest", {}, {}, notes)["warnings"]


def test_a_split_of_files_by_name_is_overruled_with_a_line(tmp_path: Path) -> None:
    for side in ("train", "test"):
        table(tmp_path, f"{side}.csv")
    (remark,) = read(tmp_path, split="by_image").remarks
    assert str(remark).startswith(
        f"! {tmp_path}: data.split=by_image overrules the split of the data set itself: "
    )
    (tmp_path / "train.csv").unlink()  # what is all of one side needs another split
    assert not read(tmp_path, split="by_image").remarks


def test_splits_of_a_set_count_whatever_a_column_says(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    members = [row | {"split": "test"} for row in records()]
    pq.write_table(pa.Table.from_pylist(members), tmp_path / "set/train.parquet")
    assert read(tmp_path / "set").counts == {"train": 12, "test": 0}
    assert read(tmp_path / "set", columns={"split": "split"}).counts == {"train": 0, "test": 12}


def test_a_row_keeps_its_name_and_side_wherever_the_table_lies(tmp_path: Path) -> None:
    here, there = table(tmp_path / "here"), table(tmp_path / "there/below")
    for how in ("by_image", "by_patient"):
        first, second = (
            [(s.id, s.split) for s in read(f, split=how).samples] for f in (here, there)
        )
        assert first == second
    shuffled = [HEADER, *random.Random(0).sample(ROWS, len(ROWS))]
    table(tmp_path / "there/below", text="\n".join(shuffled))
    sides = [
        {(s.question, s.split) for s in read(f, split="by_patient").samples} for f in (here, there)
    ]
    assert sides[0] == sides[1]


def test_an_empty_cell_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,question,answer\n0.png,,x\n,Which?,x\n1.png,Which?,")
    question, image, answer = (bad.problem for bad in read(tmp_path / "a.csv").bad_rows)
    assert question == '"question" is empty; needs a text'
    assert image == "image is empty; needs an image or a path"
    assert answer == '"answer" is empty; needs a text'


def test_a_cell_that_cannot_be_used_says_what_its_column_stands_for(tmp_path: Path) -> None:
    rows_read = ["Bild,Frage,opt_a,Art", "0.png,Which?,,ct", "1.png,,x,ct", "2.png,Which?,x,pet"]
    (tmp_path / "a.csv").write_text("\n".join(rows_read))
    names = {"image": "Bild", "question": "Frage", "answer": "opt_a", "modality": "Art"}
    answer, question, modality = (
        bad.problem for bad in read(tmp_path / "a.csv", columns=names).bad_rows
    )
    assert answer == '"opt_a", read as the answer (data.columns.answer), is empty; needs a text'
    assert question.startswith('"Frage", read as the question (data.columns.question), is empty')
    assert modality.startswith(
        "\"Art\", read as the modality (data.columns.modality), is 'pet'; kn"
    )


def test_bad_rows_are_named_as_an_editor_counts_them(tmp_path: Path) -> None:
    text = "\n".join([HEADER, '0.png,"two\nlines",,,yes,,,,', "", *ROWS]).replace(",B,X", ",C,X", 1)
    bad, *others = read(table(tmp_path, text=text)).bad_rows
    assert not others
    assert text.splitlines()[bad.row - 1] == ROWS[1].replace(",B,X", ",C,X")
    assert str(bad).startswith("questions.csv, row 6: answer 'C' is none of the options")
    lines = [json.dumps(row) for row in records()]
    lines[5] = "{}"
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    assert [b.row for b in read(tmp_path / "q.jsonl").bad_rows] == [6]
    extra = table(tmp_path, **{",p0,seen": ",p0,seen,as it is"})
    assert "cells beyond the last column (as it is)" in read(extra).bad_rows[0].problem


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "q.csv",
            "image,question,options,answer\n0.png,Is it?,Yes; No,Yes\n",
            "column 'options' holds a text, 'Yes; No', not a list. A CSV file holds no lists: give "
            "each option a column, option_A, option_B ...",
        ),
        (
            "q.csv",
            "image,text,answer\n0.png,Is it?,Yes\n",
            "q.csv: no column 'question'; columns are ['image', 'text', 'answer']: set "
            "data.columns.question to the one that holds the question",
        ),
        (
            "q.csv",
            "image,modality,label,label_group\n0.png,CT,cyst,disease\n",
            "looks like a table of labels: use data=labelled_images data.root=",
        ),
        ("q.csv", "image,question,answer\n", "holds no rows"),
        ("q.csv", "image,question,question,answer\na,b,c,d\n", "2 columns 'question'; rename"),
        ("q.csv", "", "is empty"),
        ("q.json", "[1, 2]", "holds 1; needs objects with a question each"),
        ("q.jsonl", '{"image": "0.png"}\n{"im', "q.jsonl, line 2: is no JSON"),
        ("q.jsonl", "\n", "holds no rows"),
        (
            "q.xlsx",
            "PK",
            "a file that ends with '.xlsx' cannot be read, only those that end",
        ),
        (
            "q.csv",
            "image,question,answer\n0.png,Is it?,A\n1.png,Is it?,B\n",
            "the answers are letters (A, B), and no column of options is known",
        ),
    ],
)
def test_a_table_that_cannot_be_read_says_what_to_do(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        read(tmp_path / name)
    assert words in str(caught.value)


def test_a_folder_that_is_named_wrongly_is_said_once(tmp_path: Path) -> None:
    file = table(tmp_path)
    with pytest.raises(ValueError, match=r"^data\.image_folder=nowhere is not a folder; give the"):
        read(file, image_folder="nowhere")
    with pytest.raises(ValueError, match=rf"=images is not a folder; set {tmp_path}/images$"):
        read(file, image_folder="images")
    with pytest.raises(ValueError, match=r"none of its 12 images is there, such as .*0\.png; set "):
        load(file, tmp_path / "cache", image_folder=str(tmp_path / "images"))
    moved = table(tmp_path, **{"images/": ""})
    load(moved, tmp_path / "cache", image_folder=str(tmp_path / "images"))


def test_a_missing_or_misplaced_image_names_the_keys_of_the_table(tmp_path: Path) -> None:
    file = table(tmp_path, **{"images/1.png": "../1.png", "images/3.png": "images/30.png"})
    with pytest.raises(ValueError, match=r"2 bad rows in .*questions\.csv, the first") as caught:
        load(file, tmp_path / "cache")
    said = f"row 3: image '../1.png' leaves the folder {tmp_path} (data.image_folder=... sets anot"
    assert said in str(caught.value)
    assert "30.png: no such file; correct the path, or copy the image there" in str(caught.value)
    assert "data root" not in str(caught.value)
    absolute = table(tmp_path, **{"images/": f"{tmp_path}/images/"})
    assert not read(absolute).bad_rows


@pytest.mark.parametrize(
    ("hub", "hint"),
    [
        ("qaa", "; huggingface.co/datasets/qaa leads to the one that a set without owner has now"),
        ("mydat", "; did you mean mydata?"),
        ("mydata/question.csv", "; did you mean mydata/questions.csv?"),
        ("mydata/none", ""),
        ("nowhere/questions.csv", ""),
        ("./nowhere", ""),
        ("/nowhere/set", ""),
    ],
)
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: str, hint: str
) -> None:
    table(tmp_path / "mydata")
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with pytest.raises(ValueError, match="no such file or folder here, and no id of the") as caught:
        read(hub)
    assert str(caught.value).startswith(f"data.hub={hub}: ")
    assert str(caught.value).endswith(f"which is owner/name{hint}")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", ["mydata", "owner/name"])
def test_a_folder_here_is_read_whatever_the_hub_has_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    table(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read(name).samples) == len(ROWS)


def test_an_id_that_the_cache_has_nothing_of_is_refused_at_once_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ValueError, match=r"'owner/set' cannot be loaded \(no network, or HF_HUB_O"):
        read("owner/set")
    (tmp_path / "owner___set").mkdir()
    with pytest.raises(ValueError, match=r"'owner/set' cannot be loaded \(Couldn't reach"):
        read("owner/set")  # by `datasets`, offline in tests


def test_a_set_and_a_model_in_the_cache_are_read_at_once_where_the_hub_is_not_reached(
    tmp_path: Path,
) -> None:
    """`datasets` tries for half a minute, and transformers as long for each file."""
    made = tmp_path / "made"
    rows = [{"question": "?", "answer": "yes"}] * 3
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    load_dataset("parquet", data_files={"train": f"{tmp_path}/t.parquet"}, cache_dir=str(made))
    (arrow,) = made.rglob("*.arrow")
    cached = tmp_path / "datasets/owner___name/default/0.0.0" / arrow.parent.name
    shutil.copytree(arrow.parent, cached)
    (cached / arrow.name).rename(cached / "name-train.arrow")
    snapshot = tmp_path / "hub/models--owner--tiny/snapshots/abc"
    shutil.copytree(EMBEDDED, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    script = """
from medreason.data import question_files
from medreason.models import model_folder
print([part.count for part in question_files.read("owner/name", None, None)])
model_folder.check_hub("owner/tiny")
from transformers import AutoProcessor
print(type(AutoProcessor.from_pretrained("owner/tiny")).__name__)
"""
    proxies = {f"{name}_proxy" for name in ("http", "https", "all", "no")}
    environment = {k: v for k, v in os.environ.items() if k.lower() not in proxies}
    environment.pop("HF_HUB_OFFLINE")
    places = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | places,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout.split("\n")[:2] == ["[3]", "Qwen2VLProcessor"]
    said = [line for line in done.stderr.splitlines() if "127.0.0.1" in line]
    assert said == ["127.0.0.1 is not reached: data.hub=owner/name is looked for in the cache"]
    assert "Retrying" not in done.stderr


def test_columns_that_are_not_used_are_said(tmp_path: Path) -> None:
    file = table(tmp_path, **{HEADER: HEADER.replace("modality", "age").replace("task", "sex")})
    (remark,) = read(file).remarks
    assert str(remark).startswith(
        "questions.csv: columns that are not used: age, sex; name a column in data.columns to "
    )


def test_a_column_of_other_things_is_no_modality(tmp_path: Path) -> None:
    file = table(tmp_path, **{",disease,": ",vqa,"})
    loaded = read(file)
    assert {s.task for s in loaded.samples} == {"unknown"}
    assert "column 'task' is not used: it has other values than anatomy" in str(loaded.remarks[0])
    misspelt = table(tmp_path, text="\n".join([HEADER, *ROWS]).replace("disease", "sick", 1))
    assert "\"task\" is 'sick'; known: anatomy" in read(misspelt).bad_rows[0].problem


def test_words_of_the_table_are_read_by_data_names(tmp_path: Path) -> None:
    file = table(tmp_path, **{",disease,": ",Tumour type,", "X-ray": "PET-CT"})
    names = {"task": {"tumour type": "disease"}, "modality": {"PET-CT": "ct"}}
    loaded = read(file, names=names)
    assert {s.cell for s in loaded.samples} == {("ct", "disease")}
    assert not loaded.remarks
    told = r"data.names.task: 'x' is 'diseas'; known: anatomy, disease"
    with pytest.raises(ValueError, match=told):
        read(file, names={"task": {"x": "diseas"}})
    with pytest.raises(ValueError, match=r"data.names.tsk is unknown; known: modality, task"):
        read(file, names={"tsk": {}})
    bad = read(file, names={"task": {"tumour type": "disease"}}).bad_rows
    assert not bad  # no value of the column of modality is known: it is about something else
    mixed = table(tmp_path, **{"X-ray,disease,p0": "PET-CT,disease,p0"})
    assert "'data.names.modality={WORD: NAME}' says which" in read(mixed).bad_rows[0].problem


@pytest.mark.parametrize(
    ("names", "modality"),
    [
        ("CT CBCT HRCT CTA", "ct"),
        ("MR MRI fMRI", "mri"),
        ("CR DR DX CXR XR MG XA RF RG IO PX X-Ray", "xray"),
        ("Chest_X-ray chest_radiograph radiography mammogram plain_film", "xray"),
        ("US IVUS USG sonography echocardiogram", "ultrasound"),
        ("DMS dermatoscopy", "dermoscopy"),
        ("CFP colour_fundus_photograph", "fundus"),
        ("OCT OPT", "oct"),
        ("SM GM WSI histology histopathology", "microscopy"),
        ("OP NM PT PET ES endoscopy driver usual craft smear option", ""),
    ],
)
def test_usual_names_and_those_of_dicom_are_read_as_modalities(names: str, modality: str) -> None:
    for name in names.split():
        assert modality_of(name.replace("_", " ")) == modality, name
        assert modality_of(name.lower()) == modality, name


def test_a_value_that_is_not_known_has_one_line_with_its_rows_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"a.png,Which {i}?,CT,MRI,A,{name}" for i, name in enumerate(["CT", *["PET"] * 12])]
    file = tmp_path / "reads.csv"
    file.write_text("\n".join(["image,question,option_A,option_B,answer,modality", *rows, ""]))
    loaded = read(file)
    line = """reads.csv, rows 3, 4, 5 and 9 more: "modality" is 'PET'; known: ct, mri, xray, """
    with pytest.raises(ValueError, match="12 bad rows in") as caught:
        checks.refuse_bad_rows(loaded, "error", file)
    told = str(caught.value)
    assert line in told
    assert told.count("PET") == 1
    assert "; or another usual name of one, such as MR, CXR, DX, US or histology" in told
    tables.show(audit(loaded, "digest", {s.image: s.image.name for s in loaded.samples}))
    told = capsys.readouterr().out
    assert line in told
    assert told.count("PET") == 1


def test_a_column_of_a_set_that_names_other_tasks_is_not_used(tmp_path: Path) -> None:
    rows = [
        row | {"task": task} for row, task in zip(records(), ["disease", "report"] * 6, strict=True)
    ]
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set/train.parquet")
    loaded = read(tmp_path / "set")
    assert not loaded.bad_rows
    assert {s.task for s in loaded.samples} == {"unknown"}
    assert "published train: column 'task' is not used" in str(loaded.remarks[0])


def test_a_table_of_something_else_in_the_folder_is_named(tmp_path: Path) -> None:
    table(tmp_path)
    (tmp_path / "patients.csv").write_text("patient,age\np1,30\n")
    with pytest.raises(
        ValueError,
        match=r"patients\.csv: no columns 'image', 'question', 'answer'; .*set data\.hub to the",
    ):
        read(tmp_path)


def test_the_folder_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "mydata")
    monkeypatch.chdir(tmp_path / "mydata")
    assert {s.source for s in read(".").samples} == {"mydata"}
    with pytest.raises(ValueError, match=r"^data\.hub=''; give your table"):
        read("")


def test_a_table_below_pictures_is_named(tmp_path: Path) -> None:
    table(tmp_path)
    (tmp_path / "tables").mkdir()
    (tmp_path / "questions.csv").rename(tmp_path / "tables/questions.csv")
    with pytest.raises(
        ValueError, match=r"pictures were read, .*tables/questions\.csv was not"
    ) as e:
        read(tmp_path)
    assert str(e.value).endswith(
        f"set data.hub={tmp_path}/tables/questions.csv data.image_folder={tmp_path}"
    )
    assert not read(tmp_path / "tables/questions.csv", image_folder=str(tmp_path)).bad_rows


def test_a_set_laid_out_for_datasets_is_left_to_it(tmp_path: Path) -> None:
    table(tmp_path, "metadata.csv", text="file_name,question,answer\nimages/0.png,Is it?,yes\n")
    (sample,) = read(tmp_path, cache=tmp_path / ".cache").samples
    assert sample.question == "Is it?"
    assert sample.id == "published train:0"


def test_no_patients_names_the_key_of_their_column(tmp_path: Path) -> None:
    file = table(tmp_path, **{",patient": ",who"})
    with pytest.raises(ValueError, match=r"no row names a patient; set data\.columns\.patient to"):
        read(file, split="by_patient")
    assert read(file, split="by_patient", columns={"patient": "who"}).samples


def test_questions_of_labelled_images_are_sent_to_the_other_reader(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    file = table(tmp_path)
    words = (f"data.root={tmp_path}", "data.table=questions.csv")
    with pytest.raises(ValueError, match=r"looks like a table of questions") as caught:
        data.read(composed("data=labelled_images", *words).data, tmp_path / "cache")
    assert str(caught.value).endswith(f"not of labels: use data=hub data.hub={file}")


NUMBERED = "image;question;Option 1;Option 2;answer\n"


def write_numbered(folder: Path, name: str = "o.csv", header: str = NUMBERED, **more: str) -> Path:
    right = more.get("right", "Lung,Heart").split(",")
    rows = [f"{i}.png;Which organ?;Lung;Heart;{right[i % 2]}" for i in range(6)]
    (folder / name).write_text(header + "\n".join(rows))
    return folder / name


def test_columns_of_options_may_be_listed_by_name(tmp_path: Path) -> None:
    file = write_numbered(tmp_path)
    listed = read(file, columns={"options": ["Option 2", "Option 1"]}).samples
    assert [(s.options, s.answer_text) for s in listed[:2]] == [
        (("Heart", "Lung"), "Lung"),
        (("Heart", "Lung"), "Heart"),
    ]
    shorter = file.read_text().replace(";Heart;Lung", ";;Lung").replace(";Lung;;Lung", ";;;Lung")
    file.write_text(shorter)
    assert read(file, columns={"options": ["Option 1", "Option 2"]}).samples[0].options == ()


@pytest.mark.parametrize("typed", ["scantype", "Scan_Type", "scan typ"])
def test_column_that_is_spelt_another_way_is_told_by_its_name(typed: str, tmp_path: Path) -> None:
    file = table(tmp_path, **{",modality,": ",scan type,"})
    with pytest.raises(ValueError, match="no column") as caught:
        read(file, columns={"modality": typed})
    told = "set 'data.columns.modality=scan type', which is most like it"
    assert str(caught.value).endswith(told)


def test_one_contradiction_is_counted_as_one(tmp_path: Path) -> None:
    rows = [f"images/0.png,Which?,CT,MRI,{letter}" for letter in "AB"]
    file = table(tmp_path, text="\n".join(["image,question,option_A,option_B,answer", *rows]))
    with pytest.raises(ValueError, match=r"^1 question with two answers about one image: "):
        load(file, tmp_path / "cache", images="none", contradictions="error")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"options": "Option"}, "no column 'Option'; .* set 'data.columns.options=[Option 1,Opt"),
        ({"options": ["Option 1", "Option 3"]}, "no column 'Option 3'; columns are ['image'"),
        ({"options": ["Option 1", "Option 1"]}, "data.columns.options names 'Option 1' twice"),
        ({"options": ["Option 1"]}, "type 'data.columns.options=Option 1'"),
        ({"image": ["image", "answer"]}, "data.columns.image=['image', 'answer']: it takes the"),
    ],
)
def test_columns_of_options_that_are_not_there_are_told_with_what_to_type(
    tmp_path: Path, columns: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read(write_numbered(tmp_path), columns=columns)
    first, _, last = words.partition(".* ")
    assert first in str(caught.value)
    assert last in str(caught.value)


@pytest.mark.parametrize(
    ("header", "right"),
    [
        (NUMBERED, "Lung,Heart"),
        ("image;question;Antwort A;Antwort B;answer\n", "A,B"),
        ("image;question;Links (L);Größe;answer\n", "Lung,Heart"),
    ],
)
def test_columns_that_look_like_options_come_with_what_to_type_and_it_works(
    composed: Callable[..., Config], tmp_path: Path, header: str, right: str
) -> None:
    file = write_numbered(tmp_path, header=header, right=right)
    try:
        said = str(next(r for r in read(file).remarks if r.is_warning))
        assert said.startswith("! o.csv: columns ")
    except ValueError as error:  # the answers are letters
        said = str(error)
    (typed,) = re.findall(r"""["']data\.columns\.options=[^"]*?\]["']""", said)
    config = composed("data=hub", f"data.hub={file}", *shlex.split(typed))
    samples = read(file, columns=config.data["columns"]).samples
    assert [s.options for s in samples] == [("Lung", "Heart")] * 6
    assert [s.answer_text for s in samples] == ["Lung", "Heart"] * 3


def test_a_cell_of_several_options_is_said(tmp_path: Path) -> None:
    rows = [f"{i}.png;Which?;CT / MRI;{('CT', 'MRI')[i % 2]}" for i in range(4)]
    (tmp_path / "a.csv").write_text("\n".join(["image;question;variants;answer", *rows]))
    (_, said) = map(str, read(tmp_path / "a.csv").remarks)
    assert said == (
        "! a.csv: column variants holds several texts a cell ('CT / MRI'), as options would, and "
        "is not used; give each option a column, option_A, option_B ..."
    )


def test_columns_that_are_no_options_are_not_taken_for_some(tmp_path: Path) -> None:
    file = table(tmp_path, **{HEADER: HEADER.replace("modality", "age").replace("task", "label")})
    assert not [r for r in read(file).remarks if r.is_warning]


def test_columns_in_other_letters_are_read_and_said(tmp_path: Path) -> None:
    header = "Image;QUESTION;Option_A;option b;Answer;Modality;Fold;Answer-Type\n"
    rows = [
        f"{i}.png;Which?;Lung;Heart;{'ab'[i % 2]};CT;{('test', 'train')[i % 2]};closed"
        for i in range(4)
    ]
    (tmp_path / "a.csv").write_text(header + "\n".join(rows))
    loaded = read(tmp_path / "a.csv")
    assert [(s.options, s.answer, s.modality, s.split) for s in loaded.samples[:2]] == [
        (("Lung", "Heart"), "A", "ct", "test"),
        (("Lung", "Heart"), "B", "ct", "train"),
    ]
    (remark,) = loaded.remarks
    assert str(remark).startswith("a.csv: columns that are read under our names: Image as image, ")
    assert "Option_A as option_A, option b as option_B" in str(remark)


def test_a_column_of_the_very_name_goes_before_one_in_other_letters(tmp_path: Path) -> None:
    text = "image,question,Question,answer\n0.png,right?,wrong?,yes\n"
    (tmp_path / "a.csv").write_text(text)
    (sample,) = read(tmp_path / "a.csv").samples
    assert sample.question == "right?"
    text = "image,QUESTION,Question,answer\n0.png,a?,b?,yes\n"
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match="no column 'question'; columns are"):
        read(tmp_path / "a.csv")


def test_all_missing_columns_are_named_at_once_and_the_remedy_works(tmp_path: Path) -> None:
    text = "Bild;Frage;Befund\n0.png;Gebrochen?;yes\n"
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=r"no columns 'image', 'question', 'answer'; ") as caught:
        read(tmp_path / "a.csv")
    keys = re.findall(r"data\.columns\.(\w+) to", str(caught.value))
    assert keys == ["image", "question", "answer"]
    columns = dict(zip(keys, ["Bild", "Frage", "Befund"], strict=True))
    assert read(tmp_path / "a.csv", columns=columns).samples[0].answer_text == "Yes"


def test_rows_left_out_for_two_answers_are_counted_and_named_as_error_names_them(
    tmp_path: Path,
) -> None:
    answers = {1: "yes", 2: "no", 3: "yes", 4: "yes"}
    lines = [f"images/{max(i, 2)}.png,Is it large?,{a},train" for i, a in answers.items()]
    text = "\n".join(["image,question,answer,split", *lines, "images/9.png,Is it large?,no,test"])
    file = table(tmp_path, text=text)
    loaded = read(file)
    assert loaded.counts == {"train": 2, "test": 1, checks.CONTRADICTING: 2}
    with pytest.raises(ValueError, match="1 question with two answers") as error:
        load(file, tmp_path / "cache", images="none", contradictions="error")
    named, _, _ = str(error.value).partition(", or set ")
    assert "questions.csv, row 2 and questions.csv, row 3 disagree" in named
    said = f"! questions.csv: 2 rows left out because of {named}"
    assert said in map(str, loaded.remarks)
    report = audit(loaded, "0", {s.image: str(s.image) for s in loaded.samples})
    assert report["duplicates"]["questions_with_two_answers"] == 1
    assert report["duplicates"]["first"] == {"questions_with_two_answers": "questions.csv, row 2"}
    assert not any("two answers" in line for line in warnings(report))  # the remark says it


@pytest.mark.parametrize(
    ("yes", "no", "count", "words"),
    [
        ("Ja", "nein.", 4, "'ja' and 'nein'"),
        ("oui", "non", 4, "'oui' and 'non'"),
        ("Si\u0301", "No", 2, "'s\u00ed'"),  # no is read as that of English
        ("да", "нет", 4, "'да' and 'нет'"),
    ],
)
def test_yes_and_no_of_another_language_are_named(
    yes: str, no: str, count: int, words: str, tmp_path: Path
) -> None:
    lines = [f"{i}.png,Gross {i % 2}?,{(yes, no)[i // 2 % 2]}" for i in range(4)]
    lines = ["8.png,Wo?,links", *lines]
    file = table(tmp_path, text="\n".join(["image,question,answer", *lines]))
    (said,) = (str(remark) for remark in read(file).remarks if remark.is_warning)
    begin = f"! questions.csv, row 3: {count} rows without options answered by {words}, this the "
    assert said.startswith(begin)
    open_ones = [f"{line},{'open' * (i > 0)}" for i, line in enumerate(lines)]
    file = table(tmp_path, text="\n".join(["image,question,answer,answer_type", *open_ones]))
    assert not any(remark.is_warning for remark in read(file).remarks)


def test_one_word_of_another_language_is_no_yes_or_no(tmp_path: Path) -> None:
    lines = ["0.png,What does it say?,ja", "1.png,Where?,left"]
    file = table(tmp_path, text="\n".join(["image,question,answer", *lines]))
    assert not any(remark.is_warning for remark in read(file).remarks)


@pytest.mark.parametrize("name", ["case_id", "Subject", "MRN", "study-id", "Pat ID"])
def test_an_unused_column_that_may_name_patients_is_named_once(name: str, tmp_path: Path) -> None:
    def warned(file: Path, columns: dict[str, str] | None = None) -> list[str]:
        loaded = read(file, columns=columns)
        return [str(remark) for remark in loaded.remarks if remark.is_warning]

    file = table(tmp_path, patient=name)
    (said,) = warned(file)
    assert said.startswith(f"! questions.csv: column {name!r} may name patients and is not used: ")
    (typed,) = (word for word in shlex.split(said) if word.startswith("data.columns.patient="))
    assert typed == f"data.columns.patient={name}"
    columns = {"patient": name}
    assert not warned(file, columns=columns)
    assert read(file, columns=columns).samples[2].patient == "p1"
    each = "\n".join([HEADER, *(row.replace(f"p{i // 2}", f"p{i}") for i, row in enumerate(ROWS))])
    assert not warned(table(tmp_path, text=each, patient=name))  # a number for each row
    one = "\n".join([HEADER, *(row.replace(f"p{i // 2}", "p0") for i, row in enumerate(ROWS))])
    assert not warned(table(tmp_path, text=one, patient=name))
