"""What a file of predictions says of each question, so that two files can be compared."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_folders import draw_samples, reply

from medreason import data
from medreason.data import image_cache
from medreason.evaluation import predictions
from medreason.evaluation.controls import samples_under
from medreason.evaluation.predictions import Prediction
from medreason.generation.rows import Completion
from medreason.samples import Sample

COMPLETION = Completion("prompt", reply("A"), 9, 5, "stop")


def answered(samples: list[Sample], cache: Path) -> list[Prediction]:
    rows = [
        predictions.predict(sample, control, COMPLETION)
        for control in ("original", "shuffled_image", "permuted_options", "blank_image")
        for sample in samples_under(control, samples)
    ]
    images = image_cache.digests({sample.image for sample in samples}, cache)
    return predictions.with_digests(rows, samples, images)


def test_every_row_about_a_question_has_its_digests_whatever_the_control(tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=4)
    rows = answered(samples, tmp_path)
    assert len(rows) == len(samples) * (1 + 1 + 3 + 1)
    for sample in samples:
        about = [row for row in rows if row.sample == sample.id]
        assert {row.image_digest for row in about} == {_content(sample.image, tmp_path)}
        digest = data.question_digest(sample, _content(sample.image, tmp_path))
        assert {row.question_digest for row in about} == {digest}
    # Two cells ask the same about the same images.
    assert len({row.question_digest for row in rows}) == 8
    assert len({row.image_digest for row in rows}) == 8


def test_the_same_question_in_another_folder_and_table_has_the_same_digests(tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    moved = [
        replace(sample, id=f"table:{i}", image=tmp_path / "moved" / sample.image.name)
        for i, sample in enumerate(samples)
    ]
    here, there = answered(samples, tmp_path), answered(moved, tmp_path)
    assert [row.question_digest for row in here] == [row.question_digest for row in there]
    assert [row.image_digest for row in here] == [row.image_digest for row in there]


def test_the_file_holds_the_digests_and_one_without_them_is_refused(tmp_path: Path) -> None:
    rows = answered(draw_samples(tmp_path / "images", per_cell=1), tmp_path)
    path = tmp_path / "predictions.parquet"
    predictions.write(rows, path)
    assert predictions.read(path) == rows
    pq.write_table(pq.read_table(path).drop_columns("question_digest"), path)
    with pytest.raises(ValueError, match=r"not a predictions file.*question_digest"):
        predictions.read(path)


def _content(image: Path, cache: Path) -> str:
    return image_cache.digests([image], cache)[image]
