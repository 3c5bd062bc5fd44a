"""A table of labelled images becomes questions that nobody answers without the image."""

from __future__ import annotations

import csv
import gzip
import random
import re
import uuid
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from medreason import data
from medreason.config import CONF, Validation
from medreason.data import checks, rows
from medreason.data.rows import Loaded
from medreason.option_prior import fit_option_prior
from medreason.samples import Sample

SHARED = Path(__file__).parents[2].parent / "shared/data"
SPEC = yaml.safe_load((CONF / "data/labelled_images.yaml").read_text())
COLUMNS = ("image", "modality", "label", "label_group", "patient_or_source_id")


ASKED = {"task": "disease", "question": "Which?"}


def read(root: Path, *, cache: Path | None = None, **more: object) -> Loaded:
    return data.read(SPEC | {"root": str(root), "images": "none"} | more, cache or root / "cache")


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
        ([("x.png", "MRI", "rare", "disease", "q")], "'rare' has 1 mri image, fewer than data.mi"),
        ([("x.png", "CT", "only", "disease", "q")] * 1, "'only' is the only label of ct images"),
        ([("x.png", "PET", "cyst", "disease", "q")], "'modality' is 'PET'; known: ct, mri"),
        ([("../x.png", "MRI", "cyst", "disease", "q")], "leaves the data root"),
        ([("", "MRI", "cyst", "disease", "q")], '"image" is empty; needs a text'),
        ([("0-0.png", "MRI", uneven()[0][2], "disease", "q")], "repeats image and label"),
    ],
)
def test_bad_rows_are_named(rows: list[tuple[str, ...]], problem: str, tmp_path: Path) -> None:
    common = [row for row in uneven() if row[2] in ("cyst", "tumor", "normal")]
    (bad,) = read(write(tmp_path, [*common, *rows])).bad_rows
    assert (bad.file, bad.row) == ("labels.csv", len(common) + 2)  # as an editor counts
    assert problem in bad.problem


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (
            "image;modality;label;label_group\n",
            {},
            r"is its separator ;\? set \"data\.separator=';'\"",
        ),
        (
            "image,label\na,b\n",
            {},
            r"no column \['modality', 'label_group'.* columns are \['image'.*data\.columns\.group=",
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


def test_bad_rows_stand_before_a_split_that_they_leave_too_few_rows_for(tmp_path: Path) -> None:
    rows = [("a.png", "MRI", "cyst"), ("b.png", "MRI", "tumor"), ("c.png", "PET", "cyst")]
    write(tmp_path, [(*row, "disease", "") for row in rows])
    with pytest.raises(
        ValueError, match=r"1 bad row in (?s:.*)row 4: .*PET(?s:.*)data\.test_share"
    ):
        read(tmp_path, split="by_image", min_images=1, test_share=0.1)


def test_another_separator_and_encoding_are_read_when_named(tmp_path: Path) -> None:
    rows = [(f"é{i}.png", "MRI", "cyst" if i % 2 else "tumor", "disease", "") for i in range(20)]
    text = "\n".join(";".join(row) for row in (COLUMNS, *rows))
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    samples = read(tmp_path, separator=";", encoding="latin-1").samples
    assert samples
    assert all(s.image.name.startswith("é") for s in samples)


GROUPS = ("disease", "grade", "site", "", " disease ", None)
IMAGES = [f"{i}.png" for i in range(8)] + ["cut.png", "text.png", "gone.png", "../x.png", "", None]
REFUSED = "leaves train or test empty|no row names a patient|no row of the group"
CELLS = st.tuples(
    st.sampled_from(IMAGES),
    st.sampled_from(["MRI", "CT", "PET", "", None]),
    st.sampled_from(["cyst", "Cyst", "tumor", "no_tumor", "normal", "rare", "", None]),
    st.sampled_from(GROUPS),
    st.sampled_from(["p1", "p2", "p3", "", None]),
)
PLAIN_CELLS = st.tuples(
    st.sampled_from(IMAGES[:9]),
    st.just("MRI"),
    st.sampled_from(["cyst", "tumor", "normal"]),
    st.sampled_from(["disease", "grade"]),
    st.just(""),
)


@pytest.fixture(scope="module")
def with_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    for i in range(8):
        Image.effect_noise((24, 24), 10 + i).save(root / f"{i}.png")
    (root / "cut.png").write_bytes((root / "1.png").read_bytes()[:200])
    (root / "text.png").write_text("no image")
    return root


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.one_of(CELLS, PLAIN_CELLS), min_size=1, max_size=60),
    short=st.lists(st.integers(0, 4), max_size=3),
    images=st.sampled_from(["decode", "none"]),
    min_images=st.integers(1, 3),
    choices=st.integers(2, 4),
    split=st.sampled_from(["published", "by_image", "by_patient"]),
    questions=st.sampled_from(["all", "closed", "open"]),
    seed=st.integers(0, 3),
)
def test_every_row_of_any_table_is_in_exactly_one_count(
    with_images: Path, rows: list[tuple[str | None, ...]], short: list[int], **settings: Any
) -> None:
    lines = [",".join("" if cell is None else cell for cell in row) for row in rows]
    lines += [",".join(["0.png"] * length) for length in short]  # too few cells, or an empty line
    table = f"{uuid.uuid4().hex}.csv"
    (with_images / table).write_text("\n".join([",".join(COLUMNS), *lines]))
    spec = SPEC | {"root": str(with_images), "table": table} | settings
    try:
        loaded = data.read(spec, with_images / "cache")
    except ValueError as error:  # of the whole table
        if not re.search(REFUSED, str(error)):
            raise
        event("refused")
        return
    finally:
        (with_images / table).unlink()
    assert sum(loaded.counts.values()) == sum(bool(line) for line in lines)
    places = [checks.file_and_row(sample)[1] for sample in loaded.samples]
    places += [row.row for row in (*loaded.bad_rows, *loaded.left_out)]
    assert sorted(places) == [n for n, line in enumerate(lines, 2) if line]
    for side in ("train", "test"):
        for options, right in sets_of([s for s in loaded.samples if s.split == side]).items():
            assert set(right) == options
            assert len(set(right.values())) == 1
    if settings["images"] == "decode":
        assert not {s.image.name for s in loaded.samples} & {"cut.png", "text.png", "gone.png"}


def test_counts_name_each_way_a_row_is_lost(with_images: Path) -> None:
    rows = [
        *((f"{i}.png", "MRI", "cyst" if i < 5 else "tumor", "disease", "") for i in range(8)),
        ("cut.png", "MRI", "cyst", "disease", ""),
        ("0.png", "MRI", "cyst", "disease", ""),
        ("1.png", "MRI", "rare", "disease", ""),
        ("1.png", "CT", "only", "disease", ""),
        ("1.png", "PET", "cyst", "disease", ""),
        ("1.png", "MRI", "left", "side", ""),
    ]
    loaded = read(
        write(with_images, rows), cache=with_images / "cache", images="decode", split="by_image"
    )
    counts = loaded.counts
    assert counts.pop("train") + counts.pop("test") + counts.pop("surplus for balance") == 8
    assert counts == {
        "of a group not in data.ask": 1,
        "bad": 1,
        "unreadable image": 1,
        "repeated": 1,
        "of the only label of their group": 1,
        "of a label too rare": 1,
    }
    (surplus, *_), (*_, other) = (
        [row.reason for row in loaded.left_out if row.count == count]
        for count in ("surplus for balance", "of a group not in data.ask")
    )
    assert "no image with another label is left" in surplus
    assert other == "group 'side' is not in data.ask"


def test_an_unreadable_image_leaves_the_sets_balanced(with_images: Path) -> None:
    """Removed after balancing, it would leave an option that is right less often than the other."""
    names = [f"{i}.png" for i in range(7)] + ["cut.png"]
    rows = [(n, "MRI", "ab"[i % 2], "disease", "") for i, n in enumerate(names)]
    samples = read(
        write(with_images, rows), cache=with_images / "cache", images="decode", test_share=0.0
    ).samples
    assert len(samples) == 6
    assert sets_of(samples) == {frozenset("ab"): Counter(a=3, b=3)}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"diseases": ASKED}, r"no row of the group 'diseases'.* did you mean 'disease'\?"),
        ({"Disease": ASKED}, r"did you mean 'disease'\?"),
        ({"diseases": ASKED | {"optional": True}, "side": ASKED}, r"did you mean 'disease'\?"),
        (
            {"disease": ASKED, "stage": ASKED},
            r"no row of the groups \['stage'\].*'disease', 'side'",
        ),
        ({"stage": ASKED | {"optional": True}}, r"no row of the groups \['stage'\]"),
    ],
)
def test_a_group_that_the_table_does_not_have_is_refused(
    ask: dict[str, Any], message: str, tmp_path: Path
) -> None:
    rows = [*uneven(), ("x.png", "MRI", "left", "side", "")]
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, rows), ask=ask)


def test_an_optional_group_need_not_be_there(tmp_path: Path) -> None:
    ask = {"disease": ASKED, "stage": ASKED | {"optional": True}}
    assert read(write(tmp_path, uneven()), ask=ask).samples


def test_braces_in_a_question_and_more_than_eight_choices(tmp_path: Path) -> None:
    labels = [f"stage {letter}" for letter in "abcdefghij"]
    rows = [
        (f"{i}.png", "CT", label, "disease", f"p{i}")
        for i, label in enumerate(label for label in labels for _ in range(6))
    ]
    ask = {"disease": {"task": "grading", "question": "Which {I-IV} has this {modality}?"}}
    samples = read(write(tmp_path, rows), ask=ask, choices=10).samples
    assert {s.question for s in samples} == {"Which {I-IV} has this CT?"}
    assert max(len(s.options) for s in samples) == 10
    for choices in (1, 27):
        with pytest.raises(ValueError, match=rf"data\.choices={choices}; .* 2 to 26 options"):
            read(tmp_path, ask=ask, choices=choices)


def test_a_table_of_another_encoding_is_read_with_the_one_that_is_named(tmp_path: Path) -> None:
    rows = [(f"{i}.png", "CT", "a\u2026" if i % 2 else "b", "disease", f"p{i}") for i in range(12)]
    text = (write(tmp_path, rows) / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_bytes(text.encode("cp1252"))
    with pytest.raises(ValueError, match=r"set data\.encoding=cp1252"):
        read(tmp_path, ask={"disease": ASKED})
    samples = read(tmp_path, ask={"disease": ASKED}, encoding="cp1252").samples
    assert "a\u2026" in {s.answer_text for s in samples}


@pytest.mark.parametrize(
    ("written", "name"),
    [("7.0", "7"), (" 7 ", "7"), ("07", "07"), ("7.05", "7.05"), ("p7.0", "p7.0"), ("NA", None)]
    + [(blank, None) for blank in ("", "nan", "N/A", "<NA>", "None", "unknown", "-", None)],
)
def test_a_patient_has_one_name_and_a_blank_none(written: str | None, name: str | None) -> None:
    assert rows.patient(written) == name


def test_a_word_for_no_patient_makes_no_group(tmp_path: Path) -> None:
    named = [(*row[:4], "NA") for row in uneven()]
    samples = read(write(tmp_path, named), ask={"disease": ASKED}).samples
    assert {s.patient for s in samples} == {None}


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


def balanced(**changes: str) -> str:
    """A table of twelve images; `changes` are texts of its fourth row and what they become."""
    rows = [f"{i}.png,CT,{'cyst' if i % 2 else 'tumor'},disease,p{i}" for i in range(12)]
    for old, new in changes.items():
        rows[3] = rows[3].replace(old, new)
    return "\n".join([",".join(COLUMNS), *rows]) + "\n"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (balanced().replace("modality,label", "label,label", 1), "no column"),
        (balanced().replace("patient_or_source_id", "label", 1), "no column"),
        (balanced().replace(",label,", ",label,label,", 1), "2 columns 'label'; rename"),
        (balanced(cyst='"cyst'), "up to line 13: .*is a quotation mark in a cell"),
        (balanced(cyst='"' + "x" * 140_000 + '"'), "up to line .*field larger"),
        (gzip.compress(balanced().encode()), "a gzip archive; unpack it"),
        (b"PK\x03\x04\x14\0", "a workbook of Excel or a zip archive; save it as CSV"),
        (b"PAR1\x15", "a Parquet file, not text"),
    ],
)
def test_a_file_that_is_no_proper_table_is_named(
    tmp_path: Path, table: str | bytes, words: str
) -> None:
    (tmp_path / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(ValueError, match=words):
        read(tmp_path, ask={"disease": ASKED})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cyst": "cyst, left"}, r"cells beyond the last column \(p3\).* Put that cell in"),
        ({"3.png": "https://host/3.png"}, "is an address; download it"),
        ({"3.png": "C:\\3.png"}, "leaves the data root"),
        ({"cyst": '"cyst, B)tumor"'}, "not lettered in sequence"),
    ],
)
def test_a_row_that_would_be_read_as_another_is_bad(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    (tmp_path / "labels.csv").write_text(balanced(**changes))
    (bad,) = read(tmp_path, ask={"disease": ASKED}).bad_rows
    assert bad.row == 5
    assert re.search(words, bad.problem)


def test_what_no_reader_sees_makes_no_other_label_column_or_path(tmp_path: Path) -> None:
    table = balanced(cyst="cyst\N{ZERO WIDTH SPACE}").replace("image,mod", "image , mod", 1)
    table = table.replace("tumor", "o\N{COMBINING DIAERESIS}dem", 2).replace("tumor", "ödem")
    (tmp_path / "labels.csv").write_text(table.replace("5.png", "sub\\5.png").replace(",p7", ""))
    loaded = read(tmp_path, ask={"disease": ASKED})
    assert {s.answer_text for s in loaded.samples} == {"cyst", "ödem"}
    assert len(loaded.samples) == 12
    assert tmp_path / "sub/5.png" in {s.image for s in loaded.samples}


@pytest.mark.parametrize("separator", ["tab", "\\t", "\t"])
def test_a_table_with_tabs_is_read_as_it_can_be_typed(tmp_path: Path, separator: str) -> None:
    (tmp_path / "labels.csv").write_text(balanced().replace(",", "\t"))
    with pytest.raises(ValueError, match=r"is its separator tab\? set \"data\.separator='tab'\""):
        read(tmp_path, ask={"disease": ASKED})
    assert len(read(tmp_path, ask={"disease": ASKED}, separator=separator).samples) == 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"columns": {"image": "image"}}, r"data\.columns\.modality has no value"),
        ({"columns": SPEC["columns"] | {"img": "x"}}, r"data\.columns\.img is unknown; known"),
        ({"ask": {"disease": None}}, r"data\.ask\.disease=None; needs a task and a question"),
        ({"ask": {"disease": ASKED | {"task": "sick"}}}, r"data\.ask\.disease\.task='sick'; known"),
        ({"separator": ";;"}, r"data\.separator=';;'; needs one character"),
        ({"encoding": "utf-9"}, r"data\.encoding='utf-9' is no encoding"),
        ({"table": "none.csv"}, r"none\.csv: no such file"),
    ],
)
def test_settings_of_a_table_that_cannot_be_are_named(
    tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    (tmp_path / "labels.csv").write_text(balanced())
    with pytest.raises(ValueError, match=words):
        read(tmp_path, **{"ask": {"disease": ASKED}, **settings})  # pyright: ignore


def test_rows_are_counted_as_an_editor_counts_lines(tmp_path: Path) -> None:
    table = write(tmp_path, [("a.png", "CT", "two\nlines", "disease", "p"), *uneven()])
    with (table / "labels.csv").open("a") as lines:
        lines.write("\n../b.png,CT,cyst,disease,p\n")
    (bad,) = (b for b in read(table).bad_rows if "leaves" in b.problem)
    line = (table / "labels.csv").read_text().splitlines()[bad.row - 1]
    assert line.startswith("../b.png")


def test_an_absolute_path_below_the_root_is_that_of_an_image(tmp_path: Path) -> None:
    here = read(write(tmp_path, uneven()))
    absolute = [(f"{tmp_path}/{row[0]}", *row[1:]) for row in uneven()]
    loaded = read(write(tmp_path, absolute))
    assert loaded == here
    (tmp_path / "below").mkdir()
    bad = read(write(tmp_path / "below", absolute)).bad_rows
    assert len(bad) == len(absolute)
    assert "leaves the data root" in bad[0].problem


def test_a_missing_column_is_named_with_its_key(tmp_path: Path) -> None:
    table = write(tmp_path, uneven()) / "labels.csv"
    table.write_text(table.read_text().replace("patient_or_source_id", "case").replace("label", ""))
    with pytest.raises(ValueError, match=r"no column \['label', 'label_group', 'patient'\]"):
        read(tmp_path)
    columns = SPEC["columns"] | {"label": "", "group": "_group"}
    with pytest.raises(ValueError, match=r"set data\.columns\.patient=null, or the name"):
        read(tmp_path, columns=columns | {"label": "image"})


@pytest.mark.parametrize("name", ["patient", "patient_id", "patient_or_source_id"])
def test_patients_stand_in_a_column_of_any_usual_name(tmp_path: Path, name: str) -> None:
    table = write(tmp_path, uneven()) / "labels.csv"
    table.write_text(table.read_text().replace(COLUMNS[-1], name))
    assert {s.patient for s in read(tmp_path).samples} <= {row[-1] for row in uneven()}
    assert {
        s.patient for s in read(tmp_path, columns=SPEC["columns"] | {"patient": None}).samples
    } == {None}


def test_rows_of_a_fold_for_validation_are_a_side_or_left_out(tmp_path: Path) -> None:
    folds = ("train", "Val", "test")
    labels = ("cyst", "tumor")
    rows = [
        (f"{i}.png", "MRI", labels[i % 2], "disease", f"p{i}", folds[i // 2 % 3]) for i in range(24)
    ]
    with (tmp_path / "labels.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([(*COLUMNS, "fold"), *rows])
    settings = {"columns": SPEC["columns"] | {"split": "fold"}, "ask": {"disease": ASKED}}
    loaded = read(tmp_path, **settings)
    assert Counter(s.split for s in loaded.samples) == {"train": 8, "test": 8}
    assert len(loaded.left_out) == 8
    spec = SPEC | {"root": str(tmp_path), "images": "none"} | settings
    published = data.read(spec, tmp_path / "cache", Validation("in_domain", source="published"))
    sides = Counter(s.split for s in published.samples)
    assert sides == {"train": 8, "test": 8, "validation": 8}
    assert not loaded.remarks
    (remark,) = read(tmp_path, **settings, split="by_patient").remarks
    assert str(remark).startswith(
        "! labels.csv: data.split=by_patient overrules the split of the column 'fold': train has "
    )
    assert " of its 8 test rows, " in str(remark)
    assert " of its 8 validation rows, " in str(remark)
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    lines[1] = lines[1].removesuffix("train")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    (bad,) = read(tmp_path, **settings).bad_rows
    assert (bad.row, bad.problem) == (
        *(2, '"fold" is empty; write train, test or val, or take the row out'),
    )
    assert not read(tmp_path, **settings, split="by_patient").bad_rows


def test_columns_in_other_letters_are_read_and_said(tmp_path: Path) -> None:
    expected = read(write(tmp_path, uneven(12))).samples
    text = (tmp_path / "labels.csv").read_text()
    header = "Image,MODALITY,Label,Label Group,Patient-ID"
    (tmp_path / "labels.csv").write_text(text.replace(",".join(COLUMNS), header, 1))
    loaded = read(tmp_path)
    assert loaded.samples == expected
    (remark,) = loaded.remarks
    assert str(remark) == (
        "labels.csv: columns that are read under our names: Image as image, MODALITY as modality, "
        "Label as label, Label Group as label_group, Patient-ID as patient"
    )
