"""Intervals, paired tests and their power for clustered questions; the agreement of two graders.

Questions about one image or patient are not independent, so clusters of them are what is counted.
A mean is over questions, each with the same weight, or over cells: the mean of the cells' means.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.05
"""Of tests, two-sided; intervals are of 95 %."""
FEWEST = 6
"""Clusters with which a difference can be shown at all."""
FEWEST_FOR_INTERVAL = 3
"""Clusters of an accuracy; the interval of two is nearly the whole range."""
CORRELATION = 0.2
"""Of the answers within a cluster, assumed where none were given yet or all are alike."""
_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
_Z80 = 0.8416212335729143  # 80 %


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int
    """Questions."""
    clusters: int
    design_effect: float
    """How many times the variance of as many independent questions it has; at least 1."""


@dataclass(frozen=True)
class Difference(Estimate):
    """Mean of a - b over the same questions; 0 is in its interval exactly where p > 0.05."""

    p: float
    """Two-sided."""
    discordance: float
    """Mean square of a - b: of right and wrong answers the share of questions answered unlike."""

    @property
    def in_points(self) -> Difference:
        """Mean and interval in percent points."""
        # Rounded, since sums differ in their last digits: 13.75 is to read the same in every table.
        mean = round(100 * self.mean, 9) + 0.0  # and never -0.0
        return replace(self, mean=mean, low=100 * self.low, high=100 * self.high)


def accuracy(scores: ArrayLike, clusters: ArrayLike, cells: ArrayLike | None = None) -> Estimate:
    """Mean of scores from 0 to 1 with Wilson's interval at the effective number of questions.

    `clusters` and `cells` label the cluster and the cell of each score; with `cells` the mean is
    over cells, else over questions. The effective number of questions is that of independent ones
    with the variance of a jackknife over clusters, at most as many as there are; Student's t with
    effective clusters - 1 degrees of freedom is in it. Where each question is its own cluster this
    is Wilson's own interval. Fewer than two clusters give 0 to 1.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953; effective sample size with t: Korn and
    Graubard 1998, Survey Methodology 24, 193-201; jackknife over clusters: Cameron and Miller 2015,
    doi:10.3368/jhr.50.2.317; effective numbers under weights: Kish 1965, Survey Sampling.
    """
    sums = _sums(scores, clusters, cells)
    if sums.low < 0 or sums.high > 1:
        raise ValueError(f"scores from {sums.low} to {sums.high}; needs scores from 0 to 1")
    mean, count = min(max(sums.mean, 0.0), 1.0), len(sums.totals)
    if count < 2:
        return Estimate(mean, 0.0, 1.0, sums.n, count, 1.0)
    residuals = (sums.totals - sums.mean * sums.weights) / (1 - sums.weights)
    variance = (count - 1) / count * float(residuals @ residuals)
    effect = max(variance / sums.variance, 1.0) if sums.variance else 1.0
    ends = wilson(mean, _effective_n(sums, mean * (1 - mean), variance))
    return Estimate(mean, *ends, sums.n, count, effect)


def _effective_n(sums: _Sums, spread: float, variance: float) -> float:
    """Independent questions of this spread whose mean has the variance."""
    if not spread:  # all right or all wrong
        return sums.effective_n / _assumed_design_effect(sums)
    independent = spread / sums.variance if sums.variance else sums.effective_n
    if not variance or len(sums.totals) == sums.n:
        return independent
    t = _t95(sums.effective_clusters - 1)
    return min(independent, spread / variance * (_Z95 / t) ** 2)


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a share of n independent questions; n may be fractional.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953, without continuity correction.
    """
    if not 0 <= share <= 1 or n < 0:
        raise ValueError(f"share={share}, n={n}; needs 0 <= share <= 1 and n >= 0")
    centre = share * n + _Z95**2 / 2
    half = _Z95 * math.sqrt(share * (1 - share) * n + _Z95**2 / 4)
    low = 0.0 if share == 0 else (centre - half) / (n + _Z95**2)  # exact ends, despite rounding
    high = 1.0 if share == 1 else (centre + half) / (n + _Z95**2)
    return low, high


def half_width(change: float, n: int, discordance: float) -> float:
    """Half of the 95 % interval of a paired difference of two shares, of which nothing is known but
    the number of independent questions; `discordance` of them are taken as answered unlike.

    Source: the Wald interval of McNemar's difference, e.g. Agresti 2013, Categorical Data Analysis.
    """
    return _Z95 * math.sqrt((max(discordance, abs(change)) - change**2) / n)


def difference(
    changes: ArrayLike, clusters: ArrayLike, cells: ArrayLike | None = None
) -> Difference:
    """Mean of changes from -1 to 1, a - b of each question, with the interval and p of one test.

    The score test by clusters: with S the sum of a cluster's weighted changes and W that of its
    weights, d is refused where (sum S - d sum W)^2 > 1.96^2 (sum (S - d W)^2 + pseudo). `pseudo` is
    half a question in each field of the paired table, so that changes that are all alike have a
    spread, then times an assumed design effect. p is at least 2^(1 - G), the least that flipping
    the signs of G clusters can give: fewer than six show no difference, and fewer than two give the
    whole range and p = 1.

    Source: score test with clusters: Rao and Scott 1992, doi:10.2307/2532311, and Guo et al. 2005,
    Statistics in Medicine 24, 3479-3495; half a pair in each field: Agresti and Min 2005,
    doi:10.1002/sim.1781.
    """
    sums = _sums(changes, clusters, cells)
    if sums.low < -1 or sums.high > 1:
        raise ValueError(f"changes from {sums.low} to {sums.high}; needs changes from -1 to 1")
    count, discordance = len(sums.totals), sums.mean_square
    if count < 2:
        return Difference(sums.mean, -1.0, 1.0, sums.n, count, 1.0, 1.0, discordance)
    residuals = sums.totals - sums.mean * sums.weights
    variance = count / (count - 1) * float(residuals @ residuals)
    effect = max(variance / sums.variance, 1.0) if sums.variance else 1.0
    low, high, p = _score_test(sums)
    return Difference(sums.mean, low, high, sums.n, count, effect, p, discordance)


def _score_test(sums: _Sums) -> tuple[float, float, float]:
    """Interval, in the range -1 to 1, and p."""
    totals, weights, mean = sums.totals, sums.weights, sums.mean
    alike = sums.low == sums.high  # which tells nothing of how alike those of a cluster are
    pseudo = (_assumed_design_effect(sums) if alike else 1.0) / sums.n**2
    score = abs(mean) / math.sqrt(float(totals @ totals) + pseudo)
    p = max(math.erfc(score / math.sqrt(2)), 2.0 ** (1 - len(totals)))
    # All d with a d^2 - 2 b d + c <= 0, where pseudo(d) = pseudo (1 + 2 d^2).
    a = 1 - _Z95**2 * (float(weights @ weights) + 2 * pseudo)
    b = mean - _Z95**2 * float(totals @ weights)
    c = mean**2 - _Z95**2 * (float(totals @ totals) + pseudo)
    root = math.sqrt(max(b**2 - a * c, 0.0))
    if a > 0:
        low, high = max((b - root) / a, -1.0), min((b + root) / a, 1.0)
    else:  # clusters so uneven that no d far from the mean is refused
        low, high = -1.0, 1.0
        if p <= LEVEL:
            low, high = (c / (b + root), 1.0) if mean > 0 else (-1.0, c / (b - root))
    if p > LEVEL:  # despite rounding, and with few clusters
        low, high = min(low, 0.0), max(high, 0.0)
    return low, high, p


@dataclass(frozen=True)
class _Sums:
    """Scores and weights summed by cluster; all weights together are 1."""

    totals: np.ndarray
    """Of score times weight, by cluster."""
    weights: np.ndarray
    """By cluster."""
    n: int
    mean: float
    mean_square: float
    variance: float
    """Of the mean, if the questions were independent."""
    effective_n: float
    """Questions of equal weight that would do: Kish's n."""
    low: float
    """Of the scores."""
    high: float

    @property
    def effective_clusters(self) -> float:
        return 1 / float(self.weights @ self.weights)


def _sums(scores: ArrayLike, clusters: ArrayLike, cells: ArrayLike | None) -> _Sums:
    values = np.asarray(scores, float)
    if not len(values) or not len(values) == len(np.asarray(clusters)):
        raise ValueError(
            f"{len(values)} scores and {len(np.asarray(clusters))} clusters; needs a cluster for "
            "each score, and at least one"
        )
    codes, square = _codes(clusters), values**2
    weights = np.full(len(values), 1 / len(values))
    ends, mean = (float(values.min()), float(values.max())), float(values.mean())
    if cells is not None:
        places = _codes(cells)
        counts = np.bincount(places)
        weights = 1 / (len(counts) * counts[places])
        mean = float((np.bincount(places, values) / counts).mean())
        values = _within_cells(values, codes, places, mean)
    return _Sums(
        totals=np.bincount(codes, weights * values),
        weights=np.bincount(codes, weights),
        n=len(values),
        mean=mean,
        mean_square=float(weights @ square),
        variance=float(weights**2 @ (values - mean) ** 2),
        effective_n=1 / float(weights @ weights),
        low=ends[0],
        high=ends[1],
    )


def _within_cells(
    values: np.ndarray, clusters: np.ndarray, cells: np.ndarray, mean: float
) -> np.ndarray:
    """The values with each cell's mean moved to the mean over cells: which cells there are is
    given, so how they differ is no uncertainty. Cells of one cluster, or of one value throughout,
    show no spread of their own and stay as they are."""
    counts = np.bincount(cells)
    means = np.bincount(cells, values) / counts
    pairs = np.unique(np.stack([cells, clusters]), axis=1)[0]
    clusters_of = np.bincount(pairs)
    spread = np.bincount(cells, (values - means[cells]) ** 2) > 1e-12
    moved = (spread & (clusters_of > 1))[cells]
    scale = np.sqrt(clusters_of / np.maximum(clusters_of - 1, 1))  # for the estimated mean
    return np.where(moved, mean + (values - means[cells]) * scale[cells], values)


def _codes(labels: ArrayLike) -> np.ndarray:
    return np.unique(np.asarray(labels), return_inverse=True)[1]


def design_effect(clusters: ArrayLike, correlation: float = CORRELATION) -> float:
    """What clusters of questions do to a variance, if their answers have this correlation.

    Source: Kish 1965, Survey Sampling: 1 + (m - 1) correlation, with m the size of the cluster of
    an average question.
    """
    sizes = np.bincount(_codes(clusters))
    return 1 + (float(sizes @ sizes) / float(sizes.sum()) - 1) * correlation


def _assumed_design_effect(sums: _Sums) -> float:
    size = max(sums.effective_n / sums.effective_clusters, 1.0)
    return 1 + (size - 1) * CORRELATION


@dataclass(frozen=True)
class Power:
    """What a paired test shows with 80 % power, two-sided at 5 %, before Holm's adjustment."""

    smallest_difference: float | None
    """Percent points; None where no difference can be shown."""
    questions_needed: int
    """For the difference wanted."""


def power(
    n: int, clusters: int, *, discordance: float, wanted: float, design_effect: float = 1.0
) -> Power:
    """What a paired test of n questions in clusters shows, and what `wanted` percent points need.

    `discordance` is the share of questions that both answer unlike; a difference cannot exceed it,
    so a larger difference raises it.

    Source: Connor 1987, doi:10.2307/2531961, with n divided by the design effect.
    """
    change = wanted / 100
    needed = _connor(change, max(discordance, change)) * design_effect
    return Power(
        None if clusters < FEWEST else _smallest_difference(n / design_effect, discordance),
        math.ceil(needed - 1e-9),
    )


def _smallest_difference(n: float, discordance: float) -> float | None:
    """Connor's n, solved for the difference: two quadratic equations."""
    quadratic = n + _Z80**2
    root = math.sqrt(max(_Z95**2 * n - quadratic * (_Z95**2 - _Z80**2), 0.0))
    change = math.sqrt(discordance) * (_Z95 * math.sqrt(n) + root) / quadratic
    if change >= discordance:  # then all that is unlike is the difference; in sqrt(1 - change)
        if n < _Z95**2:
            return None
        root = math.sqrt((_Z95 * _Z80) ** 2 + quadratic * (n - _Z95**2))
        change = 1 - ((root - _Z95 * _Z80) / quadratic) ** 2
    return 100 * change


def _connor(difference: float, discordance: float) -> float:
    rest = math.sqrt(max(discordance - difference**2, 0.0))
    return (_Z95 * math.sqrt(discordance) + _Z80 * rest) ** 2 / difference**2


@functools.lru_cache(maxsize=4096)
def _t95(degrees: float) -> float:
    """97.5 % quantile of Student's t."""
    from scipy.special import stdtrit  # a quarter of a second; scipy.stats takes a second

    return float(stdtrit(degrees, 0.975))


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

    if len({*a, *b}) == 1:
        return None
    return float(cohen_kappa_score(a, b, labels=range(top + 1), weights="quadratic"))
