"""Statistics against published or hand-computed values."""

from __future__ import annotations

from pathlib import Path

import pytest

from medreason import stats
from medreason.option_prior import fit_option_prior
from medreason.samples import Sample


def question(options: str, answer: str) -> Sample:
    texts = tuple(options.split("|")) if options else ()
    return Sample("i", Path("a.png"), "?", texts, answer, None, "ct", "anatomy", "s", None, "train")


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_gives_published_intervals(correct: int, n: int, low: float, high: float) -> None:
    assert stats.wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_refuses_more_right_than_asked() -> None:
    with pytest.raises(ValueError, match="correct=3, n=2"):
        stats.wilson(3, 2)


def test_paired_difference_covers_the_normal_interval_and_repeats_under_a_seed() -> None:
    a = [1.0] * 300 + [0.0] * 100
    b = [1.0] * 200 + [0.0] * 200
    found = stats.paired_difference(a, b, seed=1)
    assert found.mean == pytest.approx(0.25)
    half = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.005)
    assert found == stats.paired_difference(a, b, seed=1)
    assert found != stats.paired_difference(a, b, seed=2)


def test_paired_difference_of_equal_scores_is_zero_without_spread() -> None:
    found = stats.paired_difference([0.2, 0.7], [0.2, 0.7], seed=0)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("only_a", "only_b", "both", "p"),
    [
        (0, 0, 5, 1.0),
        (5, 0, 3, 0.0625),
        (0, 5, 3, 0.0625),
        (8, 2, 0, 0.109375),
        (4, 4, 0, 1.0),
        (1100, 1000, 0, 0.0308),
    ],
)
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int, both: int, p: float) -> None:
    a = [1.0] * only_a + [0.0] * only_b + [1.0] * both
    b = [0.0] * only_a + [1.0] * only_b + [1.0] * both
    assert stats.mcnemar(a, b) == pytest.approx(p, abs=1e-4)


def test_paired_tests_refuse_what_is_not_paired() -> None:
    for test in (
        lambda: stats.mcnemar([1.0], [1.0, 0.0]),
        lambda: stats.paired_difference([], [], seed=0),
    ):
        with pytest.raises(ValueError, match="needs the same items"):
            test()
    with pytest.raises(ValueError, match="0 and 1 only"):
        stats.mcnemar([0.5], [1.0])


def test_holm_adjusts_in_the_order_given() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []
    with pytest.raises(ValueError, match="no NaN"):
        stats.holm([float("nan")])


def test_the_prior_prefers_what_was_right_and_takes_the_first_on_ties() -> None:
    prior = fit_option_prior([question("CT.|MRI", "A"), question("PET| ct ", "B")])
    # ct: (2 + 0.25) / 3 = 0.75; mri and pet: 0.25 / 2; never offered: 0.25 / 1.
    assert prior.predict(["MRI", "Ct"]) == "B"
    assert prior.predict(["MRI", "unseen"]) == "B"
    assert prior.predict(["MRI", "PET"]) == "A"


def test_the_prior_counts_closed_test_samples_only() -> None:
    train = [question("CT|MRI", "A")]
    test = [question("MRI|CT", "B"), question("MRI|ct.", "A"), question("", "liver")]
    assert fit_option_prior(train).accuracy(test) == 0.5
    assert fit_option_prior(train).accuracy([question("", "liver")]) is None
    assert fit_option_prior([question("", "liver")]).accuracy(test) == 0.5


@pytest.mark.parametrize(
    ("a", "b", "kappa"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 1.0),
        ([0, 3], [3, 0], -1.0),
        ([0, 0, 3, 3], [0, 3, 0, 3], 0.0),
        # Squared distances: 1 + 0 + 0 + 1 observed, (1 + 4 + 0 + 1 + 1 + 0 + 4 + 1) / 2 by chance.
        ([0, 1, 2, 3], [1, 1, 2, 2], 1 - 2 / 6),
        ([2, 2], [2, 2], None),
    ],
)
def test_weighted_kappa(a: list[int], b: list[int], kappa: float | None) -> None:
    found = stats.weighted_kappa(a, b, top=3)
    assert found == (None if kappa is None else pytest.approx(kappa))


def test_sign_flip_agrees_with_the_exact_test_of_zeros_and_ones() -> None:
    a, b = [1.0] * 9 + [0.0] * 3 + [1.0] * 5, [0.0] * 9 + [1.0] * 3 + [1.0] * 5
    exact = stats.mcnemar(a, b)
    found = stats.sign_flip([x - y for x, y in zip(a, b, strict=True)], seed=0)
    assert found == pytest.approx(exact, abs=0.015)
    assert stats.sign_flip([0.0, 0.0], seed=0) == 1.0
    assert stats.sign_flip([0.2] * 40, seed=0) == pytest.approx(1 / 10_001)


def test_mean_over_strata_gives_each_the_same_weight() -> None:
    found = stats.mean_over_strata([[1.0] * 100, [0.0, 1.0] * 2], seed=0)
    assert found.mean == pytest.approx(0.75)
    assert found.low < 0.75 < found.high
    with pytest.raises(ValueError, match="an item in each"):
        stats.mean_over_strata([[1.0], []], seed=0)
