"""Phantoms on disk as the releases lay out their files, so that a rehearsal reads them by the
readers of the real data. Which file holds what: `README.md`, "What lies below data.root"."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from medreason import phantom
from medreason.data import checks, omnimedvqa, vqa_med_2019, vqa_rad
from medreason.data.images import open_rgb
from medreason.data.names import MED_R1_FILES
from medreason.samples import MODALITIES, TASKS, Sample

_NAMES = dict(zip((*MODALITIES, *TASKS), MED_R1_FILES, strict=True))
_TEST_SHARE = 0.25  # of the question-type family, which splits the same questions by its own chance


def samples(cache: Path, train_images: int, test_images: int) -> list[Sample]:
    """The phantoms of a rehearsal; images are per modality."""
    return phantom.load(cache, train_images=train_images, test_images=test_images, seed=0)


def write_omnimedvqa(root: Path, samples: Sequence[Sample]) -> None:
    """OmniMedVQA's 42 files, and both families of Med-R1's split files."""
    images = list(dict.fromkeys(sample.image for sample in samples))
    sources = {
        image: omnimedvqa.SOURCES[i % len(omnimedvqa.SOURCES)] for i, image in enumerate(images)
    }
    paths = {
        image: f"Images/{source}/{image.parent.name} {image.name}"
        for image, source in sources.items()
    }
    for image, path in paths.items():
        _copy(image, root / path)
    raw: dict[str, list[dict[str, str]]] = defaultdict(list)
    splits: dict[str, list[dict[str, str]]] = defaultdict(list)
    for number, sample in enumerate(samples):
        source, path = sources[sample.image], paths[sample.image]
        raw[f"{omnimedvqa.FOLDER}/{source}.json"].append(
            {
                "dataset": source,
                "question_id": f"{source}_{number:04}",
                "question_type": _NAMES[sample.task],
                "question": sample.question,
                "gt_answer": sample.answer_text,
                "image_path": path,
                **{f"option_{letter}": text for letter, text in sample.lettered},
                "modality_type": _NAMES[sample.modality],
            }
        )
        side = "test" if random.Random(sample.id).random() < _TEST_SHARE else "train"
        for file in (
            f"Splits/modality/{sample.split}/{_NAMES[sample.modality]}_{sample.split}.json",
            f"Splits/question_type/{side}/{_NAMES[sample.task]}_{side}.json",
        ):
            solution = f"<answer> {sample.answer} </answer>"
            splits[file].append({"image": path, "problem": sample.problem, "solution": solution})
    for file, rows in (raw | splits).items():
        _write(root / file, json.dumps(rows))
    _write(root / checks.DRAWN, "")


def write_rarl(root: Path, samples: Sequence[Sample]) -> None:
    """The five sets of RARL, each in a folder of its name."""
    radiology = [s for s in samples if s.modality in ("ct", "mri", "xray")]
    write_slake(root / "slake", radiology)
    write_silvar_med(root / "silvar_med", radiology)
    write_vqa_rad(root / "vqa_rad", radiology)
    write_vqa_med_2019(root / "vqa_med_2019", [s for s in radiology if s.task != "grading"])
    write_path_vqa(root / "path_vqa", [s for s in samples if s.modality == "microscopy"])
    _write(root / checks.DRAWN, "")


def write_slake(root: Path, samples: Sequence[Sample]) -> None:
    """Three files in two languages; every eighth training image is of validation."""
    names = _slake_names(samples)
    kinds = {"anatomy": "Position", "disease": "Abnormality", "modality_recognition": "Modality"}
    files: dict[str, list[dict[str, object]]] = {"train": [], "validate": [], "test": []}
    for number, sample in enumerate(samples):
        name = names[sample.image]
        question, answer, closed = _asked(sample, number)
        row = {
            "img_name": f"{name}/source.jpg",
            "question": question,
            "answer": answer,
            "q_lang": "en",
            "modality": {"ct": "CT", "mri": "MRI", "xray": "X-Ray"}[sample.modality],
            "answer_type": "CLOSED" if closed else "OPEN",
            "content_type": kinds.get(sample.task, "Shape"),
            "qid": 2 * number,
        }
        chinese = {"question": "图中是什么", "answer": "图", "q_lang": "zh", "qid": 2 * number + 1}
        of_validation = sample.split == "train" and int(name.removeprefix("xmlab")) % 8 == 7
        files["validate" if of_validation else sample.split] += [row, row | chinese]
    for name, rows in files.items():
        _write(root / f"{name}.json", json.dumps(rows, ensure_ascii=False))
    for image, name in names.items():
        _copy(image, root / "imgs" / name / "source.jpg")


def write_silvar_med(root: Path, samples: Sequence[Sample]) -> None:
    """Explained questions about the even images of `write_slake`, those of its test included."""
    files: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    names = _slake_names(samples)
    for sample in samples:
        name = names[sample.image]
        number = int(name.removeprefix("xmlab"))
        if number % 2:
            continue
        files["test" if number % 8 == 0 else "train"].append(
            {
                "image": f"{name}.jpg",
                "question": sample.problem,
                "answer": sample.answer,
                "explanation": str(sample.explanation),
                "modality": sample.modality,
            }
        )
        _copy(sample.image, root / "images" / f"{name}.jpg")
    for name, rows in files.items():
        _write(root / f"{name}.json", json.dumps(rows))


def write_vqa_rad(root: Path, samples: Sequence[Sample]) -> None:
    organs = {"ct": "ABD", "mri": "HEAD", "xray": "CHEST"}
    kinds = {"anatomy": "ORGAN", "disease": "PRES", "modality_recognition": "MODALITY"}
    rows = []
    for number, sample in enumerate(samples):
        question, answer, closed = _asked(sample, number)
        rows.append(
            {
                "qid": str(number),
                "phrase_type": "test_freeform" if sample.split == "test" else "freeform",
                "image_name": _synpic(sample.image),
                "image_organ": organs[sample.modality],
                "question": question,
                "question_type": kinds.get(sample.task, "ATTRIB"),
                "answer": answer,
                "answer_type": "CLOSED" if closed else "OPEN",
            }
        )
        _copy(sample.image, root / vqa_rad.IMAGES / _synpic(sample.image))
    _write(root / vqa_rad.FILE, json.dumps(rows))


def write_vqa_med_2019(root: Path, samples: Sequence[Sample]) -> None:
    """Training and test; the reader leaves validation out."""
    categories = {"modality_recognition": "C1_Modality", "attributes": "C2_Plane"}
    categories |= {"anatomy": "C3_Organ", "disease": "C4_Abnormality"}
    training, test = vqa_med_2019.TRAINING, Path(vqa_med_2019.TEST)
    lines: dict[str, list[str]] = defaultdict(list)
    for number, sample in enumerate(samples):
        question, answer, _ = _asked(sample, number)
        name, kind = Path(_synpic(sample.image)).stem, categories[sample.task]
        if sample.split == "test":
            words = [name, vqa_med_2019.CATEGORIES[kind], question, answer]
            lines[test.as_posix()].append("|".join(words))
            _copy(sample.image, root / test.parent / "VQAMed2019_Test_Images" / f"{name}.jpg")
        else:
            file = f"{training}/QAPairsByCategory/{kind}_train.txt"
            lines[file].append("|".join([name, question, answer]))
            _copy(sample.image, root / training / "Train_images" / f"{name}.jpg")
    for file, texts in lines.items():
        _write(root / file, "\n".join(texts) + "\n")


def write_path_vqa(root: Path, samples: Sequence[Sample]) -> None:
    files: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for number, sample in enumerate(samples):
        question, answer, _ = _asked(sample, number)
        name = f"{sample.split}_{sample.image.stem}"
        files[sample.split].append({"image": name, "question": question, "answer": answer})
        _copy(sample.image, root / "images" / sample.split / f"{name}.jpg")
    for name, rows in files.items():
        path = root / "qas" / name / f"{name}_qa.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(rows))


def _asked(sample: Sample, number: int) -> tuple[str, str, bool]:
    """(question, answer, closed): every second one by yes or no, without letters."""
    if number % 2:
        return sample.question, sample.answer_text, False
    shown = number % 4 == 0
    others = [text for text in sample.options if text != sample.answer_text]
    asked = sample.answer_text if shown else others[number % len(others)]
    return f"{sample.question} Is it {asked}?", "Yes" if shown else "No", True


def _slake_names(samples: Iterable[Sample]) -> dict[Path, str]:
    images = dict.fromkeys(sample.image for sample in samples)
    return {image: f"xmlab{i}" for i, image in enumerate(images)}


def _synpic(image: Path) -> str:
    return f"synpic-{image.parent.name}-{image.stem}.jpg"


def _copy(image: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == image.suffix:
        shutil.copyfile(image, target)
    else:
        open_rgb(image).save(target, quality=90)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
