"""Every figure of an audit on rows made for it, and the published figures on the real files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import pytest
from PIL import Image

from medreason import data
from medreason.data import pictures
from medreason.data.audit import (
    LOWER_CASE,
    PERIOD,
    audit,
    audit_run,
    overlap_warnings,
    warnings,
)
from medreason.data.rows import (
    OF_VALIDATION,
    SIDES,
    BadRow,
    LeftOut,
    Loaded,
    Remark,
    SplitColumn,
)
from medreason.report import audit as tables
from medreason.samples import Sample

SHARED = Path(__file__).parents[2].parent / "shared/data"
KEYS = (
    "rows row_counts split cells options letters unparsed left_out remarks answer_types duplicates "
    "leakage validation_leakage images_by_path cross_family_leakage option_prior option_prior_task "
    "guessing guessing_task typography images digest"
)
# experiments/med_r1/README.md, "Data": train and test rows of each published file.
SIZES = {
    "ct": (12_567, 3241), "mri": (25_507, 6370), "xray": (6301, 1615), "ultrasound": (8917, 2074),
    "dermoscopy": (5373, 1306), "fundus": (4300, 1098), "oct": (3798, 848),
    "microscopy": (4570, 1110), "anatomy": (13_119, 3329), "disease": (44_329, 11_058),
    "grading": (1662, 436), "modality_recognition": (9173, 2392), "attributes": (2794, 704),
}  # fmt: skip


def sample(
    image: str,
    split: str,
    options: tuple[str, ...] = ("a", "b"),
    answer: str = "A",
    cell: tuple[str, str] = ("ct", "disease"),
    patient: str | None = None,
) -> Sample:
    name = f"{image}-{split}-{'/'.join(cell)}-{answer}:0"
    return Sample(name, Path(image), "Which?", options, answer, None, *cell, "s", patient, split)


def audit_of(*samples: Sample) -> dict[str, Any]:
    return audit(Loaded(list(samples), []), "digest", by_path(samples))


def by_path(samples: Iterable[Sample]) -> dict[Path, str]:
    """Digests of images that all differ."""
    return {s.image: str(s.image) for s in samples}


def test_the_keys_are_these() -> None:
    left_out = [LeftOut("f.json", 4, "no other label", "surplus")]
    loaded = Loaded([sample("a.png", "train")], [BadRow("f.json", 3, "no image")], left_out)
    report = audit(loaded, "digest", by_path(loaded.samples))
    assert " ".join(report) == KEYS
    assert report["rows"] == 3  # in the files
    assert report["row_counts"] == {"train": 1, "test": 0, "surplus": 1, "bad": 1}
    assert report["left_out"] == [{"file": "f.json", "row": 4, "reason": "no other label"}]
    assert report["unparsed"] == [{"file": "f.json", "row": 3, "reason": "no image"}]
    assert report["cells"] == {"ct": {"disease": {"train": 1, "test": 0}}}
    assert report["options"] == {"2": 1}
    assert report["letters"] == {"train": {"A": 1}, "test": {}}
    json.dumps(report)


def test_an_image_and_a_patient_in_train_and_test_are_found() -> None:
    report = audit_of(
        sample("a", "train", patient="p"),
        sample("a", "test", patient="p"),
        sample("a", "test", answer="B", patient="p"),
        sample("b", "test", patient="q"),
        sample("c", "train", cell=("mri", "disease")),
    )
    leak = {"shared_images": 1, "test_rows": 2, "shared_patients": 1}
    assert report["leakage"] == {"all": leak, "ct": leak}
    assert report["duplicates"]["questions_with_two_answers"] == 1
    assert any("2 test questions about 1 image of train" in text for text in warnings(report))


def test_a_run_knows_how_many_of_its_test_questions_it_saw_the_image_of() -> None:
    train = [sample("a", "train"), sample("b", "train", cell=("mri", "disease"))]
    test = [sample("b", "test"), sample("c", "test"), sample("a", "test")]
    counts = {"train": 2, "test": 3}
    known = by_path([*train, *test])
    facts = audit_run(train, test, "digest", known, counts, ["a note"], left_out_of_epoch=1)
    assert facts["left_out_of_epoch"] == 1
    assert (facts["test_rows"], facts["test_rows_on_trained_images"]) == (3, 2)
    assert facts["cells"]["ct"] == {"disease": {"train": 1, "test": 3}}
    assert facts["digest"]
    assert any("2 test questions about 2 images of train" in text for text in facts["warnings"])
    assert facts["notes"] == ["a note"]


def test_a_run_keeps_the_options_of_its_training_questions_of_yes_or_no() -> None:
    def asked(text: str, options: tuple[str, ...]) -> Sample:
        return replace(sample("a", "train", options), question=text)

    train = [asked("Large?", order) for order in (("No", "Yes"), ("Yes", "No"), ("Yes", "No"))]
    train += [asked("Round?", ("Yes", "No")), asked("Round?", ()), asked("Which?", ("CT", "MRI"))]
    facts = audit_run(train, [asked("Of test?", ("Yes", "No"))], "0", by_path(train), {})
    assert facts["yes_no_questions"] == {"Large?": ["Yes", "No"]}
    many = [asked(f"{n}?", ("Yes", "No")) for n in range(600)]
    assert len(audit_run(many, [], "0", by_path(many), {})["yes_no_questions"]) == 500


def test_equal_pictures_are_leaks_whatever_their_names_between_all_three_sides() -> None:
    names = {"a": "train", "b": "test", "c": "train", "d": "validation", "e": "test", "f": "test"}
    samples = [sample(name, side) for name, side in names.items()]
    digests = by_path(samples) | dict.fromkeys(map(Path, "ab"), "1") | {Path("c"): "2"}
    digests |= {Path("d"): "2", Path("e"): "2"}
    report = audit(Loaded(samples, []), "digest", digests)
    assert report["leakage"]["all"] == {"shared_images": 2, "test_rows": 2}
    shared = {"shared_images": 1, "validation_rows": 1}
    assert report["validation_leakage"] == {"train": shared, "test": shared}
    train, held_back, test = ([s for s in samples if s.split == side] for side in SIDES)
    facts = audit_run(train, test, "digest", digests, {}, validation=held_back)
    assert facts["test_rows_on_trained_images"] == 2
    for said in (warnings(report), facts["warnings"], facts["leaks"]):
        assert any(text.startswith("2 test questions about 2 images of train") for text in said)
        assert "1 validation question about 1 image of train, by content" in said
        assert "1 validation question about 1 image of test, by content" in said


def test_leaks_are_counted_whatever_the_modality_of_the_training_row() -> None:
    report = audit_of(
        sample("a", "train", cell=("unknown", "disease")),
        sample("a", "test", cell=("unknown", "disease")),
        sample("b", "train", cell=("unknown", "disease")),
        sample("b", "test", cell=("ct", "disease")),
        sample("c", "test", cell=("ct", "disease")),
    )
    assert report["leakage"] == {
        "all": {"shared_images": 2, "test_rows": 2},
        "ct": {"shared_images": 1, "test_rows": 1},
        "unknown": {"shared_images": 1, "test_rows": 1},
    }
    assert audit_of(sample("a", "test"))["leakage"] == {}


def test_open_rows_do_not_lower_what_guessing_gives() -> None:
    closed = [sample(f"{i}", split, ("Yes", "No"), "AB"[i % 2]) for i in range(20) for split in
              ("train", "test")]  # fmt: skip
    open_rows = [replace(s, id=f"{s.id}:open", options=(), answer="lung") for s in closed] * 2
    report = audit_of(*closed, *open_rows)
    assert report["guessing"] == {"ct": {"questions": 20, "percent": 50.0}}
    assert not any("option strings" in text for text in warnings(report))
    always_yes = [replace(s, answer="A") for s in closed]
    (warning,) = [w for w in warnings(audit_of(*always_yes, *open_rows)) if "option strings" in w]
    assert "ct 100 % (guessing 50 %)" in warning


def test_guessing_stands_beside_what_option_strings_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [
        sample(f"{i}", split, ("Yes", "No") if i < 8 else tuple("abcd"))
        for i in range(12)
        for split in ("train", "test")
    ]
    tables.show(audit_of(*asked))
    printed = capsys.readouterr().out
    assert len(re.findall(r"^guessing between options +41\.7 *$", printed, re.M)) == 2
    answered = "guessing between the options answers 41.7 % of 12 closed in test"
    assert answered in " ".join(printed.split())


def test_families_that_were_split_apart_leak_into_each_other() -> None:
    report = audit_of(
        sample("a", "test", cell=("ct", "unknown")),
        sample("a", "train", cell=("unknown", "disease")),
        sample("b", "test", cell=("ct", "unknown")),
        sample("b", "test", cell=("unknown", "disease")),
    )
    assert report["cross_family_leakage"] == {
        "modality_test_in_question_type_train": 1,
        "question_type_test_in_modality_train": 0,
    }
    assert audit_of(sample("a", "test"))["cross_family_leakage"] == {}


def test_the_prior_answers_with_the_option_most_often_right() -> None:
    report = audit_of(
        *[sample(f"{i}", "train", ("cat", "dog"), "B") for i in range(4)],
        sample("5", "test", ("Dog.", "bird"), "A"),
        sample("6", "test", ("cat", "fox"), "A"),
    )
    assert report["option_prior"] == {"ct": {"ct": 50.0}}
    assert report["option_prior_task"] == {"disease": {"disease": 50.0}}


@pytest.mark.parametrize(
    ("options", "rule", "right"),
    [
        (("Cat", "dog", "Fox"), LOWER_CASE, 1.0),
        (("cat", "Dog", "Fox"), LOWER_CASE, 0.0),
        (("cat", "dog", "Fox"), LOWER_CASE, None),
        (("Cat", "Dog.", "Fox"), PERIOD, 1.0),
        (("Cat.", "Dog", "Fox."), PERIOD, 1.0),
        (("Cat.", "Dog", "Fox"), PERIOD, 0.0),
        (("Cat", "Dog."), PERIOD, None),
        (("Cat.", "Dog.", "Fox."), PERIOD, None),
    ],
)
def test_typing_habits(options: tuple[str, ...], rule: str, right: float | None) -> None:
    habit = audit_of(sample("a", "test", options, "B"))["typography"]["ct"][rule]
    assert habit == {"share": 0.0 if right is None else 1.0, "right": right}


def test_images_are_counted_by_what_is_wrong_with_them(tmp_path: Path) -> None:
    picture = Image.radial_gradient("L").resize((64, 48)).rotate(20)
    for name in ("a.png", "same.png", "small.bmp"):
        picture.save(tmp_path / name)
    picture.resize((128, 96)).save(tmp_path / "larger.jpg")
    Image.new("L", (16, 16)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("L", (402, 2)).save(tmp_path / "strip.png")  # no processor takes it
    names = ["a.png", "same.png", "small.bmp", "larger.jpg", "tiny.png", "broken.png", "no.png"]
    names.append("strip.png")
    sides = ["train", "test", *["train"] * 6]
    samples = [sample(str(tmp_path / n), side) for n, side in zip(names, sides, strict=True)]
    seen = pictures.read_pictures(s.image for s in samples)
    report = audit(Loaded(samples, []), "digest", by_path(samples), seen)
    (said,) = (text for text in warnings(report) if "cannot be used" in text)
    assert said.startswith(f"3 images that cannot be used, the first {tmp_path / 'broken.png'}")
    assert f" ({tmp_path / 'broken.png'}-train-ct/disease-A, row 0); audit.json lists all" in said
    assert "3 rows about them, counted here: a run refuses them, or leaves them out" in said
    images = report["images"]
    assert (images["named"], images["read"]) == (8, 5)
    assert [Path(path).name for path in images["missing"]] == ["no.png"]
    assert [Path(path).name for path in images["unreadable"]] == ["broken.png", "strip.png"]
    assert [Path(path).name for path in images["tiny"]] == ["tiny.png"]
    assert images["sizes"] == {"128x96": 1, "16x16": 1, "64x48": 3}
    same = images["duplicate_hashes"]
    assert [[Path(p).name for p in group] for group in same["exact"]] == [["a.png", "same.png"]]
    assert same["exact_in_train_and_test"] == 1
    assert len(same["perceptual"][0]) == 4


def test_the_published_figures_are_found_in_the_published_files(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = SHARED / "med_r1_splits"
    if not root.is_dir():
        pytest.skip(f"no published files at {root}")
    spec = {"_target_": "medreason.data.med_r1.read", "root": str(root), "images": "none"}
    loaded = data.read(spec, Path("unused"))
    report = audit(loaded, "digest", by_path(loaded.samples))
    assert report["unparsed"] == []
    cells = report["cells"]
    counted = {m: cells[m]["unknown"] for m in cells if m != "unknown"} | cells["unknown"]
    del counted["unknown"]  # the one row of unknown_train.json
    assert {"ct", "disease"} <= set(counted)
    for name, sides in counted.items():
        for count, published in zip(sides.values(), SIZES[name], strict=True):
            assert count in (published, 0), name  # 0: the file is not there
    assert sum(cell["test"] for cell in cells["unknown"].values()) == 17_919
    # experiments/med_r1/README.md: above 90 % on most modalities in-domain.
    own = [table[name] for name, table in report["option_prior"].items()]
    assert sum(accuracy > 90 for accuracy in own) > len(own) / 2
    tables.show(report)
    shown = capsys.readouterr().out
    assert "12567/3241" in shown
    assert "99.0" in shown


def test_a_set_without_a_test_is_said_and_its_empty_tables_are_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables.show(audit_of(sample("a.png", "train"), sample("b.png", "train")))
    shown = capsys.readouterr().out
    assert "! no test rows: set data.split=by_patient, or by_image where no row names" in shown
    assert "tested on" not in shown
    assert "typing habits" not in shown
    tables.show(audit_of(sample("a.png", "train"), sample("b.png", "test")))
    shown = capsys.readouterr().out
    assert "no test rows" not in shown
    assert "tested on" in shown


def test_the_command_line_writes_audit_json_and_imports_no_torch(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "problem": "? A)x, B)y", "solution": "A"} for i in range(4)]
    (tmp_path / "CT_test.json").write_text(json.dumps(rows))
    words = ["action=audit", "data=med_r1", f"data.root={tmp_path}", "data.images=none"]
    program = (
        f"import sys; sys.argv[1:] = {[*words, 'tracking=none']!r}\n"
        "import medreason.cli\nmedreason.cli.main()\n"
        "print('torch' in sys.modules, 'mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("False False\n")
    (written,) = tmp_path.glob("outputs/runs/audit-med_r1-*/audit.json")
    assert json.loads(written.read_text())["rows"] == 4


@pytest.mark.parametrize(
    ("problem", "images", "status"),
    [
        ("? A)x, B)y", "none", 0),
        ("no options", "none", 1),
        ("? A)x, B)y", "decode", 1),  # no image is there
    ],
)
def test_an_audit_of_rows_of_which_none_can_be_used_fails_after_it_was_written(
    tmp_path: Path, problem: str, images: str, status: int
) -> None:
    rows = [{"image": f"{i}.png", "problem": problem, "solution": "A"} for i in range(4)]
    (tmp_path / "CT_test.json").write_text(json.dumps(rows))
    words = ["action=audit", "data=med_r1", f"data.root={tmp_path}", f"data.images={images}"]
    done = commands.medreason(*words, "tracking=none", cwd=tmp_path)
    (written,) = tmp_path.glob("outputs/runs/audit-med_r1-*/audit.json")
    audited = json.loads(written.read_text())
    assert audited["rows"] == 4
    assert bool(audited["run_digests"]) == (status == 0)
    assert done.returncode == status, done.stderr
    said = "medreason: none of 4 rows can be used; outputs/runs/audit-med_r1-"
    assert (said in done.stderr) == bool(status)
    assert "Traceback" not in done.stderr


def test_a_remark_about_what_may_be_lost_begins_with_a_sign(
    capsys: pytest.CaptureFixture[str],
) -> None:
    remarks = [Remark("a.csv", -1, "is blue"), Remark("a.csv", -1, "x " * 99, is_warning=True)]
    report = audit(Loaded([], [], remarks=remarks), "0", {})
    assert [remark.get("warning") for remark in report["remarks"]] == [None, True]
    tables.show(report)
    lines = capsys.readouterr().out.splitlines()
    assert {"a.csv: is blue", f"! a.csv: {'x ' * 99}"} <= {*lines}


def test_rows_with_one_option_twice_are_named_by_the_first() -> None:
    twice = [sample("a", "train", ("x", "X ")), sample("b", "train", ("x", "x"))]
    report = audit_of(sample("c", "train"), twice[0])
    said = "1 row with the same option twice, the first a-train-ct/disease-A, row 0"
    assert said in warnings(report)
    assert any(text.startswith("2 rows with the same") for text in warnings(audit_of(*twice)))
    other = sample("a", "train", answer="B")
    said = "1 question with two answers, the first a-train-ct/disease-A, row 0"
    assert said in warnings(audit_of(sample("a", "train"), other))


def test_rows_that_repeat_another_are_counted_by_side_and_named_by_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def row(number: int, split: str) -> Sample:
        return replace(sample("a" if split == "train" else "b", split), id=f"q.csv:{number}")

    rows = [row(2, "train"), row(3, "train"), row(4, "train")]
    report = audit_of(*rows)
    assert report["duplicates"]["same_rows"] == 2
    assert report["duplicates"]["same_rows_by_side"] == {"train": 2}
    assert report["duplicates"]["first"] == {"same_rows": "q.csv, row 3"}
    said = (
        "2 rows (2 in train) repeat a question about the same image with the same answer, the "
        "first q.csv, row 3: each counts once more; remove them from a table of your own"
    )
    tables.show(report)
    assert said in capsys.readouterr().out.splitlines()
    assert not any("repeat" in line for line in warnings(report))
    assert audit_run(rows, [], "0", by_path(rows), {})["repeats"] == said
    report = audit_of(*rows, row(5, "test"), row(6, "test"))
    said = said.replace("2 rows (2 in train)", "3 rows (1 in test, 2 in train)")
    assert said in warnings(report)
    tables.show(report)
    assert f"! {said}" in capsys.readouterr().out.splitlines()
    assert audit_run([], [row(5, "test")], "0", by_path([row(5, "test")]), {})["repeats"] == ""


def test_the_first_row_that_cannot_be_used_is_named_with_its_reason() -> None:
    bad = [BadRow("f.csv", 3, "answer '9' is none of its options"), BadRow("f.csv", 5, "no image")]
    (one,) = warnings(audit(Loaded([], bad[:1]), "0", {}))
    assert one == (
        "1 row that cannot be used: f.csv, row 3: answer '9' is none of its options; audit.json "
        "lists all"
    )
    (two,) = warnings(audit(Loaded([], bad), "0", {}))
    assert two.startswith("2 rows that cannot be used, the first: f.csv, row 3: answer '9' is")


def test_one_row_about_one_image_that_cannot_be_used_is_said_in_the_singular(
    tmp_path: Path,
) -> None:
    lost = [sample(str(tmp_path / "no.png"), "train")]
    seen = pictures.read_pictures(s.image for s in lost)
    (said,) = (
        text
        for text in warnings(audit(Loaded(lost, []), "0", by_path(lost), seen))
        if "cannot be used" in text
    )
    assert "1 row about it, counted here: a run refuses it, or leaves it out with" in said


def test_patients_in_train_and_test_have_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [sample(name, side, patient="p") for name, side in (("a", "train"), ("b", "test"))]
    tables.show(audit_of(*rows))
    shown = " ".join(capsys.readouterr().out.split())
    assert "test rows patients in" in shown
    assert "about them train and test" in shown
    assert "CT 0 0 1" in shown
    assert "1 patient in both train and test; data.split=by_patient has no such leak" in shown


def test_a_split_that_is_set_or_of_a_column_is_not_advised() -> None:
    rows = [sample(name, side, patient="p") for name, side in (("a", "train"), ("b", "test"))]
    fold = [SplitColumn("t.csv", "fold")]

    def said(samples: Sequence[Sample], split: str, columns: list[SplitColumn]) -> list[str]:
        loaded = Loaded([*samples], [], split_columns=columns)
        return warnings(audit(loaded, "0", by_path(samples), split=split))

    assert said(rows, "published", fold)[0] == (
        "1 patient in both train and test; correct the column 'fold', whose split this is"
    )
    assert said(rows, "by_image", fold)[0].endswith("; data.split=by_patient has no such leak")
    both = [sample("a", side, patient="p") for side in ("train", "test")]
    remedy = "data.split=by_patient has no such leak"
    assert said(both, "published", []) == [
        f"1 test question about 1 image of train, by content; {remedy}",
        f"1 patient in both train and test; {remedy}",
    ]
    same = [sample("a", side) for side in ("train", "test")]
    assert "correct the column 'fold'" in said(same, "published", fold)[0]
    assert "data.split=by_image has no such leak" in said(same, "published", [])[0]
    assert said(rows[:1], "by_patient", [])[0] == (
        "no test rows: data.split=by_patient takes data.test_share of the rows; set it above 0"
    )


def test_images_are_counted_beside_the_rows_that_name_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    left_out = [LeftOut("f.csv", n, OF_VALIDATION, OF_VALIDATION) for n in (2, 3)]
    samples = [sample("a.png", "train"), sample("b.png", "test")]
    tables.show(audit(Loaded(samples, [], left_out), "0", by_path(samples)))
    assert capsys.readouterr().out.startswith(
        "4 rows, of which 2 are used: questions about 2 images\n"
    )
    tables.show(audit_of(*samples))
    assert capsys.readouterr().out.startswith("2 rows, all used: questions about 2 images\n")


def test_sizes_that_are_not_listed_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for width in range(40, 47):
        Image.new("L", (width, 40)).save(tmp_path / f"{width}.png")
    samples = [sample(str(path), "train") for path in sorted(tmp_path.iterdir())]
    seen = pictures.read_pictures(s.image for s in samples)
    tables.show(audit(Loaded(samples, []), "0", by_path(samples), seen))
    assert "44x40: 1 and 2 other sizes" in capsys.readouterr().out


def test_long_lists_of_counts_fit_the_width_and_no_count_leaves_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = audit(Loaded([sample("a.png", "train")], []), "0", {Path("a.png"): "a"}, {})
    report["letters"] = {"train": {"ABCDEFGHIJKLMNOPQRSTUVWXYZ"[n]: 1000 + n for n in range(26)}}
    tables.show(report)
    lines = capsys.readouterr().out.splitlines()
    counts = lines[lines.index("Counts") + 1 :]
    listed = [line.rstrip() for line in counts if ":" in line and "!" not in line]
    assert max(map(len, listed)) <= 100
    assert sum("1,0" in line for line in listed) > 1
    assert all(f"{letter}: 1,0{n:02}" in " ".join(listed) for n, letter in enumerate("ABCDEFG"))


def test_columns_that_a_terminal_has_no_room_for_stand_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the pipe for a terminal
    monkeypatch.setenv("COLUMNS", "44")
    cells = [("ct", task) for task in ("disease", "anatomy", "grading", "attributes")]
    tables.show(audit_of(*(sample(f"{t}.png", "train", cell=(m, t)) for m, t in cells)))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    rows = shown[: shown.index("Counts")].splitlines()[2:]
    assert max(map(len, rows)) <= 44
    assert sum(line.startswith("CT ") for line in rows) > 1


def test_images_that_look_alike_have_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, width in (("a", 40), ("b", 80), ("c", 40)):
        picture = Image.new("L", (width, 40))
        picture.putdata([(x * 3) % 256 for _ in range(40) for x in range(width)])
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if name == "c" else picture
        picture.save(tmp_path / f"{name}.png")

    def shown(*sides: tuple[str, str], patient: str | None = None, column: str = "") -> str:
        paths = [(str(tmp_path / f"{name}.png"), side) for name, side in sides]
        samples = [sample(path, side, patient=patient) for path, side in paths]
        seen = pictures.read_pictures(s.image for s in samples)
        own = [SplitColumn("t.csv", column)] if column else []
        loaded = Loaded(samples, [], split_columns=own)
        tables.show(audit(loaded, "0", by_path(samples), seen))
        return capsys.readouterr().out

    sides = (("a", "train"), ("b", "test"), ("c", "train"))
    crossing = shown(*sides, patient="p")
    assert "1 group of images that look alike in different files (1 of them in both" in crossing
    assert "one image saved twice, which data.split=by_image does not see, or plain" in crossing
    assert "remove what is there twice or set data.split=by_patient" in crossing
    for other in (shown(*sides), shown(*sides, patient="p", column="fold")):
        assert "(1 of them in both train and test): one image saved twice or plain ones" in other
        assert "and remove what is there twice\n" in other
        assert "data.split" not in other
    one_side = shown(("a", "train"), ("b", "train"), ("c", "test"))
    assert "1 group of images that look alike in different files: one image saved twice" in one_side
    assert "data.split" not in one_side
    assert "look alike" not in shown(("a", "train"), ("c", "test"))
    assert "look alike" not in shown(("a", "train"), ("a", "test"))  # equal files, counted as such


def test_typing_habits_are_explained_and_shown_where_some_row_has_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables.show(audit_of(sample("a", "train", ("One.", "Two", "Six")), sample("b", "test")))
    shown = capsys.readouterr().out
    assert "(without) a period" in shown
    assert "starts in lower case\n" not in shown
    assert "A % of B %: in B % of the rows one option alone" in shown
    tables.show(audit_of(sample("a", "train", ("One", "Two")), sample("b", "test", ("Y", "Z"))))
    shown = capsys.readouterr().out
    assert "Leaks\n" in shown
    assert "A % of B %" not in shown


def test_every_reason_why_rows_cannot_be_used_has_a_sign(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = [BadRow("f.csv", 3, "no image"), BadRow("f.csv", 5, "\"modality\" is 'xyz'")]
    tables.show(audit(Loaded([], bad), "0", {}))
    assert (
        "! also not usable: f.csv, row 5: \"modality\" is 'xyz'"
        in capsys.readouterr().out.splitlines()
    )


def test_labels_of_counts_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    left_out = [LeftOut("f.csv", 2, OF_VALIDATION, OF_VALIDATION)]
    report = audit(Loaded([sample("a.png", "train")], [], left_out), "0", {Path("a.png"): "a"}, {})
    report["options"] = {f"{n}": 1000 for n in range(2, 20)}
    tables.show(report)
    shown = capsys.readouterr().out
    assert "\u2026" not in shown
    assert f"rows {OF_VALIDATION}" in shown
    assert "groups of images with one perceptual hash" in shown


@pytest.mark.parametrize(
    ("unread", "said"),
    [("", "by content"), ("c", "by content (1 image by path)"), ("abc", "by path")],
)
def test_leaks_say_how_images_were_compared(unread: str, said: str) -> None:
    samples = [
        sample("a", "train"),
        sample("a", "validation"),
        sample("a", "test"),
        sample("b", "test"),
        sample("c", "train"),
    ]
    digests = by_path(samples) | {Path(name): f"missing {name}" for name in unread}
    loaded = Loaded(samples, [])
    remedy = "data.split=by_image has no such leak"
    lines = [
        f"1 test question about 1 image of train, {said}; {remedy}",
        f"1 validation question about 1 image of train, {said}",
        f"1 validation question about 1 image of test, {said}",
    ]
    assert overlap_warnings(loaded, digests) == lines
    assert [line for line in warnings(audit(loaded, "", digests)) if said in line] == lines


def test_overlaps_name_repeated_rows_where_they_are_in_the_test() -> None:
    first, again = sample("a", "train"), replace(sample("a", "train"), id="f:2")
    assert overlap_warnings(Loaded([first, again], []), by_path([first])) == []
    tested = [replace(each, split="test") for each in (first, again)]
    (line,) = overlap_warnings(Loaded(tested, []), by_path(tested))
    assert line.startswith("1 row (1 in test) repeats a question about the same image")
