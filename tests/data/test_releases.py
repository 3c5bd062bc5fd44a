"""Each data set read from ten rows in the layout of its release, and from releases with gaps."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medreason import data
from medreason.config import Config
from medreason.data import omnimedvqa
from medreason.data.rows import Loaded


def read(name: str, root: Path, **more: object) -> Loaded:
    spec = {"_target_": f"medreason.data.{name}.read", "root": str(root), "images": "none"}
    return data.read(spec | more, Path("unused"))


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def omnimedvqa_row(number: int, **changes: object) -> dict[str, Any]:
    released = {
        "dataset": "Chest CT Scan",
        "question_id": f"Chest CT Scan_{number:04}",
        "question_type": "Modality Recognition",
        "question": "What imaging technique was used? ",
        "gt_answer": "CT",
        "image_path": f"Images/Chest CT Scan/test/{number} (1).png",
        "option_A": "Mammogram",
        "option_B": "CT",
        "option_C": "PET, with contrast",
        "modality_type": "CT(Computed Tomography)",
    }
    return released | changes


def omnimedvqa_release(root: Path) -> Path:
    rows = [omnimedvqa_row(i) for i in range(9)]
    named_otherwise = omnimedvqa_row(9, question_type="Other Biological Attributes")
    named_otherwise["modality"] = named_otherwise.pop("modality_type")
    for source in omnimedvqa.SOURCES:
        image = f"Images/{source}/a.png"
        write(
            root / omnimedvqa.FOLDER / f"{source}.json",
            [*rows, named_otherwise] if source == "Chest CT Scan" else
            [omnimedvqa_row(0, dataset=source, image_path=image, option_D="X-Ray")],
        )  # fmt: skip
    return root


def test_omnimedvqa_reads_its_42_files(tmp_path: Path) -> None:
    loaded = read("omnimedvqa", omnimedvqa_release(tmp_path), split="by_image")
    assert len(omnimedvqa.SOURCES) == 42
    assert (len(loaded.samples), loaded.bad_rows) == (51, [])
    chest = [s for s in loaded.samples if s.source == "Chest CT Scan"]
    assert [s.task for s in chest] == ["modality_recognition"] * 9 + ["attributes"]
    assert chest[0].options == ("Mammogram", "CT", "PET, with contrast")
    assert (chest[0].answer, chest[0].modality) == ("B", "ct")
    assert chest[0].image == tmp_path / "Images/Chest CT Scan/test/0 (1).png"
    assert {len(s.options) for s in loaded.samples} == {3, 4}
    assert {s.split for s in loaded.samples} == {"train", "test"}


def test_omnimedvqa_that_is_partly_unpacked_says_what_is_missing(tmp_path: Path) -> None:
    root = omnimedvqa_release(tmp_path)
    for source in ("MIAS", "Yangxi"):
        (root / omnimedvqa.FOLDER / f"{source}.json").unlink()
    with pytest.raises(ValueError, match=r"40 of the 42 files .*missing: .*MIAS\.json, .*Yangxi"):
        read("omnimedvqa", root)
    assert read("omnimedvqa", root, files=[f"{omnimedvqa.FOLDER}/[A-C]*.json"]).samples


def test_omnimedvqa_takes_the_published_split(tmp_path: Path) -> None:
    root = omnimedvqa_release(tmp_path)
    files = [f"{omnimedvqa.FOLDER}/Chest CT Scan.json"]
    problem = "What imaging technique was used? A)Mammogram, B)CT, C)PET, with contrast"
    published = [
        {"image": omnimedvqa_row(i)["image_path"], "problem": problem, "solution": "B"}
        for i in range(10)
    ]
    write(root / "Splits/modality/train/CT_train.json", published[:7])
    write(root / "Splits/modality/test/CT_test.json", published[7:])
    more = {"files": files, "splits_from": ["Splits/modality/*/*.json"], "split": "published"}
    loaded = read("omnimedvqa", root, **more)
    assert [s.split for s in loaded.samples] == ["train"] * 7 + ["test"] * 3
    write(root / "Splits/modality/test/CT_test.json", published[7:9])
    (bad,) = read("omnimedvqa", root, **more).bad_rows
    assert (bad.row, "none of the files of data.splits_from" in bad.problem) == (9, True)
    write(root / "Splits/modality/test/CT_test.json", published[6:])
    with pytest.raises(ValueError, match="puts a question in train that another file puts in test"):
        read("omnimedvqa", root, **more)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"gt_answer": "MRI"}, "\"gt_answer\" 'MRI' is none of the options"),
        ({"option_B": 3}, '"option_B" is 3; needs a text'),
        ({"modality_type": "Endoscopy"}, "'Endoscopy'.*known: ct, mri"),
        ({"image_path": "../a.png"}, "leaves the data root"),
    ],
)
def test_omnimedvqa_names_bad_rows(changes: dict, problem: str, tmp_path: Path) -> None:
    rows = [omnimedvqa_row(0), omnimedvqa_row(1, **changes)]
    write(tmp_path / "some.json", rows)
    with pytest.raises(ValueError, match=rf"1 bad row in(?s:.*)some\.json, row 1: .*{problem}"):
        data.load(
            {
                "_target_": "medreason.data.omnimedvqa.read",
                "root": str(tmp_path),
                "files": ["some.json"],
                "images": "none",
            },
            Path("unused"),
        )


def test_vqa_rad(tmp_path: Path) -> None:
    def row(qid: int, **changes: object) -> dict[str, Any]:
        released = {
            "qid": qid, "phrase_type": "freeform", "image_name": f"synpic{qid}.jpg",
            "image_organ": "CHEST", "question_type": "PRES", "answer_type": "CLOSED ",
            "question": "Is there a nodule?", "answer": "Yes",
        }  # fmt: skip
        return released | changes

    head = {"image_organ": "HEAD", "image_name": "synpic9.jpg"}
    rows = [
        row(0),
        row(1, phrase_type="test_freeform", answer="No "),
        row(
            2,
            phrase_type="test_para",
            question_type="POS, PRES",
            answer="left lung",
            answer_type="OPEN",
        ),
        row(3, image_organ="ABD", question_type="SIZE", answer=3, answer_type="OPEN"),
        row(4, **head, question_type="MODALITY", question="Is this an MRI?"),
        row(
            5,
            **head,
            question="Which organ does this MRI show?",
            question_type="ORGAN",
            answer="brain",
            answer_type="OPEN",
        ),
        row(6, image_organ="HEAD"),
        row(7, question_type="PLANE", answer="PA", answer_type="CLOSED"),
        row(8, answer=None),
        row(9, question=" "),
    ]
    write(tmp_path / "VQA_RAD Dataset Public.json", rows)
    loaded = read("vqa_rad", tmp_path)
    samples = loaded.samples
    assert [bad.row for bad in loaded.bad_rows] == [8, 9]
    assert [s.split for s in samples[:4]] == ["train", "test", "test", "train"]
    assert [s.modality for s in samples] == [
        *["xray"] * 3, "ct", "mri", "mri", "unknown", "xray",
    ]  # fmt: skip
    assert [s.task for s in samples] == [
        "disease", "disease", "anatomy", "attributes", "modality_recognition", "anatomy",
        "disease", "attributes",
    ]  # fmt: skip
    assert [(s.options, s.answer) for s in samples[:4]] == [
        (("Yes", "No"), "A"), (("Yes", "No"), "B"), ((), "left lung"), ((), "3"),
    ]  # fmt: skip
    assert samples[0].image == tmp_path / "VQA_RAD Image Folder/synpic0.jpg"
    assert len(read("vqa_rad", tmp_path, questions="closed").samples) == 5
    assert len(read("vqa_rad", tmp_path, questions="open").samples) == 3


def test_slake(tmp_path: Path) -> None:
    def row(number: int, **changes: object) -> dict[str, Any]:
        released = {
            "img_id": number, "img_name": f"xmlab{number}/source.jpg", "q_lang": "en",
            "question": "Does the picture contain a liver?", "answer": "Yes",
            "location": "Abdomen", "modality": "MRI", "answer_type": "CLOSED",
            "base_type": "vqa", "content_type": "Organ", "triple": ["vhead", "_", "_"], "qid": 1,
        }  # fmt: skip
        return released | changes

    chinese = row(3, q_lang="zh", question="肝脏在哪里?", answer="左边", answer_type="OPEN")
    write(tmp_path / "train.json", [row(0), row(1, modality="X-Ray"), row(2), chinese])
    write(tmp_path / "validate.json", [row(4, content_type="Modality", answer="MRI")])
    tests = [row(5), row(6, content_type="Abnormality"), row(7, content_type="KG"), row(8), row(9)]
    write(tmp_path / "test.json", tests)
    samples = read("slake", tmp_path).samples
    assert Counter(s.split for s in samples) == {"train": 3, "test": 5}
    assert samples[0].image == tmp_path / "imgs/xmlab0/source.jpg"
    assert [s.modality for s in samples[:3]] == ["mri", "xray", "mri"]
    assert [s.task for s in samples[3:6]] == ["anatomy", "disease", "disease"]
    assert len(read("slake", tmp_path, language="both").samples) == 9
    assert [s.answer for s in read("slake", tmp_path, language="zh").samples] == ["左边"]
    assert len(read("slake", tmp_path, validation="train").samples) == 9
    write(tmp_path / "seen.json", [{"image": "imgs/xmlab5/source.jpg"}, {"image": "xmlab9.jpg"}])
    seen = str(tmp_path / "seen.json")
    assert len(read("slake", tmp_path, images_not_in=seen).samples) == 6
    with pytest.raises(ValueError, match=r"data\.language='fr'; known: en, zh, both"):
        read("slake", tmp_path, language="fr")
    (tmp_path / "test.json").unlink()
    (tmp_path / "validate.json").unlink()
    with pytest.raises(ValueError, match=r"1 of the 3 files of the release; missing: validation"):
        read("slake", tmp_path, validation="train")
    (tmp_path / "train.json").unlink()
    with pytest.raises(ValueError, match=r"0 of the 2 files .*missing: train\.json, test\.json"):
        read("slake", tmp_path)


def test_path_vqa(tmp_path: Path) -> None:
    def row(name: str, number: int, answer: str = "yes") -> dict[str, str]:
        return {"image": f"{name}_{number:04}", "question": "what is shown?", "answer": answer}

    for name, count in (("train", 5), ("val", 2), ("test", 3)):
        rows = [row(name, i, "no" if i else "liver") for i in range(count)]
        write(tmp_path / f"qas/{name}/{name}_qa.pkl", pickle.dumps(rows))
    samples = read("path_vqa", tmp_path).samples
    assert Counter(s.split for s in samples) == {"train": 5, "test": 3}
    assert (samples[0].options, samples[0].answer, samples[1].answer) == ((), "liver", "B")
    assert samples[0].image == tmp_path / "images/train/train_0000.jpg"
    assert {s.cell for s in samples} == {("microscopy", "attributes")}
    assert len(read("path_vqa", tmp_path, validation="test").samples) == 10
    write(tmp_path / "qas/test/test_qa.pkl", pickle.dumps([Path("runs a program")]))
    with pytest.raises(ValueError, match=r"test_qa\.pkl: not a pickled list .*asks for pathlib"):
        read("path_vqa", tmp_path)


def test_vqa_med_2019(tmp_path: Path) -> None:
    training = tmp_path / "ImageClef-2019-VQA-Med-Training/QAPairsByCategory"
    pairs = {
        "C1_Modality": "synpic1|was the ct taken with contrast?|no\n"
        "synpic2|what type of image is this?|us - ultrasound\nsynpic3|is this an mri?|no\n",
        "C2_Plane": "synpic1|what plane is shown?|axial\nsynpic4|what plane is the x-ray?|pa\n",
        "C3_Organ": "synpic1|what organ is this?|skull and contents\n",
        "C4_Abnormality": "synpic1|is this normal?|no\n\nbroken line\n",
    }
    for name, text in pairs.items():
        write(training / f"{name}_train.txt", text)
    tests = (
        "synpic5|modality|is this a t1, t2 or flair image?|mr - flair\n"
        "synpic6|organ|what organ?|(left) lung#chest\n"
    )
    write(tmp_path / "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt", tests)
    loaded = read("vqa_med_2019", tmp_path)
    samples = loaded.samples
    (bad,) = loaded.bad_rows
    assert (bad.row, "'broken line' is not of the form" in bad.problem) == (1, True)
    assert [s.task for s in samples] == [
        *["modality_recognition"] * 3, *["attributes"] * 2, "anatomy", "disease",
        "modality_recognition", "anatomy",
    ]  # fmt: skip
    modalities = {s.image.stem: s.modality for s in samples}
    assert modalities == {
        "synpic1": "ct", "synpic2": "unknown", "synpic3": "unknown", "synpic4": "xray",
        "synpic5": "mri", "synpic6": "unknown",
    }  # fmt: skip
    folder = tmp_path / "ImageClef-2019-VQA-Med-Training/Train_images"
    assert samples[0].image == folder / "synpic1.jpg"
    assert [s.split for s in samples] == ["train"] * 7 + ["test"] * 2
    with pytest.raises(ValueError, match=r"missing: .*C1_Modality_val\.txt"):
        read("vqa_med_2019", tmp_path, validation="train")
    write(training / "C3_Organ_train.txt", "synpic1|où?|foie\n".encode("latin-1"))
    assert (samples[-1].answer, samples[-1].alternatives) == ("(left) lung", ("lung", "chest"))
    with pytest.raises(ValueError, match=r"C3_Organ_train\.txt: not utf-8.*data\.encoding=cp1252"):
        read("vqa_med_2019", tmp_path)
    assert read("vqa_med_2019", tmp_path, encoding="latin-1").samples[5].question == "où?"


def test_silvar_med(tmp_path: Path) -> None:
    row = {
        "image": "xmlab102.jpg",
        "question": "Which abnormality is shown? A)Edema, B)Nodule",
        "answer": "Nodule",
        "explanation": "A round opacity in the left lung.",
        "modality": "X-Ray",
    }
    write(tmp_path / "train.json", [row] * 8)
    open_one = row | {"question": "Is the lung healthy?", "answer": "No"}
    write(tmp_path / "test.json", [open_one, row | {"explanation": ""}])
    files = {"train.json": "train", "test.json": "test"}
    keys = {key: key for key in row}
    loaded = read("silvar_med", tmp_path, files=files, keys=keys)
    assert [(bad.file, bad.row) for bad in loaded.bad_rows] == [("test.json", 1)]
    first, last = loaded.samples[0], loaded.samples[-1]
    assert (first.options, first.answer) == (("Edema", "Nodule"), "B")
    assert first.explanation == "A round opacity in the left lung."
    assert (first.cell, first.split) == (("xray", "disease"), "train")
    assert (last.options, last.answer) == (("Yes", "No"), "B")


def test_a_set_of_the_hub_is_read_from_its_parquet_files(tmp_path: Path) -> None:
    def image(number: int) -> dict[str, Any]:
        content = io.BytesIO()
        Image.effect_noise((16, 16), number + 1).save(content, "PNG")
        return {"bytes": content.getvalue(), "path": f"{number}.png"}

    pictures = [image(i) for i in range(4)]
    for name, numbers in (("train", (0, 1, 1, 2)), ("validation", (3,)), ("test", (2,))):
        rows = [{"image": pictures[i], "question": "what?", "answer": "yes"} for i in numbers]
        (tmp_path / "set/data").mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(rows), tmp_path / f"set/data/{name}-00000-of-00001.parquet"
        )
    spec = {"_target_": "medreason.data.hub.read", "hub": str(tmp_path / "set")}
    more = {"modality": "microscopy", "task": "attributes"}
    samples = data.load(spec | more, tmp_path / "cache")
    assert Counter(s.split for s in samples) == {"train": 4, "test": 1}
    assert len({s.image for s in samples}) == 3  # equal content is one image, whatever its row
    assert samples[-1].image in {s.image for s in samples if s.split == "train"}
    assert {(s.options, s.answer, *s.cell) for s in samples} == {
        (("Yes", "No"), "A", "microscopy", "attributes")
    }
    with pytest.raises(ValueError, match=r"data\.hub='nobody/nothing' cannot be loaded"):
        data.load(spec | {"hub": "nobody/nothing"}, tmp_path / "cache")


def mevf_row(qid: int, **changes: object) -> dict[str, Any]:
    return {
        "qid": qid, "phrase_type": "freeform", "image_name": f"synpic{qid}.jpg",
        "image_organ": "CHEST", "question_type": "PRES", "answer_type": "CLOSED",
        "question": "Is there a nodule?", "answer": "yes",
    } | changes  # fmt: skip


def test_vqa_rad_as_mevf_splits_it(tmp_path: Path) -> None:
    write(tmp_path / "testset.json", [mevf_row(1)])
    write(tmp_path / "trainset.json", [mevf_row(2), mevf_row(3, phrase_type="frame")])
    (tmp_path / "images").mkdir()
    samples = read("vqa_rad", tmp_path).samples
    assert [s.split for s in samples] == ["train", "train", "test"]
    assert samples[-1].image == tmp_path / "images/synpic1.jpg"
    (tmp_path / "trainset.json").unlink()
    alone = read("vqa_rad", tmp_path)
    assert [s.split for s in alone.samples] == ["test"]
    assert "nothing to train on" in str(alone.remarks[0])
    (tmp_path / "testset.json").rename(tmp_path / "VQA_RAD Dataset Public.json")
    with pytest.raises(ValueError, match=r"no row is of the test .*testset\.json: rename it"):
        read("vqa_rad", tmp_path)


def test_misspelt_types_are_read_and_unknown_ones_named(tmp_path: Path) -> None:
    rows = [mevf_row(1, question_type="PRSE, POS", phrase_type="test_para"), mevf_row(2)]
    write(tmp_path / "VQA_RAD Dataset Public.json", [*rows, mevf_row(3, question_type="XYZ")])
    loaded = read("vqa_rad", tmp_path)
    assert [s.task for s in loaded.samples] == ["disease", "disease"]
    assert [str(r) for r in loaded.remarks[:-1]] == [
        "VQA_RAD Dataset Public.json, row 0: question_type PRSE read as PRES"
    ]
    assert "is 'XYZ'; known: PRES" in loaded.bad_rows[0].problem


def test_slake_without_training_file_or_answer(tmp_path: Path) -> None:
    row = {
        "img_name": "xmlab1/source.jpg", "q_lang": "zh", "question": "图里有脾脏吗?",
        "answer": "有", "modality": "CT", "answer_type": "CLOSED", "content_type": "Organ",
    }  # fmt: skip
    write(tmp_path / "test.json", [row, row | {"answer": ""}, row | {"q_lang": "en"}])
    loaded = read("slake", tmp_path, language="zh")
    assert (loaded.samples[0].options, loaded.samples[0].answer) == (("是", "否"), "A")
    assert loaded.counts == {
        "train": 0, "test": 1, "released without an answer": 1, "of another data.language": 1,
    }  # fmt: skip
    open_row = row | {"answer": "无", "answer_type": "OPEN"}
    write(tmp_path / "train.json", [open_row])
    assert read("slake", tmp_path, language="zh").samples[0].options == ()


def test_contradicting_questions_are_left_out_before_images_are_read(tmp_path: Path) -> None:
    def row(name: str, answer: str) -> dict[str, str]:
        return {"image": name, "question": "Is tonsil present?", "answer": answer}

    train = [row("a", "yes"), row("a", "no"), row("b", "yes"), row("c", "yes")]
    write(tmp_path / "qas/train/train_qa.pkl", pickle.dumps(train))
    write(tmp_path / "qas/test/test_qa.pkl", pickle.dumps([row("d", "no")]))
    spec = {"_target_": "medreason.data.path_vqa.read", "root": str(tmp_path), "images": "none"}
    data._load.cache_clear()
    assert len(data.load(spec, tmp_path / "cache")) == 3
    assert data.row_counts(spec, tmp_path / "cache") == {"train": 2, "test": 1, "contradicting": 2}
    assert data.read(spec, tmp_path / "cache").counts["contradicting"] == 2
    # There are no images at all: the error comes first.
    strict = spec | {"contradictions": "error", "images": "decode"}
    with pytest.raises(ValueError, match=r"row 0 and .*row 1 disagree on 'Is tonsil present\?"):
        data.load(strict, tmp_path / "cache")


def test_the_published_test_stays_whole_where_training_contradicts_it(tmp_path: Path) -> None:
    write(tmp_path / "trainset.json", [mevf_row(1), mevf_row(2)])
    write(tmp_path / "testset.json", [mevf_row(1, answer="no")])
    spec = {"_target_": "medreason.data.vqa_rad.read", "root": str(tmp_path), "images": "none"}
    data._load.cache_clear()
    samples = data.load(spec, tmp_path / "cache")
    assert [(s.split, s.answer_text) for s in samples] == [("train", "Yes"), ("test", "No")]


def test_silvar_med_from_the_command_line(composed: Callable[..., Config], tmp_path: Path) -> None:
    rows = [
        {"img_name": "xmlab7_1.jpg", "question": "Is it normal?", "answer": "No. It is opaque."},
        {
            "img_name": "xmlab8.jpg", "question": ["What?", "Where?"],
            "answer": ["A mass. It is bright.", "Left lobe."],
        },
        {"img_name": "xmlab8.jpg", "question": ["What?"], "answer": ["a", "b"]},
    ]  # fmt: skip
    write(tmp_path / "all.json", rows)
    write(tmp_path / "images/xmlab7.jpg", b"")
    words = ["data=silvar_med", f"data.root={tmp_path}", "data.images=none"]
    words += ["data.files={all.json: train}", "data.split=by_image", "data.bad_rows=skip"]
    data._load.cache_clear()
    with pytest.raises(ValueError, match=r'no "image"; keys are .*set data\.keys\.image to one'):
        data.load(composed(*words).data, tmp_path / "cache")
    samples = data.load(composed(*words, "data.keys.image=img_name").data, tmp_path / "cache")
    assert [(s.answer_text, s.explanation) for s in samples] == [
        ("No", "It is opaque."), ("A mass.", "It is bright."), ("Left lobe.", None),
    ]  # fmt: skip
    assert samples[0].image == tmp_path / "images/xmlab7.jpg"
    assert len({s.id for s in samples}) == 3


def test_encodings_are_named_and_the_remedy_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = tmp_path / "ImageClef-2019-VQA-Med-Training/QAPairsByCategory"
    for name in ("C1_Modality", "C2_Plane", "C3_Organ", "C4_Abnormality"):
        line = "synpic1|what is wrong?|hodgkin\u2019s disease\u2026 of the neck\n"
        write(training / f"{name}_train.txt", line.encode("cp1252"))
    tests = tmp_path / "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt"
    write(tests, "synpic2|organ|what is it?|heart#lungs\n")
    with pytest.raises(
        ValueError, match=r"not utf-8 \(byte 0x.. in line \d+\); set data\.encoding=cp1252$"
    ):
        read("vqa_med_2019", tmp_path)
    samples = read("vqa_med_2019", tmp_path, encoding="cp1252").samples
    assert samples[0].answer == "hodgkin\u2019s disease\u2026 of the neck"
    assert samples[-1].references == ("heart", "lungs")
    write(tmp_path / "json/CT_test.json", '[{"image": "\u2019"}]'.encode("cp1252"))
    monkeypatch.chdir(tmp_path)  # the folder is part of what is typed
    with pytest.raises(ValueError, match=r"convert it to UTF-8: iconv -f cp1252") as caught:
        read("med_r1", Path("json"))
    if shutil.which("iconv"):
        subprocess.run(str(caught.value).rpartition("UTF-8: ")[2], shell=True, check=True)
        assert (tmp_path / "json/CT_test.json").read_bytes() == '[{"image": "\u2019"}]'.encode()
