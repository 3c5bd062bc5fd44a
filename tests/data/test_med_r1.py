"""The published format: what it means, and what is said of rows that are wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medreason import data
from medreason.data import checks
from medreason.data.rows import Loaded
from medreason.samples import Sample, split_problem

SHARED = Path(__file__).parents[2].parent / "shared/data"
CT = "CT(Computed Tomography)_test.json"


def spec(root: Path | None, files: list[str] | None, more: dict[str, Any]) -> dict[str, Any]:
    shared = {
        "_target_": "medreason.data.med_r1.read",
        "root": root and str(root),
        "files": files or [],
    }
    return shared | more


def load(root: Path | None, files: list[str] | None = None, **more: object) -> tuple[Sample, ...]:
    data._load.cache_clear()  # files change within a test
    return data.load(spec(root, files, more), (root or Path()) / ".cache")


def read(root: Path, files: list[str] | None = None, **more: object) -> Loaded:
    return data.read(spec(root, files, more), Path("unused"))


def row(**changes: object) -> dict[str, Any]:
    published = {
        "image": "Images/Chest CT Scan/test/a.png",
        "problem": "Which? A)Mammogram, left, B)CT., C)PET",
        "solution": "<answer> B </answer>",
    }
    return published | changes


def write(root: Path, content: object, name: str = CT) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def test_ten_published_rows_become_samples(tmp_path: Path) -> None:
    write(tmp_path, [row(image=f"Images/Chest CT Scan/test/{i}.png") for i in range(10)])
    samples = load(tmp_path, [CT], images="none")
    assert [s.id for s in samples] == [f"{CT}:{i}" for i in range(10)]
    first = samples[0]
    assert first.image == tmp_path / "Images/Chest CT Scan/test/0.png"
    assert (first.question, first.options) == ("Which?", ("Mammogram, left", "CT.", "PET"))
    assert (first.answer, first.answer_text) == ("B", "CT.")
    assert (first.cell, first.split) == (("ct", "unknown"), "test")
    assert (first.source, first.patient, first.explanation) == ("Chest CT Scan", None, None)
    assert first.problem == row()["problem"]


@pytest.mark.parametrize(
    ("name", "modality", "task", "split"),
    [
        ("CT(Computed Tomography)_train.json", "ct", "unknown", "train"),
        ("MR (Mag-netic Resonance Imaging)_test.json", "mri", "unknown", "test"),
        ("OCT (Optical Coherence Tomography_test.json", "oct", "unknown", "test"),
        ("Fundus Photography_train.json", "fundus", "unknown", "train"),
        ("Microscopy Images_test.json", "microscopy", "unknown", "test"),
        ("ultrasound_test.json", "ultrasound", "unknown", "test"),
        ("X-Ray_train.json", "xray", "unknown", "train"),
        ("Dermoscopy_train.json", "dermoscopy", "unknown", "train"),
        ("unknown_train.json", "unknown", "unknown", "train"),
        ("Anatomy Identification_test.json", "unknown", "anatomy", "test"),
        ("Disease Diagnosis_test.json", "unknown", "disease", "test"),
        ("Lesion Grading_train.json", "unknown", "grading", "train"),
        ("Modality Recognition_test.json", "unknown", "modality_recognition", "test"),
        ("Other Biological Attributes_test.json", "unknown", "attributes", "test"),
        ("Biological Attribute Analysis_test.json", "unknown", "attributes", "test"),
    ],
)
def test_published_file_names_say_cell_and_split(
    name: str, modality: str, task: str, split: str, tmp_path: Path
) -> None:
    write(tmp_path, [row()], f"modality/{name}")
    (sample,) = load(tmp_path, images="none")
    assert (*sample.cell, sample.split) == (modality, task, split)


def test_a_row_says_more_than_its_file_name(tmp_path: Path) -> None:
    named = row(modality="mRI", task="Other Biological Attributes", source="VQA-RAD qid 7 (ABN)")
    write(tmp_path, [named, row(modality="X-Ray")])
    first, second = load(tmp_path, images="none")
    assert (first.cell, first.source) == (("mri", "attributes"), "VQA-RAD")
    assert second.cell == ("xray", "unknown")


def test_the_other_family_of_files_fills_in_what_a_name_does_not_say(tmp_path: Path) -> None:
    write(tmp_path, [row(), row(image="Images/X/b.png")], f"modality/{CT}")
    write(tmp_path, [row()], "question_type/Modality Recognition_train.json")
    samples = load(tmp_path, ["modality/*"], labels_from=["question_type/*"], images="none")
    assert [s.cell for s in samples] == [("ct", "modality_recognition"), ("ct", "unknown")]


@pytest.mark.parametrize(
    ("problem", "question", "options"),
    [
        ("Which? A)CT, B)MRI", "Which?", ("CT", "MRI")),
        ("Which? A)T2, left, B)B cell, C), D)x.", "Which?", ("T2, left", "B cell", "", "x.")),
        ("Stain (H&E)? A)(H&E) stain, B)None", "Stain (H&E)?", ("(H&E) stain", "None")),
        ("Which? A)a, C)c", "Which?", ("a, C)c",)),
        ("Where?", "Where?", ()),
    ],
)
def test_options_are_split_in_the_sequence_of_their_letters(
    problem: str, question: str, options: tuple[str, ...]
) -> None:
    assert split_problem(problem) == (question, options)


@pytest.mark.parametrize(
    ("solution", "letter"),
    [("<answer> B </answer>", "B"), ("B", "B"), ("<answer>B) CT.</answer>", "B"), ("PET", "C")],
)
def test_gold_answers_are_read(solution: str, letter: str, tmp_path: Path) -> None:
    write(tmp_path, [row(solution=solution)])
    assert load(tmp_path, images="none")[0].answer == letter


BAD = {
    "no key": ({"image": "a.png", "solution": "A"}, r'no "problem"; keys are \[\'image\', \'sol'),
    "no object": ("text", "is a text, not an object"),
    "number": (row(solution=2), '"solution" is 2; needs a text'),
    "empty": (row(image=" "), '"image" is empty; needs a text'),
    "no options": (row(problem="Where is it?"), "no options of the form .* 'Where is it"),
    "one option": (row(problem="Which? A)CT"), "no options of the form"),
    "blank option": (row(problem="Which? A)CT, B) "), "no options of the form"),
    "beyond": (row(solution="<answer> D </answer>"), "D </answer>' is beyond the options A to C"),
    "lower case": (row(solution="<answer> b </answer>"), "neither a capital letter nor one of"),
    "no letter": (row(solution="<answer> </answer>"), "neither a capital letter nor one of"),
    "other text": (row(solution="<answer>MRI</answer>"), "nor one of .*Mammogram"),
    "wrong text": (row(solution="B) PET"), "is none of the options"),
    "modality": (row(modality="Endoscopy"), "\"modality\" is 'Endoscopy'; known: ct, mri"),
    "parent": (row(image="Images/../../a.png"), "leaves the data root"),
    "absolute": (row(image="/etc/a.png"), "leaves the data root"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_with_file_and_row_or_skipped(
    bad: object, message: str, tmp_path: Path
) -> None:
    write(tmp_path, [row(), bad])
    with pytest.raises(ValueError, match=rf"1 bad row in(?s:.*)_test\.json, row 1: .*{message}"):
        load(tmp_path, images="none")
    assert len(load(tmp_path, images="none", bad_rows="skip")) == 1
    (bad,) = read(tmp_path, images="none").bad_rows
    assert (bad.file, bad.row) == (CT, 1)


def test_all_bad_rows_are_counted_and_ten_listed(tmp_path: Path) -> None:
    write(tmp_path, [row(solution=f"?{i}") for i in range(12)])
    with pytest.raises(ValueError, match="12 bad rows") as caught:
        load(tmp_path, images="none")
    assert str(caught.value).count("_test.json, row") == 10
    with pytest.raises(ValueError, match="12 bad rows"):  # nothing would be left
        load(tmp_path, images="none", bad_rows="skip")
    with pytest.raises(ValueError, match=r"data\.bad_rows='ignore'; known: 'error', 'skip'"):
        load(tmp_path, images="none", bad_rows="ignore")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "a', "broken JSON .*download the file again"),
        ("", "broken JSON"),
        ("\udcff\udcfe", "broken JSON"),
        ("{}", "holds an object, not an array"),
        ("[]", "holds no rows"),
    ],
)
def test_a_file_that_cannot_be_read_stops_even_when_rows_are_skipped(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / CT).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"_test\.json.*{message}"):
        load(tmp_path, images="none", bad_rows="skip")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["none.json"], r"no file 'none\.json' below .*there are: CT\("),
        (["*.csv"], r"no file '\*\.csv'"),
        (["../a.json"], "leaves"),
        (["/a.json"], "leaves"),
    ],
)
def test_files_that_are_not_there_are_named(files: list[str], message: str, tmp_path: Path) -> None:
    write(tmp_path, [row()])
    with pytest.raises(ValueError, match=message):
        load(tmp_path, files, images="none")


def test_a_root_without_data_is_refused(tmp_path: Path) -> None:
    for root in (None, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"data\.root=.* is not a folder"):
            load(root)
    with pytest.raises(ValueError, match="holds no"):
        load(tmp_path)


def test_no_files_given_takes_the_published_ones_and_patterns_take_each_once(
    tmp_path: Path,
) -> None:
    write(tmp_path, [row()], f"Splits/modality/test/{CT}")
    write(tmp_path, [row()], "Splits/modality/train/X-Ray_train.json")
    write(tmp_path, {"not": "a split"}, "settings.json")
    assert len(load(tmp_path, images="none")) == 2
    assert len(load(tmp_path, ["**/*_test.json", f"Splits/modality/test/{CT}"], images="none")) == 1


def test_json_lines_are_read_and_a_broken_line_is_named(tmp_path: Path) -> None:
    """`CT_train.jsonl` beside `CT_test.json` was no training file, without a word."""
    write(tmp_path, [row()], "CT_test.json")
    lines = [row(problem=f"Which {i}\u2028? A)x, B)y") for i in range(3)]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n"
    for name in ("CT_train.jsonl", "CT_train.ndjson", "X-Ray_train.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        samples = load(tmp_path, images="none")
        assert [s.id for s in samples if s.split == "train"] == [f"{name}:{i}" for i in range(3)]
        (tmp_path / name).write_text(text[:-4], encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{name}: broken JSON .*line 3 column"):
            load(tmp_path, images="none")
        (tmp_path / name).unlink()
    (tmp_path / "CT_train.jsonl").write_text(json.dumps(row()))
    assert [s.id for s in load(tmp_path, images="none")] == ["CT_test.json:0", "CT_train.jsonl:0"]


def test_files_without_a_split_are_split_and_never_mixed_with_published_ones(
    tmp_path: Path,
) -> None:
    write(tmp_path, [row(image=f"{i}.png") for i in range(10)], "pairs.json")
    split = load(tmp_path, images="none")
    assert Counter(s.split for s in split) == {"train": 7, "test": 3}
    write(tmp_path, [row(image=f"test/{i}.png") for i in range(10)])
    assert {s.split for s in load(tmp_path, [CT], images="none")} == {"test"}
    both = [CT, "pairs.json"]
    with pytest.raises(ValueError, match=r"pairs\.json has no published split .*data\.split=by_im"):
        load(tmp_path, both, images="none")
    again = load(tmp_path, both, images="none", split="by_image")
    assert Counter(s.split for s in again) == {"train": 14, "test": 6}
    with pytest.raises(ValueError, match=r"data\.split=by_patient: no row names a patient"):
        load(tmp_path, both, images="none", split="by_patient")


def test_families_that_contradict_each_other_are_refused_and_have_a_joint_test(
    tmp_path: Path,
) -> None:
    """Image 0 is tested by both, 1 by the first only, 2 by the second only, 3 by none."""
    images = [row(image=f"{i}.png") for i in range(4)]
    for name, test in (("modality/CT", (0, 1)), ("question_type/Disease Diagnosis", (0, 2))):
        write(tmp_path, [images[i] for i in test], f"{name}_test.json")
        write(tmp_path, [images[i] for i in range(4) if i not in test], f"{name}_train.json")
    with pytest.raises(ValueError, match=r"2 questions are in train and in test.*modality/CT_tr"):
        load(tmp_path, images="none")
    assert len(load(tmp_path, ["modality/*"], images="none")) == 4
    samples = load(tmp_path, images="none", split="joint")
    assert [(s.image.stem, s.split) for s in samples] == [("0", "test"), ("3", "train")]
    assert {s.cell for s in samples} == {("ct", "disease")}
    assert len(load(tmp_path, images="none", split="by_image")) == 4
    with pytest.raises(ValueError, match=r"data\.split=joint: no row is in the tests of both"):
        load(tmp_path, ["modality/*"], images="none", split="joint")


def test_two_files_that_disagree_on_one_question_are_named(tmp_path: Path) -> None:
    write(tmp_path, [row()], "modality/CT_test.json")
    write(tmp_path, [row(solution="C")], "question_type/Disease Diagnosis_test.json")
    with pytest.raises(
        ValueError, match=r"CT_test.json, row 0 and .*sis_test.json, row 0 disagree"
    ):
        load(tmp_path, images="none", contradictions="error")
    write(tmp_path, [row(image="b.png")], "modality/MRI_test.json")
    assert len(load(tmp_path, images="none")) == 1
    assert data.row_counts(spec(tmp_path, [], {"images": "none"}), tmp_path / ".cache") == {
        "train": 0, "test": 1, "contradicting": 2,
    }  # fmt: skip


LETTERED = ", ".join(f"{letter})stage {i}" for i, letter in enumerate("ABCDEFGHIJ"))


def test_more_than_eight_options_are_as_many_options(tmp_path: Path) -> None:
    write(tmp_path, [row(problem=f"Which? {LETTERED}", solution="J")])
    (sample,) = load(tmp_path, images="none")
    assert (len(sample.options), sample.options[7], sample.answer) == (10, "stage 7", "J")
    assert sample.problem == f"Which? {LETTERED}"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"problem": "Which? A)CT, B)MRI, D)PET"}, "not lettered in sequence: 'D' stands in"),
        (
            {"problem": "Which <|image_pad|> is it? A)CT, B)MRI"},
            r"question holds '<\|image_pad\|>'",
        ),
        ({"problem": "<image>\nWhich is it? A)CT, B)MRI"}, "question holds '<image>'"),
        ({"problem": "Which? A)CT<|im_end|>, B)MRI"}, r"option 1 holds '<\|im_end\|>'"),
        ({"source": 7}, '"source" is 7; needs a text'),
        ({"source": ["SLAKE"]}, r"\"source\" is \['SLAKE'\]; needs a text"),
        ({"image": ["a.png", "b.png"]}, "needs a text"),
        ({"image": None}, '"image" is empty; needs a text'),
        ({"modality": 3}, '"modality" is 3; needs a text'),
    ],
)
def test_texts_that_fail_in_the_middle_of_a_training_are_bad_rows(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    write(tmp_path, [row(), row(**changes)])
    with pytest.raises(ValueError, match=rf"1 bad row in(?s:.*)_test\.json, row 1: .*{problem}"):
        load(tmp_path, images="none")
    assert len(load(tmp_path, images="none", bad_rows="skip")) == 1


def test_files_of_macos_and_names_of_two_modalities_decide_nothing(tmp_path: Path) -> None:
    write(tmp_path, [row()])
    write(tmp_path, "\0\5\26\7 no JSON", f"._{CT}")
    loaded = read(tmp_path)
    assert len(loaded.samples) == 1
    assert str(loaded.remarks[0]) == f"._{CT}: written by macOS, holds no rows"
    assert len(load(tmp_path, ["*_test.json"], images="none")) == 1
    both = write(tmp_path / "both", [row()], "OCT & X-Ray 2017_filtered_test.json")
    assert [s.cell for s in load(both, images="none")] == [("unknown", "unknown")]
    write(both, [row(modality="X-Ray")], "OCT & X-Ray 2017_filtered_test.json")
    assert [s.cell for s in load(both, images="none")] == [("xray", "unknown")]


def test_patients_come_from_a_table(tmp_path: Path) -> None:
    write(tmp_path, [row(image="a.png"), row(image="b.png"), row(image="c.png")])
    table = tmp_path / "labels.csv"
    table.write_text("image,label,patient_or_source_id\na.png,x,P1\na.png,y,P1\nb.png,x,\n")
    samples = load(tmp_path, patients="labels.csv", images="none")
    assert [s.patient for s in samples] == ["P1", None, None]
    table.write_text("image,patient_or_source_id\na.png,P1\na.png,P2\n")
    with pytest.raises(ValueError, match=r"'a\.png' has the patients 'P1' and 'P2'"):
        load(tmp_path, patients="labels.csv", images="none")
    table.write_text("image,label\na.png,x\n")
    with pytest.raises(ValueError, match=r"no column .*patient_or_source_id"):
        load(tmp_path, patients="labels.csv", images="none")
    with pytest.raises(ValueError, match=r"data\.patients: no file"):
        load(tmp_path, patients="none.csv", images="none")


def test_images_are_decoded_and_bad_ones_named(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside.png", tmp_path / "root"
    root.mkdir()
    for path in (outside, root / "good.png", root / "cut.png"):
        Image.effect_noise((64, 64), 50).save(path)
    whole = (root / "cut.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "empty.png").touch()
    (root / "link.png").symlink_to(outside)
    (root / "loop.png").symlink_to(root / "loop.png")
    names = ["good.png", "cut.png", "empty.png", "link.png", "missing.png", "cut.png"]
    names += ["loop.png", "a\0.png", "a" * 300 + ".png"]
    write(root, [row(image=name) for name in names], CT)
    loaded = checks.with_readable_images(read(root), root, tmp_path)
    assert [s.image.name for s in loaded.samples] == ["good.png"]
    assert [r.row for r in loaded.bad_rows] == list(range(1, 9))
    for bad, problem in zip(
        loaded.bad_rows,
        ["cannot be decoded", "0 bytes", "by a link", "no such file", "cannot be decoded"]
        + ["not a path"] * 3,
        strict=True,
    ):
        assert problem in bad.problem
        assert repr(names[bad.row])[1:-1] in bad.problem
    with pytest.raises(ValueError, match=r"8 bad rows(?s:.*)row 4: .*missing\.png: no such file"):
        load(root)
    assert len(load(root, bad_rows="skip")) == 1
    assert len(load(root, images="none")) == 9


def test_a_shape_that_the_processors_refuse_is_a_bad_row_and_its_remedy_works(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "Images/Chest CT Scan/test"
    folder.mkdir(parents=True)
    Image.new("RGB", (84, 84)).save(folder / "a.png")
    Image.new("RGB", (402, 2)).save(folder / "thin.png")
    write(tmp_path, [row(), row(image="Images/Chest CT Scan/test/thin.png")])
    with pytest.raises(
        ValueError, match=r"row 1: image .*thin\.png: 402 x 2 .*200 times"
    ) as caught:
        load(tmp_path)
    assert "crop or pad it" in str(caught.value)
    assert "data.bad_rows=skip" in str(caught.value)
    assert len(load(tmp_path, bad_rows="skip")) == 1
    given = spec(tmp_path, None, {"bad_rows": "skip"})
    counts = data.row_counts(given, tmp_path / ".cache")
    assert counts == {"train": 0, "test": 1, checks.UNREADABLE: 1}
    Image.new("RGB", (400, 2)).save(folder / "thin.png")
    assert len(load(tmp_path)) == 2


def test_every_published_row_parses() -> None:
    root = SHARED / "med_r1_splits"
    if not root.is_dir():
        pytest.skip(f"no published files at {root}")
    loaded = read(root, images="none")
    assert loaded.bad_rows == []
    assert len({s.id for s in loaded.samples}) == len(loaded.samples)
    sizes = Counter((*s.cell, s.split) for s in loaded.samples)
    assert sizes["mri", "unknown", "test"] == 6370
    assert sizes["ct", "unknown", "train"] == 12_567
    assert sizes["unknown", "attributes", "train"] == 2794
    written = [row for path in sorted(root.rglob("*.json")) for row in json.loads(path.read_text())]
    assert len(written) == len(loaded.samples)
    assert {s.problem for s in loaded.samples} == {row["problem"] for row in written}


def test_the_real_images_and_pairs_load() -> None:
    root = SHARED / "medvqa_mini"
    if not root.is_dir():
        pytest.skip(f"no real images at {root}")
    samples = load(root, ["vqa_pairs.json"], patients="labels.csv", test_share=0.3)
    assert len(samples) == 284
    assert "unknown" not in {name for s in samples for name in s.cell}
    assert {"MHSMA", "VQA-RAD", "Chest CT Scan"} <= {s.source for s in samples}
