"""Folders of `datasets.save_to_disk` with the columns of R1-V and Med-R1, read and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from PIL import Image

from medreason import data
from medreason.actions import prepare
from medreason.config import Config
from medreason.data import image_cache, saved_sets
from medreason.samples import SOFT_TISSUE, Sample


def load(folder: Path) -> tuple[Sample, ...]:
    data._load.cache_clear()
    spec = {"_target_": "medreason.data.hub.read", "hub": str(folder), "images": "none"}
    return data.load(spec, folder.parent / "cache")


def row(problem: str, solution: str) -> dict[str, object]:
    return {"image": Image.new("L", (8, 8), 40), "problem": problem, "solution": solution}


def test_a_set_as_the_public_codes_write_it_is_read(tmp_path: Path) -> None:
    closed = row("What, exactly, is it? A)CT, B)an MRI, coronal., C)PET", "<answer> B </answer>")
    counting = row("How many items are left?", "<answer> 3 </answer>")
    splits = {"train": [closed, counting], "test": [row("Normal?", "<answer> yes </answer>")]}
    saved = DatasetDict({side: Dataset.from_list(rows) for side, rows in splits.items()})
    saved.save_to_disk(tmp_path / "saved")
    first, second, third = load(tmp_path / "saved")
    assert first.question == "What, exactly, is it?"
    assert (first.options, first.answer) == (("CT", "an MRI, coronal.", "PET"), "B")
    assert (second.options, second.answer, second.split) == ((), "3", "train")
    assert (third.options, third.answer, third.split) == (("Yes", "No"), "A", "test")


def test_rows_saved_without_a_split_are_those_of_train(tmp_path: Path) -> None:
    Dataset.from_list([row("Which? A)CT, B)MRI", "B")]).save_to_disk(tmp_path / "saved")
    [sample] = load(tmp_path / "saved")
    assert (sample.split, sample.answer) == ("train", "B")


def test_a_solution_that_is_no_option_is_a_bad_row(tmp_path: Path) -> None:
    Dataset.from_list([row("Which? A)CT, B)MRI", "<answer> E </answer>")]).save_to_disk(
        tmp_path / "saved"
    )
    with pytest.raises(ValueError, match=r"train, row 0: solution .* beyond the options A to B"):
        load(tmp_path / "saved")


def test_prepared_phantoms_come_back_as_they_were(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    words = ("data=phantom", "data.train_images=2", "data.test_images=1", "prepare.processes=1")
    words += ("prepare.size=32", "prepare.save_to_disk=true", f"prepare.folder={folder}")
    prepare.run(composed("action=prepare", *words))
    spec = {"_target_": "medreason.data.prepared.read", "root": str(folder)}
    prepared, saved = data.load(spec, tmp_path), load(folder / "saved")
    assert {*load_from_disk(folder / "saved")["test"].column_names} >= {*saved_sets.COLUMNS}
    contents = image_cache.digests({s.image for s in (*prepared, *saved)}, tmp_path / "cache")
    facts = ("question", "options", "answer", "explanation", "modality", "task", "patient", "split")
    facts += ("source", "alternatives", "answer_type")
    texts = [
        sorted(repr([getattr(s, f) for f in facts] + [contents[s.image]]) for s in samples)
        for samples in (prepared, saved)
    ]
    assert len(prepared) > 40
    assert texts[0] == texts[1]


def test_an_open_question_keeps_its_other_answers_and_its_type(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    sample = Sample(
        *("file:3", tmp_path / "a.png", "What is it?", (), "brain tumor"),
        *(None, "mri", "disease", "VQA-Med", "7", "test", SOFT_TISSUE, ("glioma",), "open"),
    )
    saved_sets.write(tmp_path / "saved", [sample])
    [read] = load(tmp_path / "saved")
    facts = ("answer", "alternatives", "answer_type", "source", "patient", "split")
    assert [getattr(read, f) for f in facts] == [getattr(sample, f) for f in facts]


def test_other_answers_that_are_no_list_are_a_bad_row(tmp_path: Path) -> None:
    damaged = row("What is it?", "<answer> glioma </answer>") | {"alternatives": "brain tumor"}
    Dataset.from_list([damaged]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="alternatives is 'brain tumor'; needs a list of texts"):
        load(tmp_path / "saved")


def test_a_question_that_would_be_read_as_options_is_named(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    sample = Sample(
        *("file:3", tmp_path / "a.png", "Is A) right", ("CT", "MRI"), "A"),
        *(None, "ct", "disease", "drawn", None, "train"),
    )
    with pytest.raises(ValueError, match=r"file:3: .*would not be read back"):
        saved_sets.write(tmp_path / "saved", [sample])
    saved_sets.write(tmp_path / "saved", [replace(sample, question="Is it")])
    assert [s.answer for s in load(tmp_path / "saved")] == ["A"]
