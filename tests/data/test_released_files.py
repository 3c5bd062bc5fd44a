"""The annotation files that authors released, counted by others; and what no answer decides."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_releases import write

from medreason import data
from medreason.config import Config
from medreason.data.audit import audit, warnings
from medreason.data.rows import OF_VALIDATION, Loaded
from medreason.execution.request import RunRequest, run_request
from medreason.runs.outcomes import NoDataError
from medreason.samples import Sample

RELEASED = Path(__file__).parents[2].parent / "shared/data/released"


def spec(name: str, root: Path, **more: object) -> dict[str, Any]:
    return {
        "_target_": f"medreason.data.{name}.read", "root": str(root), "images": "none", **more,
    }  # fmt: skip


def released(name: str, **more: object) -> Loaded:
    if not (RELEASED / name).is_dir():
        pytest.skip(f"no released files at {RELEASED / name}")
    return data.read(spec(name, RELEASED / name, **more), Path("unused"))


# Rows of train, rows of test, closed of test, test rows about trained images, such images.
PUBLISHED = {
    ("vqa_rad", ""): (1797, 451, 272, 446, 202),
    ("slake", "en"): (4918, 1061, 416, 0, 0),
    ("slake", "both"): (9834, 2094, 836, 1517, 142),
    ("vqa_med_2019", ""): (12_792, 500, 64, 0, 0),
}


def audited(loaded: Loaded) -> dict[str, Any]:
    """Without the image files, which are not here."""
    return audit(loaded, "digest", {s.image: str(s.image) for s in loaded.samples})


@pytest.mark.parametrize(("name", "language"), PUBLISHED)
def test_released_rows_are_as_many_as_others_counted(name: str, language: str) -> None:
    loaded = released(name, **({"language": language} if language else {}))
    report = audited(loaded)
    train, test, closed, test_rows, images = PUBLISHED[name, language]
    assert (loaded.counts["train"], loaded.counts["test"]) == (train, test)
    assert report["answer_types"]["test closed"] == closed
    assert report["answer_types"]["test open"] == test - closed
    leak = report["leakage"]["all"]
    assert (leak["test_rows"], leak["shared_images"]) == (test_rows, images)
    assert loaded.bad_rows == []


@pytest.mark.parametrize(("name", "language"), PUBLISHED)
def test_evaluation_asks_every_released_question(
    name: str, language: str, composed: Callable[..., Config]
) -> None:
    loaded = released(name, **({"language": language} if language else {}))
    config = composed("modality=all", "task=all", "evaluation=full")
    assert len(data.tested_on(config, loaded.samples)) == PUBLISHED[name, language][1]
    assert len(data.trained_on(config, loaded.samples)) == PUBLISHED[name, language][0]


def test_blemishes_of_the_releases_are_dealt_with_and_counted() -> None:
    assert released("slake").counts == {
        "train": 4918, "test": 1061, "released without an answer": 1,
        "of another data.language": 6995, OF_VALIDATION: 1053,
    }  # fmt: skip
    remarks = {remark.row: remark.text for remark in released("vqa_rad").remarks}
    assert remarks == {
        2020: "question_type ATRIB read as ATTRIB",
        2213: "question_type PRSE read as PRES",
    }


def test_validation_rows_that_are_not_asked_are_counted() -> None:
    counted = {name: released(name).counts.get(OF_VALIDATION) for name in ("slake", "vqa_med_2019")}
    assert counted == {"slake": 1053, "vqa_med_2019": 2000}


def test_vqa_med_has_yes_and_no_in_balance_and_alternatives_as_released() -> None:
    loaded = released("vqa_med_2019")
    tests = [s for s in loaded.samples if s.split == "test"]
    assert Counter(s.answer_text for s in tests if s.options) == {"Yes": 32, "No": 32}
    assert sum("#" in s.answer for s in tests) == 0
    assert sum(bool(s.alternatives) for s in tests) == 12 + 20


def test_chinese_yes_and_no_are_options() -> None:
    loaded = released("slake", language="zh")
    closed = [s for s in loaded.samples if s.closed and s.split == "test"]
    assert len(closed) == 420
    assert sum(s.options == ("是", "否") for s in closed) == 347


def test_no_yes_no_set_is_called_answered_by_its_options() -> None:
    for name in ("slake", "vqa_med_2019"):
        assert not any("option strings" in text for text in warnings(audited(released(name))))


# A small release of each reader, with these answers in the order of its rows.
ANSWERS = ["Yes", "no", "left lung", "CT", "mr - flair", "xr - plain film", "5", "yes"]


def vqa_rad(root: Path, answers: list[str]) -> dict[str, Any]:
    questions = ["Is this an MRI?", "Was this a CT or an MRI?", "What does this CT show?", "Where?"]
    rows = [
        {
            "image_name": f"synpic{i % 3}.jpg", "image_organ": ("HEAD", "CHEST", "HEAD")[i % 3],
            "question": f"{questions[i % 4]} {i}", "answer": answer, "question_type": "MODALITY",
            "phrase_type": ("para", "test_para")[i % 2], "answer_type": ("OPEN", "CLOSED")[i % 2],
        }
        for i, answer in enumerate(answers)
    ]  # fmt: skip
    write(root / "VQA_RAD Dataset Public.json", rows)
    return spec("vqa_rad", root)


def slake(root: Path, answers: list[str]) -> dict[str, Any]:
    rows = [
        {
            "img_name": f"xmlab{i}/source.jpg", "q_lang": "en", "question": f"What? {i}",
            "answer": answer, "modality": ("CT", "MRI")[i % 2], "content_type": "Modality",
            "answer_type": "OPEN",
        }
        for i, answer in enumerate(answers)
    ]  # fmt: skip
    write(root / "train.json", rows[:4])
    write(root / "test.json", rows[4:])
    return spec("slake", root)


def path_vqa(root: Path, answers: list[str]) -> dict[str, Any]:
    rows = [
        {"image": f"{i:04}", "question": f"What? {i}", "answer": a} for i, a in enumerate(answers)
    ]
    write(root / "qas/train/train_qa.pkl", pickle.dumps(rows[:4]))
    write(root / "qas/test/test_qa.pkl", pickle.dumps(rows[4:]))
    return spec("path_vqa", root)


def vqa_med_2019(root: Path, answers: list[str]) -> dict[str, Any]:
    folder = root / "ImageClef-2019-VQA-Med-Training/QAPairsByCategory"
    questions = ["is this a ct?", "what is wrong in this mri?", "what modality?", "which organ?"]
    for i, name in enumerate(("C1_Modality", "C2_Plane", "C3_Organ", "C4_Abnormality")):
        write(folder / f"{name}_train.txt", f"synpic{i % 2}|{questions[i]}|{answers[i]}\n")
    lines = [f"synpic{i}|modality|{questions[i % 4]}|{answers[i]}\n" for i in range(4, 8)]
    write(root / "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt", "".join(lines))
    return spec("vqa_med_2019", root)


def mevf(root: Path, answers: list[str]) -> dict[str, Any]:
    vqa_rad(root, answers)
    rows = json.loads((root / "VQA_RAD Dataset Public.json").read_text())
    (root / "VQA_RAD Dataset Public.json").unlink()
    write(root / "trainset.json", rows[:4])
    write(root / "testset.json", rows[4:])
    return spec("vqa_rad", root)


@pytest.mark.parametrize("reader", [mevf, slake, path_vqa, vqa_med_2019])
def test_a_release_of_one_side_is_evaluated_on_or_split(
    reader: Callable[[Path, list[str]], dict[str, Any]],
    composed: Callable[..., Config],
    tmp_path: Path,
) -> None:
    def request(side: str, *words: str) -> RunRequest:
        values = reader(tmp_path / side, ANSWERS)
        for file in (tmp_path / side).rglob("*"):
            if file.is_file() and side not in file.relative_to(tmp_path / side).as_posix().lower():
                file.unlink()
        name = values["_target_"].split(".")[2]
        root = f"data.root={tmp_path / side}"
        return run_request(composed(f"data={name}", root, "data.images=none", *words))

    assert len(request("test", "method=base").test_samples) == 4
    with pytest.raises(NoDataError, match="4 rows and none in train; bring its train files"):
        request("test", "method=sft")
    remedy = r"4 rows and none in test; bring its test files, or set data\.split=by_image"
    with pytest.raises(NoDataError, match=remedy):
        request("train", "method=sft")
    if reader in (slake, path_vqa):  # of the others, four rows are about two or three images
        steps = ("method.prompts_per_step=1", "hardware.per_device_prompts=1")
        split = request("train", "method=sft", "data.split=by_image", *steps)
        assert 0 < len(split.test_samples) < 4


def silvar_med(root: Path, answers: list[str]) -> dict[str, Any]:
    rows = [
        {"image": f"{i}.jpg", "question": f"What? {i}", "answer": a, "explanation": "It is bright."}
        for i, a in enumerate(answers)
    ]
    write(root / "train.json", rows[:4])
    write(root / "test.json", rows[4:])
    keys = ("image", "question", "answer", "explanation", "modality")
    return spec("silvar_med", root, files={}, keys={key: key for key in keys})


def med_r1(root: Path, answers: list[str]) -> dict[str, Any]:
    options = ", ".join(f"{'ABCDEFGH'[i]}){text}" for i, text in enumerate(sorted({*answers})))
    rows = [
        {"image": f"Images/a/{i}.png", "problem": f"Which? {i} {options}", "solution": answer}
        for i, answer in enumerate(answers)
    ]
    write(root / "CT_train.json", rows[:4])
    write(root / "Modality Recognition_test.json", rows[4:])
    return spec("med_r1", root)


def omnimedvqa(root: Path, answers: list[str]) -> dict[str, Any]:
    texts = sorted({*answers})
    rows = [
        {
            "dataset": "a", "image_path": f"Images/a/{i}.png", "question": f"Which? {i}",
            "gt_answer": answer, "modality_type": ("CT", "MRI")[i % 2], "option_C": "no",
            "question_type": "Modality Recognition", "option_A": texts[0], "option_B": texts[1],
        }
        | {"option_D": answer}
        for i, answer in enumerate(answers)
    ]  # fmt: skip
    write(root / "a.json", rows)
    return spec("omnimedvqa", root, files=["a.json"])


def hub(root: Path, answers: list[str]) -> dict[str, Any]:
    rows = [
        {"image": f"{i}.png", "question": f"What? {i}", "answer": a, "kind": ("CT", "MRI")[i % 2]}
        for i, a in enumerate(answers)
    ]
    for side, members in (("train", rows[:4]), ("test", rows[4:])):
        (root / "set").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(members), root / f"set/{side}-00000-of-00001.parquet")
    return {
        "_target_": "medreason.data.hub.read", "hub": str(root / "set"), "images": "none",
        "columns": {"modality": "kind"},
    }  # fmt: skip


def labelled_images(root: Path, answers: list[str]) -> dict[str, Any]:
    names = ("image", "modality", "label", "group", "patient", "split")
    rows = [
        (f"{i}.png", ("CT", "MRI")[i % 2], answer, "disease", f"p{i}", "train" if i < 4 else "test")
        for i, answer in enumerate(answers)
    ]
    write(root / "labels.csv", "\n".join(map(",".join, (names, *rows))))
    return spec(
        "labelled_images", root, table="labels.csv", columns={name: name for name in names},
        ask={"disease": {"task": "disease", "question": "Which?"}}, min_images=1,
    )  # fmt: skip


READERS = [
    *(vqa_rad, slake, path_vqa, vqa_med_2019, silvar_med, med_r1, omnimedvqa, hub),
    labelled_images,
]


def facets(samples: list[Sample], root: Path) -> dict[str, tuple[object, ...]]:
    return {
        s.id: (s.modality, s.task, s.source, s.patient, str(s.image).removeprefix(str(root)))
        for s in samples
    }


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / f"{i}" for i in range(1000))


@pytest.mark.parametrize("reader", READERS)
def test_answers_turned_round_change_no_facet(
    reader: Callable[[Path, list[str]], dict[str, Any]], folders: Iterator[Path]
) -> None:
    results = []
    for seed in range(6):
        answers, root = list(ANSWERS), next(folders)
        random.Random(seed).shuffle(answers)
        loaded = data.read(reader(root, answers), root.parent / "cache" / root.name)
        assert sum(loaded.counts.values()) == len(ANSWERS), loaded.counts
        results.append(facets(loaded.samples, root))
    if reader is not labelled_images:  # there labels decide which rows make a set
        assert all(len(result) == len(ANSWERS) for result in results)
    every: dict[str, set[tuple[object, ...]]] = {}
    for result in results:
        for name, values in result.items():
            every.setdefault(name, set()).add(values)
    assert every
    assert all(len(values) == 1 for values in every.values())


VALUES = st.sampled_from([*ANSWERS, "", None, 3, 2.5, ["a"], {"a": 1}, "<|im_end|>", "B", "是的"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {"image": VALUES, "problem": VALUES, "solution": VALUES},
                optional={"modality": VALUES, "task": VALUES, "source": VALUES},
            ),
            VALUES,
        ),
        min_size=1,
        max_size=20,
    ),
    split=st.sampled_from(["published", "by_image", "low_data"]),
    questions=st.sampled_from(["all", "closed", "open"]),
)
@pytest.mark.parametrize("reader", ["med_r1", "silvar_med", "slake", "vqa_rad"])
def test_any_row_of_a_file_is_in_exactly_one_count(
    reader: str, rows: list[Any], split: str, questions: str, tmp_path: Path
) -> None:
    names = {
        "med_r1": ("CT_test.json", {}),
        "silvar_med": ("test.json", {"files": {"test.json": "test"}}),
        "slake": ("test.json", {"img_name": "image", "question": "problem", "answer": "solution"}),
        "vqa_rad": ("testset.json", {"question": "problem", "answer": "solution"}),
    }
    file, renamed = names[reader]
    more: dict[str, Any] = {}
    if reader == "silvar_med":
        keys = {"image": "image", "question": "problem", "answer": "solution"}
        more = renamed | {"keys": keys | {"explanation": "explanation", "modality": "modality"}}
        # A list of questions is as many rows.
        rows = [r for r in rows if not isinstance(r, dict) or r.get("problem") != ["a"]]
    elif renamed:
        extra = {
            "q_lang": "en", "modality": "CT", "content_type": "KG", "image_organ": "HEAD",
            "question_type": "PRES", "phrase_type": "para", "image_name": "a.jpg",
        }  # fmt: skip
        rows = [
            extra | {ours: row[theirs] for ours, theirs in renamed.items()}
            if isinstance(row, dict) and "problem" in row
            else row
            for row in rows
        ]
    if not rows:
        return
    write(tmp_path / file, rows)
    loaded = data.read(
        spec(reader, tmp_path, split=split, questions=questions, test_share=1.0, **more),
        tmp_path / "cache",
    )
    assert sum(loaded.counts.values()) == len(rows)


def test_another_version_of_a_release_is_named_with_both_counts(tmp_path: Path) -> None:
    name = "Lesion Grading_test.json"
    row = {"image": "a.png", "problem": "Which? A)mild, B)severe", "solution": "A"}
    write(tmp_path / f"Splits/question_type/test/{name}", [row] * 435)
    loaded = data.read(spec("med_r1", tmp_path), Path("unused"))
    assert [str(remark) for remark in loaded.remarks] == [
        f"Splits/question_type/test/{name}: 435 rows, and 436 in the release that papers report "
        "on: another version, whose results do not compare with theirs; download that release, or "
        "name the version with your results"
    ]
    write(tmp_path / f"Splits/question_type/test/{name}", [row] * 436)
    assert not data.read(spec("med_r1", tmp_path), Path("unused")).remarks


@pytest.mark.parametrize("name", ["vqa_rad", "slake", "vqa_med_2019"])
def test_the_released_files_have_the_released_rows(name: str) -> None:
    remarks = released(name).remarks
    assert not [remark for remark in remarks if "another version" in remark.text]
