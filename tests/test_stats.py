"""Statistics against published or hand-computed values."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medreason import stats
from medreason.option_prior import fit_option_prior
from medreason.samples import Sample

COVERAGE = Path(__file__).parents[1] / "experiments" / "statistics" / "coverage.py"


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
    ],
)
def test_wilson_gives_published_intervals(correct: int, n: int, low: float, high: float) -> None:
    assert stats.wilson(correct / n, n) == pytest.approx((low, high), abs=5e-5)
    scores = [1.0] * correct + [0.0] * (n - correct)
    found = stats.accuracy(scores, range(n))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert (found.n, found.clusters, found.design_effect) == (n, n, pytest.approx(1, abs=0.2))


def test_wilson_knows_nothing_without_questions() -> None:
    assert stats.wilson(0.5, 0) == (0.0, 1.0)


def test_scores_that_are_no_shares_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores from 0.0 to 2.0"):
        stats.accuracy([0.0, 2.0], [0, 1])
    with pytest.raises(ValueError, match=r"changes from -2.0 to 0.0"):
        stats.difference([0.0, -2.0], [0, 1])
    with pytest.raises(ValueError, match="needs a cluster for each score, and at least one"):
        stats.accuracy([], [])
    with pytest.raises(ValueError, match="2 scores and 1 clusters"):
        stats.difference([0.0, 1.0], [0])
    with pytest.raises(ValueError, match=r"share=1.5"):
        stats.wilson(1.5, 2)


def test_questions_asked_twice_in_a_cluster_count_once() -> None:
    hits = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0] * 3
    once = stats.accuracy(hits, range(30))
    twice = stats.accuracy(hits * 2, [*range(30)] * 2)
    assert (twice.mean, twice.n, twice.clusters) == (once.mean, 60, 30)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=0.02)
    assert twice.design_effect == pytest.approx(2, rel=0.1)
    changes = [1.0, 0.0, 0.0, -1.0, 1.0] * 6
    once, twice = (stats.difference(changes * times, [*range(30)] * times) for times in (1, 2))
    assert (twice.low, twice.high, twice.p) == pytest.approx(
        (once.low, once.high, once.p), abs=0.02
    )
    assert twice.low < stats.difference(changes * 2, range(60)).low < once.mean


def test_all_right_leaves_more_doubt_where_clusters_are_large() -> None:
    alone = stats.accuracy([1.0] * 60, range(60))
    together = stats.accuracy([1.0] * 60, [i % 10 for i in range(60)])
    assert alone.low == pytest.approx(stats.wilson(1, 60)[0])
    assert together.low == pytest.approx(stats.wilson(1, 60 / (1 + 5 * stats.CORRELATION))[0])


def test_one_cluster_tells_nothing() -> None:
    found = stats.accuracy([1.0, 1.0, 0.0], ["a"] * 3)
    assert (found.low, found.high, found.clusters) == (0.0, 1.0, 1)
    change = stats.difference([1.0, 1.0, 1.0], ["a"] * 3)
    assert (change.mean, change.low, change.high, change.p) == (1.0, -1.0, 1.0, 1.0)


def test_difference_is_the_score_test_of_mcnemar_where_every_question_is_a_cluster() -> None:
    """With half a pair in each field: (b - c)^2 / (b + c + 1)."""
    changes = [1.0] * 30 + [-1.0] * 12 + [0.0] * 158
    found = stats.difference(changes, range(200))
    score = (30 - 12) / math.sqrt(30 + 12 + 1)
    assert found.p == pytest.approx(math.erfc(score / math.sqrt(2)))
    assert found.mean == pytest.approx(0.09)
    assert found.discordance == pytest.approx(0.21)
    # Agresti and Min's interval: the same numbers with b + 0.5, c + 0.5 and n + 2.
    adjusted, n = (30 - 12) / 202, 202
    half = 1.96 * math.sqrt((43 / n - adjusted**2) / n)
    assert (found.low, found.high) == pytest.approx((adjusted - half, adjusted + half), abs=0.003)


@pytest.mark.parametrize("clusters", [2, 5, 6, 12])
def test_p_is_no_less_than_flipped_signs_can_give(clusters: int) -> None:
    changes, labels = [1.0] * 20 * clusters, [*range(clusters)] * 20
    found = stats.difference([*changes[:-1], 0.5], labels)
    assert 2.0 ** (1 - clusters) <= found.p < 2.0 ** (2 - clusters)
    assert (found.low <= 0) == (clusters < stats.FEWEST)
    # All alike: 20 questions of a cluster are not 20 independent ones.
    alike = stats.difference(changes, labels)
    assert alike.low < stats.difference(changes, range(20 * clusters)).low


def test_alike_answers_show_no_difference_and_leave_some_doubt() -> None:
    found = stats.difference([0.0] * 50, range(50))
    assert (found.mean, found.p) == (0.0, 1.0)
    assert -0.08 < found.low < 0 < found.high < 0.08


@st.composite
def clustered_changes(draw: st.DrawFn) -> tuple[list[float], list[int], list[int] | None]:
    n = draw(st.integers(1, 60))
    values = draw(st.sampled_from(([-1.0, 0.0, 1.0], [0.0, 1.0], [-1.0, -0.5, 0.0, 1 / 3, 1.0])))
    changes = draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))
    clusters = draw(st.lists(st.integers(0, draw(st.integers(0, 40))), min_size=n, max_size=n))
    cells = draw(st.none() | st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return changes, clusters, cells


@given(clustered_changes())
def test_zero_is_in_the_interval_exactly_where_p_is_above_the_level(
    data: tuple[list[float], list[int], list[int] | None],
) -> None:
    changes, clusters, cells = data
    found = stats.difference(changes, clusters, cells)
    assert -1 <= found.low <= found.high <= 1
    assert found.low <= found.mean + 1e-9
    assert found.mean <= found.high + 1e-9
    assert (found.low <= 0 <= found.high) == (found.p > 0.05)
    turned = stats.difference([-change for change in changes], clusters, cells)
    assert (turned.mean, turned.low, turned.high, turned.p) == pytest.approx(
        (-found.mean, -found.high, -found.low, found.p), abs=1e-9
    )
    assert (found.n, found.clusters) == (len(changes), len(set(clusters)))


@given(clustered_changes())
def test_interval_of_an_accuracy_holds_it(
    data: tuple[list[float], list[int], list[int] | None],
) -> None:
    changes, clusters, cells = data
    scores = [(1 + change) / 2 for change in changes]
    found = stats.accuracy(scores, clusters, cells)
    assert 0 <= found.low <= found.mean + 1e-9
    assert found.mean <= found.high + 1e-9
    assert found.high <= 1
    assert found.design_effect >= 1


def test_mean_over_cells_gives_each_the_same_weight() -> None:
    hits, cells = [1.0] * 90 + [0.0] * 10 + [1.0, 0.0] * 5, ["a"] * 100 + ["b"] * 10
    assert stats.accuracy(hits, range(110)).mean == pytest.approx(95 / 110)
    found = stats.accuracy(hits, range(110), cells)
    assert found.mean == pytest.approx(0.7)
    # As the standard error of a mean of two means says: sqrt(0.09 / 100 + 0.25 / 10) / 2.
    half = 1.96 * math.sqrt(0.09 / 100 + 0.25 / 9) / 2
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)


def test_how_unlike_cells_are_is_no_uncertainty_of_their_mean() -> None:
    rng = np.random.default_rng(0)
    cells = np.repeat(range(4), 100)
    alike = (rng.random(400) < 0.5).astype(float)
    unlike = (rng.random(400) < np.array([0.05, 0.35, 0.65, 0.95])[cells]).astype(float)
    widths = [
        (found := stats.accuracy(hits, range(400), cells)).high - found.low
        for hits in (alike, unlike)
    ]
    assert widths[1] < 0.85 * widths[0]


def test_no_difference_has_no_sign() -> None:
    change = stats.difference([1 / 3, -1 / 3, -1e-18], range(3)).in_points
    assert f"{change.mean:+.1f}" == "+0.0"


def test_power_is_that_of_connor() -> None:
    # Connor 1987: n = (1.96 sqrt(psi) + 0.8416 sqrt(psi - d^2))^2 / d^2
    able = stats.power(100, 100, discordance=0.3, wanted=10)
    needed = (1.959964 * 0.3**0.5 + 0.841621 * (0.3 - 0.01) ** 0.5) ** 2 / 0.01
    assert able.questions_needed == math.ceil(needed) == 234
    assert able.smallest_difference
    reverse = stats.power(
        100, 100, discordance=0.3, wanted=able.smallest_difference
    ).questions_needed
    assert reverse == pytest.approx(100, abs=1)
    doubled = stats.power(100, 50, discordance=0.3, wanted=10, design_effect=2)
    assert doubled.questions_needed == pytest.approx(2 * needed, abs=1)
    assert doubled.smallest_difference == pytest.approx(
        stats.power(50, 50, discordance=0.3, wanted=10).smallest_difference
    )


def test_too_few_clusters_can_show_nothing() -> None:
    assert stats.power(500, 5, discordance=0.3, wanted=5).smallest_difference is None
    assert stats.power(3, 6, discordance=0.3, wanted=5).smallest_difference is None
    alike = stats.power(80, 8, discordance=0, wanted=5).smallest_difference
    assert alike == stats.power(80, 8, discordance=0.01, wanted=5).smallest_difference
    assert alike
    assert alike > 9
    able = stats.power(8, 8, discordance=0.1, wanted=5).smallest_difference
    assert able
    assert able > 10  # more than the discordance assumed: that of the difference itself


def test_design_effect_of_equal_clusters() -> None:
    assert stats.design_effect([0, 0, 1, 1, 2, 2], 0.5) == 1.5
    assert stats.design_effect(range(6), 0.5) == 1.0


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_simulation", COVERAGE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_intervals_hold_the_truth_as_often_as_they_say(simulation: ModuleType) -> None:
    """A small version of experiments/statistics: 400 repeats, whose standard error is 1.1 %."""
    rng, sizes = np.random.default_rng(1), simulation.SIZES[1]

    def hits(r: np.random.Generator, labels: np.ndarray) -> np.ndarray:
        return simulation.draw_hits(r, labels, 0.5, 0.3)

    def changes(r: np.random.Generator, labels: np.ndarray) -> np.ndarray:
        return simulation.draw_changes(r, labels, 0.3, 0.1, 0.3)

    for method, draw, truth, low, high in (
        (simulation.by_clusters, hits, 0.5, 92, 98),
        (simulation.difference_by_clusters, changes, 0.1, 92, 98),
        (simulation.wilson, hits, 0.5, 40, 80),  # questions as if they were independent
    ):
        held = simulation.coverage(rng, method, draw, truth, 50, sizes, 400)
        assert low <= held <= high


def test_power_formula_holds_in_simulation(simulation: ModuleType) -> None:
    rng = np.random.default_rng(2)
    labels = simulation.cluster_labels(rng, 100, simulation.SIZES[0])
    effect = stats.design_effect(labels, 0.2)
    able = stats.power(len(labels), 100, discordance=0.3, wanted=5, design_effect=effect)
    assert able.smallest_difference
    shown = [
        stats.difference(
            simulation.draw_changes(rng, labels, 0.3, able.smallest_difference / 100, 0.2), labels
        ).p
        <= stats.LEVEL
        for _ in range(300)
    ]
    assert 0.7 < np.mean(shown) < 0.9


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
