"""No image and no patient on both sides, and the cells near the share."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medreason import data
from medreason.data.audit import leakage
from medreason.data.splits import low_data, overruled, split, split_by_group
from medreason.samples import Sample

SHARED = Path(__file__).parents[2].parent / "shared/data"


def sample(number: int, image: int, patient: int | None, modality: str = "ct") -> Sample:
    owner = None if patient is None else f"p{patient}"
    return Sample(
        f"f:{number}", Path(f"/d/{image:03}.png"), "?", ("a", "b"), "A", None, modality, "disease",
        "s", owner, "train",
    )  # fmt: skip


def sides(samples: list[Sample]) -> dict[str, set[str]]:
    """The splits in which each image and each patient occurs."""
    splits: dict[str, set[str]] = {}
    for s in samples:
        for key in (str(s.image), s.patient):
            if key is not None:
                splits.setdefault(key, set()).add(s.split)
    return splits


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 30), st.none() | st.integers(0, 20), st.sampled_from("cmx")),
        min_size=1,
        max_size=60,
    ),
    seed=st.integers(0, 5),
)
def test_no_image_and_no_patient_lies_on_both_sides(
    rows: list[tuple[int, int | None, str]], seed: int
) -> None:
    samples = [sample(i, *row) for i, row in enumerate(rows)]
    try:
        split = split_by_group(samples, test_share=0.3, seed=seed)
    except ValueError as error:
        assert "leaves train or test empty" in str(error)  # noqa: PT017
        return
    assert [s.id for s in split] == [s.id for s in samples]
    assert all(len(names) == 1 for names in sides(split).values())


def test_every_cell_is_near_the_share_and_the_order_of_rows_does_not_matter() -> None:
    samples = [sample(i, i // 2, i // 5, "ct" if i < 150 else "mri") for i in range(400)]
    split = split_by_group(samples, test_share=0.25, seed=3)
    for modality, n in (("ct", 150), ("mri", 250)):
        test = sum(s.split == "test" for s in split if s.modality == modality)
        assert test / n == pytest.approx(0.25, abs=0.05)
    shuffled = random.Random(0).sample(samples, len(samples))
    moved = [replace(s, image=Path("/other") / s.image.relative_to("/d")) for s in shuffled]
    assert {s.id: s.split for s in split_by_group(moved, test_share=0.25, seed=3)} == {
        s.id: s.split for s in split
    }
    assert split_by_group(samples, test_share=0.25, seed=4) != split


def test_large_and_small_patients_have_the_same_chance_of_being_tested() -> None:
    samples = [sample(i, i, i // 10 if i < 500 else i) for i in range(1000)]
    shares = Counter[bool]()
    for seed in range(20):
        for s in split_by_group(samples, test_share=0.3, seed=seed):
            shares[int(s.id[2:]) < 500] += s.split == "test"
    assert shares[True] / (shares[True] + shares[False]) == pytest.approx(0.5, abs=0.05)


def test_impossible_shares_are_refused() -> None:
    samples = [sample(0, 0, 1), sample(1, 1, 1)]
    with pytest.raises(ValueError, match=r"test_share=1\.5; needs a number from 0 to 1"):
        split_by_group(samples, test_share=1.5, seed=0)
    with pytest.raises(
        ValueError, match=r"2 samples in 1 group that .* leaves train or test empty"
    ):
        split_by_group(samples, test_share=0.5, seed=0)
    assert {s.split for s in split_by_group(samples, test_share=1, seed=0)} == {"test"}
    assert {s.split for s in split_by_group(samples, test_share=0, seed=0)} == {"train"}


def test_by_image_lets_a_patient_lie_on_both_sides_and_by_patient_does_not() -> None:
    samples = [sample(i, i // 2, i // 20) for i in range(200)]
    for how, patients_torn in (("by_image", True), ("by_patient", False)):
        splits = sides(split(samples, how, test_share=0.3, seed=0, image_digests=by_path(samples)))
        assert any(len(on) > 1 for key, on in splits.items() if key[0] == "p") == patients_torn
        assert all(len(on) == 1 for key, on in splits.items() if key[0] != "p")


def test_low_data_draws_600_and_300_rows_of_each_modality_whatever_their_order() -> None:
    samples = [
        replace(sample(i, i, None, "ct" if i % 2 else "mri"), split="test" if i % 3 else "train")
        for i in range(4000)
    ]
    subset = low_data(samples, seed=1)
    counts = Counter((s.modality, s.split) for s in subset)
    assert set(counts) == {(m, side) for m in ("ct", "mri") for side in ("train", "test")}
    assert {counts[m, "train"] for m in ("ct", "mri")} == {600}
    assert {counts[m, "test"] for m in ("ct", "mri")} == {300}
    again = low_data(samples[::-1], seed=1)
    assert {s.id for s in again} == {s.id for s in subset}
    assert {s.id for s in low_data(samples, seed=2)} != {s.id for s in subset}


def by_path(samples: list[Sample]) -> dict[Path, str]:
    """Digests of images that all differ."""
    return {s.image: str(s.image) for s in samples}


@pytest.mark.parametrize("how", ["by_image", "by_patient", "published"])
def test_equal_pictures_under_two_names_are_on_one_side(how: str) -> None:
    samples = [replace(sample(i, i, i), split="") for i in range(200)]
    digests = {s.image: str(i % 80) for i, s in enumerate(samples)}
    for seed in range(5):
        divided = split(samples, how, test_share=0.3, seed=seed, image_digests=digests)
        pictures: dict[str, set[str]] = {}
        for s in divided:
            pictures.setdefault(digests[s.image], set()).add(s.split)
        assert all(len(names) == 1 for names in pictures.values())
        assert sum(s.split == "test" for s in divided) == pytest.approx(60, abs=3)


def test_split_is_that_of_paths_where_no_two_pictures_are_equal() -> None:
    samples = [sample(i, i, i // 5) for i in range(400)]
    digests = {s.image: f"{hash(s.image)}" for s in samples}
    for how, patients in (("by_image", False), ("by_patient", True)):
        assert split(samples, how, test_share=0.3, seed=1, image_digests=digests) == split_by_group(
            samples, test_share=0.3, seed=1, patients=patients
        )


def test_picture_of_all_patients_does_not_keep_them_from_being_split() -> None:
    samples = [sample(i, i, i // 2) for i in range(40)]
    digests = {s.image: "blank" if i % 2 else str(i) for i, s in enumerate(samples)}
    divided = split(samples, "by_patient", test_share=0.3, seed=0, image_digests=digests)
    assert {s.split for s in divided} == {"train", "test"}
    assert all(len(names) == 1 for names in sides(divided).values())
    leak = leakage(divided, digests)["all"]
    tests = [s for s in divided if s.split == "test"]
    assert (leak["shared_images"], leak["test_rows"]) == (1, len(tests) // 2)
    alike = dict.fromkeys(digests, "blank")
    with pytest.raises(ValueError, match="leaves train or test empty"):
        split(samples, "by_image", test_share=0.3, seed=0, image_digests=alike)


def test_the_real_pairs_split_without_leakage(tmp_path: Path) -> None:
    root = SHARED / "medvqa_mini"
    if not root.is_dir():
        pytest.skip(f"no real images at {root}")
    spec = {"_target_": "medreason.data.med_r1.read", "root": str(root), "patients": "labels.csv"}
    split = data.read(spec, tmp_path).samples
    assert all(len(names) == 1 for names in sides(split).values())
    assert any(s.patient for s in split)
    assert sum(s.split == "test" for s in split) / len(split) == pytest.approx(0.3, abs=0.05)


def test_a_split_of_ones_own_that_is_overruled_is_said_by_rows() -> None:
    own = [replace(sample(i, i, i), split="test" if i < 3 else "train") for i in range(5)]
    other = [replace(s, split="train") for s in own]
    said = "data.split=by_image overrules the split of the set: train has 3 of its 3 test rows; "
    assert overruled(own, other, "by_image", "the set") == f"{said}data.split=published keeps it"
    assert not overruled(own, own, "published", "the set")
    assert not overruled(other, own, "by_image", "the set")  # without a test of its own
