"""Numbers of questions that plans use before a release is downloaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medreason.config import Config
from medreason.data import release_sizes
from medreason.data.names import MED_R1_FILES
from medreason.samples import MODALITIES, TASKS

Compose = Callable[..., Config]


def counts(composed: Compose, *words: str) -> release_sizes.Counts:
    found = release_sizes.counts(composed("data.root=no", *words))
    assert found
    return found


@pytest.mark.parametrize(
    ("data", "whole", "parts"),
    [
        ("med_r1_modality", "modality=xray", [f"modality=xray task={name}" for name in TASKS]),
        (
            "med_r1_question_type",
            "task=grading",
            [f"task=grading modality={m}" for m in MODALITIES],
        ),
    ],
)
def test_cells_share_out_the_file_they_are_in(
    composed: Compose, data: str, whole: str, parts: list[str]
) -> None:
    """A file of 6,301 or 1,662 training rows is as large as its cells together."""
    (wanted, tests, note) = counts(composed, f"data={data}", whole)
    assert (wanted, note) == ({"xray": 6_301, "grading": 1_662}[whole.split("=")[1]], "")
    cells = [counts(composed, f"data={data}", *part.split()) for part in parts]
    assert sum(cell.training for cell in cells) == pytest.approx(wanted, abs=4)
    assert all("estimated" in cell.note and cell.test == tests for cell in cells)


def test_share_of_a_cell_is_that_of_its_question_type_in_all(composed: Compose) -> None:
    """55,387 of 88,996 questions are of diseases."""
    cell = counts(composed, "data=med_r1_modality", "modality=ct", "task=disease")
    assert cell.training == round(12_567 * 55_387 / 88_996)


def test_at_most_so_many_of_a_cell_are_tested(composed: Compose) -> None:
    few = counts(composed, "data=med_r1_modality", "evaluation.samples_per_cell=5")
    assert few.test == len(MODALITIES) * len(TASKS) * 5
    assert "estimated" in few.note


@pytest.mark.parametrize(
    ("words", "training", "test"),
    [
        ("data=omnimedvqa", 62_296, 26_699),  # 88,995, since one row names no modality
        ("data=omnimedvqa modality=ct", 11_066, 26_699),
        ("data=omnimedvqa data.split=published data.splits_from=[x]", 71_333, 17_662),
        ("data=med_r1_modality data.split=low_data modality=mri", 600, 2_400),
        ("data=prepared data.root=no/omnimedvqa-384-stretch modality=ct", 11_066, 26_699),
        ("data=prepared data.root=no/slake-512-pad", 4_918, 1_061),
        ("data=slake data.language=zh", 4_917, 1_033),
        ("data=vqa_rad", 1_797, 451),
        ("data=path_vqa", 19_755, 6_761),
        ("data=vqa_med_2019", 12_792, 500),
        ("data=silvar_med", 866, 0),
        ("experiment=rarl/rl data.root=no", 866, 8_773),
    ],
)
def test_counts_of_known_releases(composed: Compose, words: str, training: int, test: int) -> None:
    assert counts(composed, *words.split())[:2] == pytest.approx((training, test), abs=2)


def test_cells_of_a_set_that_nobody_counted_are_at_most_the_set(composed: Compose) -> None:
    assert counts(composed, "data=vqa_rad", "modality=ct").note.startswith("at most")
    assert "Silvar-Med's own test" in counts(composed, "data=silvar_med").note


def test_own_data_are_unknown(composed: Compose) -> None:
    for words in ("data=prepared data.root=no/mine-384-stretch", "data=phantom"):
        assert release_sizes.counts(composed(*words.split())) is None


def test_files_of_both_families_have_the_same_questions() -> None:
    rows = [sum(count) for count in MED_R1_FILES.values()]
    modalities, tasks = sum(rows[: len(MODALITIES)]), sum(rows[len(MODALITIES) :])
    assert (modalities, tasks) == (88_995, 88_996)
