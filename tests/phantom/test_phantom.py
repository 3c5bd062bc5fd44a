"""Phantoms: every cell filled, nothing to be guessed, the same pictures every time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import drawn_phantoms
import numpy as np
import psutil
import pytest
from PIL import Image
from processes import wait_until_dead

from medreason import phantom
from medreason.option_prior import fit_option_prior
from medreason.phantom.contact_sheet import contact_sheet
from medreason.samples import MODALITIES, TASKS, Sample


@pytest.fixture(autouse=True)
def drawn_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "draw_missing", drawn_phantoms.draw_missing)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("cache")
    pictures = {
        (modality, split): phantom.plan(modality, split, 96, seed=0)
        for modality in MODALITIES
        for split in ("train", "test")
    }
    return [s for group in pictures.values() for s in phantom._samples(group, folder)]


def test_all_forty_cells_are_filled_equally(samples: list[Sample]) -> None:
    cells = Counter((s.modality, s.task, s.split) for s in samples)
    assert set(cells) == {(m, t, s) for m in MODALITIES for t in TASKS for s in ("train", "test")}
    assert set(cells.values()) == {96}


def test_every_answer_is_right_equally_often_at_every_letter(samples: list[Sample]) -> None:
    for modality in MODALITIES:
        for task in TASKS:
            cell = [s for s in samples if s.cell == (modality, task) and s.split == "train"]
            assert set(Counter(s.answer_text for s in cell).values()) == {24}
            assert max(Counter(s.answer for s in cell).values()) <= 30


def test_options_only_baseline_is_at_chance(samples: list[Sample]) -> None:
    prior = fit_option_prior(s for s in samples if s.split == "train")
    accuracy = prior.accuracy(s for s in samples if s.split == "test")
    assert accuracy == pytest.approx(0.25, abs=0.03)  # 3,840 questions


def test_no_patient_is_in_train_and_test(samples: list[Sample]) -> None:
    patients = {
        split: {s.patient for s in samples if s.split == split} for split in ("train", "test")
    }
    assert not patients["train"] & patients["test"]


def test_finding_and_grade_are_absent_together(samples: list[Sample]) -> None:
    for modality in MODALITIES:
        for picture in phantom.plan(modality, "train", 48, seed=3):
            assert (picture.case.disease == 0) == (picture.case.grading == 0)


def test_explanation_names_the_right_option(samples: list[Sample]) -> None:
    assert all(s.explanation and s.answer_text in s.explanation for s in samples)


def test_ids_are_unique(samples: list[Sample]) -> None:
    assert len({s.id for s in samples}) == len(samples)


def test_larger_data_set_contains_the_smaller() -> None:
    small, large = (phantom.plan("ct", "train", n, seed=0) for n in (50, 200))
    assert large[:50] == small


@pytest.mark.parametrize("modality", MODALITIES)
def test_picture_is_the_same_each_time_and_shows_its_facts(modality: str) -> None:
    pictures = phantom.plan(modality, "train", 4, seed=0)
    images = [phantom.render(picture) for picture in pictures]
    assert images[0].shape == (224, 224, 3)
    assert images[0].dtype == np.uint8
    assert np.array_equal(images[0], phantom.render(pictures[0]))
    assert not np.array_equal(images[0], images[1])
    assert min(picture.std() for picture in images) > 10


def test_contact_sheet_of_the_readme_shows_every_modality() -> None:
    sheet = contact_sheet()
    assert sheet.size == (800, 480)
    with Image.open(Path(phantom.__file__).parent / "phantoms.jpg") as shipped:
        pixels, known = (np.asarray(image.convert("L"), dtype=float) for image in (sheet, shipped))
    assert np.abs(pixels - known).mean() < 8  # JPEG


def test_load_draws_what_is_missing_and_leaves_the_rest(tmp_path: Path) -> None:
    first = phantom.load(tmp_path, train_images=1, test_images=1, seed=0)
    assert len(first) == 2 * 8 * 5
    present, missing = first[0].image, first[-1].image
    before = (present.stat().st_mtime_ns, missing.read_bytes())
    missing.unlink()
    phantom.load(tmp_path, train_images=1, test_images=1, seed=0)
    assert (present.stat().st_mtime_ns, missing.read_bytes()) == before


DRAWS = """
from pathlib import Path
from medreason import phantom
phantom.load(Path("cache"), train_images=400, test_images=4, seed=0)
"""


def test_killed_program_leaves_nobody_drawing(tmp_path: Path) -> None:
    program = subprocess.Popen([sys.executable, "-c", DRAWS], cwd=tmp_path)
    while not (drawing := psutil.Process(program.pid).children()):
        assert program.poll() is None
        time.sleep(0.01)
    program.kill()
    program.wait()
    wait_until_dead(drawing)


def test_fewer_images_than_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.test_images=-5; give 0 or more"):
        phantom.load(tmp_path, train_images=1, test_images=-5, seed=0)
