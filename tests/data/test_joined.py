"""RARL's five sets as one, from phantoms in the layouts of their releases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medreason import data
from medreason.config import Config
from medreason.data import image_cache, phantom_releases
from medreason.data.rows import SIDES, Loaded

Compose = Callable[..., Config]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rarl")
    samples = phantom_releases.samples(folder / "cache", train_images=4, test_images=2)
    phantom_releases.write_rarl(folder, samples)
    return folder


def read(composed: Compose, root: Path, *overrides: str) -> Loaded:
    config = composed("data=rarl", f"data.root={root}", *overrides)
    return data.read(config.data, root / "cache")


def test_trained_on_one_set_and_tested_on_all_without_images_of_training(
    composed: Compose, root: Path
) -> None:
    loaded = read(composed, root)
    sides = {side: {s.source for s in loaded.samples if s.split == side} for side in SIDES}
    assert sides["train"] == {"Silvar-Med"}
    assert sides["test"] == {"Silvar-Med", "VQA-RAD", "SLAKE", "VQA-Med 2019", "PathVQA"}
    assert not loaded.bad_rows
    assert loaded.counts["about images of training rows"] > 0
    digests = image_cache.digests({s.image for s in loaded.samples}, root / "cache")
    trained = {digests[s.image] for s in loaded.samples if s.split == "train"}
    assert trained
    assert not trained & {digests[s.image] for s in loaded.samples if s.split == "test"}


def test_another_picture_under_the_same_name_in_slake_counts_as_the_image(
    composed: Compose, root: Path
) -> None:
    left_out = {row.row for row in read(composed, root).left_out if row.file == "slake/test.json"}
    for image in (root / "silvar_med/images").glob("*.jpg"):
        image.write_bytes(image.read_bytes() + b" ")  # as if saved again
    again = read(composed, root).left_out
    assert left_out == {row.row for row in again if row.file == "slake/test.json"}


def test_more_training_rows_have_those_of_fewer(composed: Compose, root: Path) -> None:
    def trained(rows: int) -> set[str]:
        loaded = read(composed, root, f"data.train_rows={rows}")
        return {s.id for s in loaded.samples if s.split == "train"}

    assert (len(trained(5)), len(trained(9))) == (5, 9)
    assert trained(5) < trained(9)
    loaded = read(composed, root, "data.train_rows=1000")
    assert "training rows, not 1000" in str(loaded.remarks[0])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.test=[slak]", "data.train or test 'slak'"),
        ("data.sets.slake.language=fr", r"data.language='fr'; known: en, zh, both"),
        ("+data.sets.slake.lang=fr", "data.sets.slake.lang is unknown .*language"),
    ],
)
def test_a_set_that_cannot_be_read_is_named(
    composed: Compose, root: Path, override: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read(composed, root, override)


def test_folder_of_one_set_is_refused_with_the_folders_that_are_missing(
    composed: Compose, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "slake").symlink_to(root / "slake")
    message = (
        f"data.root={tmp_path} has no silvar_med/, vqa_rad/, vqa_med_2019/, path_vqa/; "
        "set .* holds silvar_med/, vqa_rad/, slake/, vqa_med_2019/, path_vqa/$"
    )
    with pytest.raises(ValueError, match=message):
        read(composed, tmp_path)
