"""How often 95 % intervals hold the true value, how often tests find a difference, by simulation.

`python experiments/statistics/coverage.py` prints the tables of README.md; `accuracy`,
`difference`, `cells` or `power` behind it choose one, and --repeats and --seed are options.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from medreason import stats
from medreason.console import show

Interval = tuple[float, float]
Rng = np.random.Generator

CLUSTERS = (20, 50, 200)
SIZES = ("mean 2.5", "mean 7.5")
"""Of clusters, in questions: geometric, as of images; log-normal, as of patients."""
CORRELATIONS = (0.0, 0.1, 0.3)
SHARES = (0.2, 0.5, 0.9)
CHANGES = ((0.3, 0.0), (0.3, 0.1), (0.1, 0.05))
"""(discordance, difference)"""
CELLS = ((0.3, 0.0), (0.5, 0.05), (0.7, 0.1), (0.9, 0.05))
"""(accuracy, difference) of cells, each with twice the questions of the one before."""
DRAWS = 500  # of a bootstrap


def cluster_labels(rng: Rng, clusters: int, sizes: str) -> np.ndarray:
    """The cluster of each question."""
    if sizes == SIZES[0]:
        counts = rng.geometric(1 / 2.5, size=clusters)
    else:
        counts = np.maximum(np.round(rng.lognormal(1.6, 0.9, size=clusters)), 1).astype(int)
    return np.repeat(np.arange(clusters), counts)


def draw(rng: Rng, labels: np.ndarray, shares: Sequence[float], correlation: float) -> np.ndarray:
    """For each question a category with these shares; those of a cluster are correlated.

    Each cluster has shares of its own, from a Dirichlet distribution (with two categories a beta
    distribution), whose concentration gives the correlation within a cluster.
    """
    clusters = int(labels[-1]) + 1
    own = np.tile(np.asarray(shares, float), (clusters, 1))
    if correlation:
        own = rng.standard_gamma(own * (1 - correlation) / correlation) + 1e-300
        own /= own.sum(axis=1, keepdims=True)
    limits = np.cumsum(own, axis=1)[labels]
    return (rng.random((len(labels), 1)) > limits).sum(axis=1).clip(max=len(shares) - 1)


def draw_hits(rng: Rng, labels: np.ndarray, share: float, correlation: float) -> np.ndarray:
    return 1.0 - draw(rng, labels, (share, 1 - share), correlation)


def draw_changes(
    rng: Rng, labels: np.ndarray, discordance: float, difference: float, correlation: float
) -> np.ndarray:
    """1, 0 or -1 of each question."""
    gained = (discordance + difference) / 2
    shares = (gained, 1 - discordance, discordance - gained)
    return 1.0 - draw(rng, labels, shares, correlation)


def wilson(rng: Rng, scores: np.ndarray, labels: np.ndarray) -> Interval:
    return stats.wilson(float(scores.mean()), len(scores))


def by_clusters(rng: Rng, scores: np.ndarray, labels: np.ndarray) -> Interval:
    estimate = stats.accuracy(scores, labels)
    return estimate.low, estimate.high


def difference_by_clusters(rng: Rng, scores: np.ndarray, labels: np.ndarray) -> Interval:
    change = stats.difference(scores, labels)
    return change.low, change.high


def bootstrap(rng: Rng, scores: np.ndarray, labels: np.ndarray) -> Interval:
    """Percentile bootstrap that draws clusters."""
    sums, counts = np.bincount(labels, scores), np.bincount(labels)
    draws = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS)
    low, high = np.quantile((draws @ sums) / (draws @ counts), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_questions(rng: Rng, scores: np.ndarray, labels: np.ndarray) -> Interval:
    """Percentile bootstrap that draws questions, as if each were its own cluster."""
    return bootstrap(rng, scores, np.arange(len(scores)))


Method = Callable[[Rng, np.ndarray, np.ndarray], Interval]
Draw = Callable[..., np.ndarray]


def coverage(
    rng: Rng,
    method: Method,
    draw_scores: Draw,
    truth: float,
    clusters: int,
    sizes: str,
    repeats: int,
) -> float:
    """Percent of the intervals that hold the truth."""
    held = 0
    for _ in range(repeats):
        labels = cluster_labels(rng, clusters, sizes)
        low, high = method(rng, draw_scores(rng, labels), labels)
        held += low - 1e-12 <= truth <= high + 1e-12
    return 100 * held / repeats


def settings() -> Iterable[tuple[str, float, int]]:
    return itertools.product(SIZES, CORRELATIONS, CLUSTERS)


def coverage_rows(
    rng: Rng, repeats: int, methods: Sequence[Method], draws: Sequence[tuple[float, Draw]]
) -> list[list[str]]:
    """A column for each method and each (truth, draw); the slow bootstraps have fewer repeats."""
    rows = []
    for sizes, correlation, clusters in settings():
        row = [sizes, f"{correlation:g}", str(clusters)]
        for method, (truth, draw_scores) in itertools.product(methods, draws):
            scores = functools.partial(draw_scores, correlation=correlation)
            count = repeats // 4 if "bootstrap" in method.__name__ else repeats
            row.append(f"{coverage(rng, method, scores, truth, clusters, sizes, count):.1f}")
        rows.append(row)
    return rows


def cell_rows(rng: Rng, repeats: int) -> list[list[str]]:
    """Coverage of the mean over four cells of unlike size, accuracy and difference."""
    accuracy, difference = (np.mean([cell[i] for cell in CELLS]) for i in (0, 1))
    rows = []
    for sizes, correlation, clusters in settings():
        held = [0, 0]
        for _ in range(repeats):
            labels = cluster_labels(rng, clusters, sizes)
            cells = rng.choice(4, size=clusters, p=[1 / 15, 2 / 15, 4 / 15, 8 / 15])
            cells[:4] = range(4)
            cells = cells[labels]
            hits, changes = np.zeros(len(labels)), np.zeros(len(labels))
            for cell, (share, d) in enumerate(CELLS):
                inside = cells == cell
                _, own = np.unique(labels[inside], return_inverse=True)
                hits[inside] = draw_hits(rng, own, share, correlation)
                changes[inside] = draw_changes(rng, own, 0.3, d, correlation)
            for i, (estimate, truth) in enumerate(
                [
                    (stats.accuracy(hits, labels, cells), accuracy),
                    (stats.difference(changes, labels, cells), difference),
                ]
            ):
                held[i] += estimate.low <= truth <= estimate.high
        rows.append(
            [sizes, f"{correlation:g}", str(clusters), *(f"{100 * h / repeats:.1f}" for h in held)]
        )
    return rows


def power_rows(rng: Rng, repeats: int) -> list[list[str]]:
    """The difference of 80 % power by the formula, and how often the test finds it, and none."""
    rows = []
    for (sizes, correlation, clusters), psi in itertools.product(settings(), (0.1, 0.3)):
        labels = cluster_labels(rng, clusters, sizes)
        effect = stats.design_effect(labels, correlation)
        able = stats.power(
            len(labels), clusters, discordance=psi, wanted=5, design_effect=effect
        ).smallest_difference
        if able is None:
            continue
        found = []
        for d in (able / 100, 0.0):
            changes = [
                draw_changes(rng, labels, max(psi, d), d, correlation) for _ in range(repeats)
            ]
            found.append(np.mean([stats.difference(c, labels).p <= stats.LEVEL for c in changes]))
        numbers = [f"{psi:g}", f"{able:.1f}", *(f"{100 * share:.1f}" for share in found)]
        size = [str(len(labels)), f"{effect:.2f}"]
        rows.append([sizes, f"{correlation:g}", str(clusters), *size, *numbers])
    return rows


def show_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    heads = ["sizes", "correlation", "clusters", *heads]
    show(f"\n### {title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        show(f"| {' | '.join(row)} |")


def accuracy_table(rng: Rng, repeats: int) -> None:
    methods: dict[str, Method] = {"ours": by_clusters, "Wilson": wilson, "bootstrap": bootstrap}
    heads = [f"{name} {share:g}" for name in methods for share in SHARES]
    draws = [(share, functools.partial(draw_hits, share=share)) for share in SHARES]
    show_table("Accuracy", heads, coverage_rows(rng, repeats, [*methods.values()], draws))


def difference_table(rng: Rng, repeats: int) -> None:
    methods: dict[str, Method] = {
        "ours": difference_by_clusters,
        "bootstrap": bootstrap,
        "of questions": bootstrap_questions,
    }
    heads = [f"{name} {psi:g}, {100 * d:g}" for name in methods for psi, d in CHANGES]
    draws = [
        (d, functools.partial(draw_changes, discordance=psi, difference=d)) for psi, d in CHANGES
    ]
    show_table("Difference", heads, coverage_rows(rng, repeats, [*methods.values()], draws))


def cells_table(rng: Rng, repeats: int) -> None:
    show_table("Over cells", ["accuracy", "difference"], cell_rows(rng, repeats))


def power_table(rng: Rng, repeats: int) -> None:
    heads = ["n", "design effect", "discordance", "difference", "found", "found of none"]
    show_table("Power", heads, power_rows(rng, repeats))


TABLES = {
    "accuracy": accuracy_table,
    "difference": difference_table,
    "cells": cells_table,
    "power": power_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=[*TABLES], help=", ".join(TABLES))
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for place, (name, table) in enumerate(TABLES.items()):
        if name in options.tables:
            table(np.random.default_rng([options.seed, place]), options.repeats)


if __name__ == "__main__":
    main()
