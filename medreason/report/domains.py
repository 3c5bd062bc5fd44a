"""Each arm over all of its models, by how far a test lies from what a model was trained on.

A question counts once: as the share of the models at that distance that answer it right. Means are
over questions or over cells, as `statistics.average` says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from medreason.metrics import HEADLINE, Metric, Shown
from medreason.report import comparisons
from medreason.report.comparisons import Comparison
from medreason.report.matrices import Arm, trained_key
from medreason.report.runs import Cell, estimate
from medreason.stats import FEWEST

ALL, IN_DOMAIN, ELSEWHERE = "all questions", "in-domain", "out of domain"
DISTANCES = (ALL, IN_DOMAIN, ELSEWHERE, "same modality", "same task", "neither")
"""`ALL` where the sweep has start models alone, else the others."""
_METRICS = [
    metric
    for metric in Metric.shown_in(Shown.TERMINAL)
    if metric not in (*HEADLINE, Metric.ABOVE_PRIOR)
] + [Metric.GUESSING]


@dataclass(frozen=True)
class Total:
    """The results of an arm at one distance. Accuracies are shares of 1."""

    arm: str
    distance: str
    models: int
    average: str
    """Means are over questions or over cells."""
    cells: int
    n: int
    """Questions, each counted once."""
    clusters: int
    accuracy: float
    ci_low: float
    ci_high: float
    metrics: Mapping[str, float]
    """By `Metric`, where every evaluation has them."""


@dataclass(frozen=True)
class NotCompared:
    """Arm a and an arm b before it, between which no difference is shown."""

    a: str
    b: str
    reason: str


@dataclass(frozen=True)
class Domains:
    totals: Sequence[Total]
    compared: Sequence[Comparison]
    """Each arm with those before it: table `domains`, train = test = the distance."""
    not_compared: Sequence[NotCompared] = ()
    one_seed: frozenset[str] = frozenset()
    """See `comparisons.of_one_seed`."""
    seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of each trained arm."""

    def total(self, arm: str, distance: str) -> Total | None:
        return next((t for t in self.totals if (t.arm, t.distance) == (arm, distance)), None)

    def of_one_seed(self, change: Comparison) -> list[str]:
        """Its arms of one training seed, where it is clear by its questions: nothing says so of
        other seeds."""
        clear = change.clear and change.clusters >= FEWEST
        return [arm for arm in (change.b, change.a) if clear and arm in self.one_seed]

    def change(self, a: str, b: str | None, distance: str) -> Comparison | None:
        """Arm a minus arm b."""
        same = (c for c in self.compared if (c.a, c.b, c.test) == (a, b, distance))
        return next(same, None)


def gather(arms: Sequence[Arm]) -> Domains:
    distances = _distances(arms)
    shares = {arm.name: _shares(arm, distances) for arm in arms}
    totals = [total for arm in arms for total in _totals(arm, shares[arm.name], distances)]
    differences = {
        (a, b): _changes(a, b, shares[a.name], shares[b.name]) for a, b in comparisons.pairs(arms)
    }
    compared = []
    for distance in DISTANCES:
        compared += comparisons.with_holm(
            [
                comparisons.comparison("domains", a, b, distance, distance, changed[distance])
                for (a, b), changed in differences.items()
                if distance in changed
            ]
        )
    without = _not_compared(arms, {k for k, v in differences.items() if v})
    seeds = comparisons.seeds(arms)
    return Domains(totals, compared, without, comparisons.of_one_seed(arms), seeds)


def _not_compared(arms: Sequence[Arm], compared: Collection[tuple[Arm, Arm]]) -> list[NotCompared]:
    """The pairs of arms that are not `compared`, with the reason."""
    return [
        NotCompared(a.name, b.name, comparisons.why_not(a, b) or _nothing_shared(a, b))
        for a, b in comparisons.all_pairs(arms)
        if (a, b) not in compared
    ]


def _nothing_shared(a: Arm, b: Arm) -> str:
    common = {*a.answers["question"]} & {*b.answers["question"]}
    return "trained on different cells" if common else "no question in common"


def written(domains: Domains) -> list[dict[str, Any]]:
    """A row an arm and distance, with the metrics as columns."""
    names = [n for n in _METRICS if any(n in total.metrics for total in domains.totals)]
    return [
        {key: value for key, value in asdict(total).items() if key != "metrics"}
        | {name: total.metrics.get(name) for name in names}
        for total in domains.totals
    ]


def _distances(arms: Sequence[Arm]) -> pd.DataFrame:
    """The distances of each tested cell from the cells trained on: trained, cell, distance.

    A start model, whose `trained` is empty, is compared with the models at every distance, on the
    cells they were tested on.
    """
    if all(arm.untrained for arm in arms):
        cells = sorted({cell for arm in arms for run in arm.runs for cell in run.tested_on})
        return pd.DataFrame({"trained": "", "cell": cells, "distance": ALL})
    rows = {
        (trained, cell, distance)
        for arm in arms
        for run in arm.runs
        if not arm.untrained
        for cell in run.tested_on
        for distance in _distance(run.trained_on, cell)
        for trained in (trained_key(run), "")
    }
    return pd.DataFrame(sorted(rows), columns=["trained", "cell", "distance"])


def _distance(trained: Collection[Cell], cell: Cell) -> tuple[str, ...]:
    if cell in trained:
        return (IN_DOMAIN,)
    modality, task = cell.split("/")
    if any(other.startswith(f"{modality}/") for other in trained):
        return ELSEWHERE, "same modality"
    same_task = any(other.endswith(f"/{task}") for other in trained)
    return ELSEWHERE, "same task" if same_task else "neither"


_QUESTION = ["cell", "question", "cluster"]


def _shares(arm: Arm, distances: pd.DataFrame) -> pd.DataFrame:
    """Of each question the share of right answers over the seeds of a model, in the order of the
    answers: distance, trained, cell, question, cluster, share."""
    answers = arm.answers.merge(distances, on=["trained", "cell"])
    groups = answers.groupby(["distance", "trained", *_QUESTION], sort=False)
    return groups["correct"].mean().rename("share").reset_index()


def _changes(a: Arm, b: Arm, of_a: pd.DataFrame, of_b: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The changes from arm b to arm a at each distance; of two start models once, since distances
    are those of trained models."""
    changed = _by_distance(_differences(of_a, of_b, b))
    if a.untrained:
        return {d: changed[d] for d in (ALL, IN_DOMAIN) if d in changed}
    return changed


def _differences(a: pd.DataFrame, b: pd.DataFrame, arm_b: Arm) -> pd.DataFrame:
    """Shares of arm a minus those of b, which is trained on the same or a start model."""
    keys = ["distance", "cell", "question", *([] if arm_b.untrained else ["trained"])]
    both = a.merge(b, on=keys, suffixes=("", "_b"))
    return both.assign(change=both["share"] - both["share_b"])


def _by_distance(shares: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """At each distance the means over models of each question's share, and change if it has one."""
    columns = [name for name in ("share", "change") if name in shares]
    means = shares.groupby(["distance", *_QUESTION], sort=False)[columns].mean().reset_index()
    return {str(distance): rows for distance, rows in means.groupby("distance", sort=False)}


def _totals(arm: Arm, shares: pd.DataFrame, distances: pd.DataFrame) -> list[Total]:
    metrics = arm.metrics.merge(distances, on=["trained", "cell"])
    metrics_at = dict(iter(metrics.groupby("distance")))
    questions_at = _by_distance(shares)
    return [
        _total(arm, distance, questions_at[distance], metrics_at[distance])
        for distance in DISTANCES
        if distance in questions_at
    ]


def _total(arm: Arm, distance: str, questions: pd.DataFrame, metrics: pd.DataFrame) -> Total:
    accuracy = estimate(questions, arm.statistics, "share")
    known = [name for name in _METRICS if name in metrics and metrics[name].notna().all()]
    cells = metrics.groupby("cell")[[Metric.N, *known]].mean()
    weight = cells[Metric.N] if arm.statistics.average == "questions" else cells[Metric.N] ** 0
    return Total(
        arm=arm.name,
        distance=distance,
        models=metrics["run"].nunique(),
        average=arm.statistics.average,
        cells=len(cells),
        n=accuracy.n,
        clusters=accuracy.clusters,
        accuracy=accuracy.mean,
        ci_low=accuracy.low,
        ci_high=accuracy.high,
        metrics={name: float(np.average(cells[name], weights=weight)) for name in known},
    )
