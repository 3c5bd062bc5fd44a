"""Intervals, paired tests and the agreement of two graders."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the same items with its 95 % interval."""

    mean: float
    low: float
    high: float


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion; (0, 1) where n is 0, since nothing is known.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953, without continuity correction.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct={correct}, n={n}; needs 0 <= correct <= n")
    if n == 0:
        return 0.0, 1.0
    share, spread = correct / n, _Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    low = 0.0 if correct == 0 else centre - half  # exact ends, which rounding would miss
    high = 1.0 if correct == n else centre + half
    return low, high


def paired_difference(a: ArrayLike, b: ArrayLike, *, seed: int, draws: int = 10_000) -> Difference:
    """Mean of a - b and its percentile interval by a bootstrap over items.

    Both score the same items in the same order. Source: Efron and Tibshirani 1993, chapter 13.
    """
    scores_a, scores_b = _paired(a, b)
    return mean_over_strata([scores_a - scores_b], seed=seed, draws=draws)


def mean_over_strata(strata: Sequence[ArrayLike], *, seed: int, draws: int = 10_000) -> Difference:
    """Mean over the strata of the mean in each, with its percentile interval.

    The bootstrap draws items within their stratum, as many as it has.
    """
    arrays = [np.asarray(stratum, float) for stratum in strata]
    if not arrays or not all(len(array) for array in arrays):
        raise ValueError("needs at least one stratum, and an item in each")
    mean, means = 0.0, np.zeros(draws)
    for place, array in enumerate(arrays):
        # Equal values are drawn together: 10,000 draws of 100,000 items would not fit in memory.
        values, counts = np.unique(array, return_counts=True)
        mean += float(values @ counts / counts.sum()) / len(arrays)
        means += _bootstrap_means(tuple(values), tuple(counts), (seed, place), draws) / len(arrays)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(mean, float(low), float(high))


@functools.lru_cache(maxsize=512)
def _bootstrap_means(
    values: tuple[float, ...], counts: tuple[int, ...], seed: tuple[int, int], draws: int
) -> np.ndarray:
    """Means of `draws` samples with replacement. Cached, since cells of few questions repeat."""
    rng, shares = np.random.default_rng(seed), np.asarray(counts) / sum(counts)
    means = np.empty(draws)
    step = max(1, 4_000_000 // len(values))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        sample_counts = rng.multinomial(sum(counts), shares, size=size)
        means[start : start + size] = sample_counts @ np.asarray(values) / sum(counts)
    return means


def sign_flip(differences: ArrayLike, *, seed: int, draws: int = 10_000) -> float:
    """Two-sided p of the hypothesis that two models could change places on any item.

    Takes a - b of each item, of any scale, so also of means over several models; its least value
    is 1 / (draws + 1). With 0 and 1 it is McNemar's exact test but for the draws.
    Source: Noreen 1989, Computer-Intensive Methods for Testing Hypotheses, approximate
    randomization.
    """
    changes = np.asarray(differences, float)
    sizes = np.abs(changes)
    values, counts = np.unique(sizes[sizes > 0], return_counts=True)
    if not len(values):
        return 1.0
    rng = np.random.default_rng(seed)
    flipped = np.zeros(draws)
    for value, count in zip(values, counts, strict=True):
        flipped += value * (2 * rng.binomial(count, 0.5, size=draws) - count)
    observed = abs(float(np.sum(changes)))
    as_large = int(np.count_nonzero(np.abs(flipped) >= observed - 1e-9))  # ties but for rounding
    return (1 + as_large) / (draws + 1)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided p of the hypothesis that two models are right equally often.

    Takes 0 and 1 (or booleans) for the same items in the same order; 1.0 where no item differs.
    Source: McNemar 1947, doi:10.1007/BF02295996, with the exact binomial distribution.
    """
    # A quarter of a second; scipy.stats.binomtest, the same number, needs six times as long.
    from scipy.special import bdtr

    scores_a, scores_b = _paired(a, b)
    if not np.isin([scores_a, scores_b], (0.0, 1.0)).all():
        raise ValueError("mcnemar takes 0 and 1 only; use paired_difference for graded scores")
    only_a, only_b = int(np.sum(scores_a > scores_b)), int(np.sum(scores_a < scores_b))
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given; compare them with the level of the whole family.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p_values={list(p_values)}; needs numbers from 0 to 1, no NaN")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def weighted_kappa(a: Sequence[int], b: Sequence[int], *, top: int) -> float | None:
    """Agreement of two graders on a scale of 0 to `top`, quadratic weights: 1 is full, 0 chance.

    None where both give one and the same score throughout, which leaves nothing to agree on.
    Source: Cohen 1968, doi:10.1037/h0026256.
    """
    from sklearn.metrics import cohen_kappa_score  # seconds

    _paired(a, b)
    if len({*a, *b}) == 1:
        return None
    return float(cohen_kappa_score(a, b, labels=range(top + 1), weights="quadratic"))


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores_a, scores_b = np.asarray(a, float), np.asarray(b, float)
    if len(scores_a) != len(scores_b) or len(scores_a) == 0:
        raise ValueError(
            f"{len(scores_a)} and {len(scores_b)} scores; a paired comparison needs the same "
            "items, at least one"
        )
    return scores_a, scores_b
