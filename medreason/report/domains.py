"""Each arm over all of its models, by how far a test lies from what a model was trained on.

Metrics are means over the cells tested, in each over the models at that distance, so that no cell
counts for more because it has more questions.
"""

from __future__ import annotations

import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from medreason.metrics import HEADLINE, Metric, Shown
from medreason.report import comparisons
from medreason.report.comparisons import Comparison
from medreason.report.matrices import Arm
from medreason.report.runs import Cell, Run
from medreason.stats import holm, mean_over_strata, wilson

IN_DOMAIN, ELSEWHERE = "in-domain", "out of domain"
DISTANCES = (IN_DOMAIN, ELSEWHERE, "same modality", "same task", "neither")
_METRICS = [
    metric
    for metric in Metric.shown_in(Shown.TERMINAL)
    if metric not in (*HEADLINE, Metric.ABOVE_PRIOR)
]

Pair = tuple[frozenset[Cell] | None, Cell]
"""What was trained on (none for a start model, which stands beside every model), and tested on."""
Shares = dict[Cell, dict[str, float]]
"""Test cell -> sample -> share of the models that answered it right."""


@dataclass(frozen=True)
class Total:
    """What an arm came to at one distance. Accuracies are shares of 1."""

    arm: str
    distance: str
    models: int
    cells: int
    n: int
    """Questions, each counted once."""
    accuracy: float
    ci_low: float
    ci_high: float
    metrics: Mapping[str, float]
    """By `Metric`, where every evaluation has them."""


@dataclass(frozen=True)
class Domains:
    totals: Sequence[Total]
    compared: Sequence[Comparison]
    """Each arm with those before it: table `domains`, train = test = the distance."""

    def total(self, arm: str, distance: str) -> Total | None:
        return next((t for t in self.totals if (t.arm, t.distance) == (arm, distance)), None)

    def change(self, a: str, b: str | None, distance: str) -> Comparison | None:
        """Arm a minus arm b."""
        found = (c for c in self.compared if (c.a, c.b, c.test) == (a, b, distance))
        return next(found, None)


def gather(arms: Sequence[Arm]) -> Domains:
    totals = [t for arm in arms for distance in DISTANCES if (t := _total(arm, distance, arms))]
    compared = []
    for distance in DISTANCES:
        rows = [c for a, b in comparisons.pairs(arms) if (c := _compared(a, b, distance))]
        adjusted = holm([row.p for row in rows])
        compared += [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]
    return Domains(totals, compared)


def written(found: Domains) -> list[dict[str, Any]]:
    """A row an arm and distance, with the metrics as columns."""
    names = [n for n in _METRICS if any(n in total.metrics for total in found.totals)]
    rows = []
    for total in found.totals:
        row = asdict(total)
        metrics = row.pop("metrics")
        rows.append(row | {name: metrics.get(name) for name in names})
    return rows


def _distance(run: Run, cell: Cell, distance: str) -> bool:
    """Whether a cell lies so far from what the run was trained on."""
    near = cell in run.trained_on
    modality = cell[0] in {modality for modality, _ in run.trained_on}
    task = cell[1] in {task for _, task in run.trained_on}
    return {
        IN_DOMAIN: near,
        ELSEWHERE: not near,
        "same modality": not near and modality,
        "same task": not near and task and not modality,
        "neither": not modality and not task,
    }[distance]


def _total(arm: Arm, distance: str, arms: Sequence[Arm]) -> Total | None:
    pairs = _pairs(arm, distance)
    if arm.untrained:
        cells = {
            cell for other in arms for _, cell in _pairs(other, distance) if not other.untrained
        }
        pairs = {pair: answers for pair, answers in pairs.items() if pair[1] in cells}
    if not pairs:
        return None
    shares = _over_models(pairs)
    strata = [list(answers.values()) for answers in shares.values()]
    flat = [share for some in strata for share in some]
    found = mean_over_strata(strata, seed=0)
    low, high = found.low, found.high
    if len(set(map(len, strata))) == 1 and set(flat) <= {0.0, 1.0}:
        low, high = wilson(int(sum(flat)), len(flat))
    members = [run for run in arm.runs if any((_key(arm, run), cell) in pairs for cell in shares)]
    return Total(
        *(arm.name, distance, len(members), len(shares), len(flat), found.mean, low, high),
        _metrics(arm, members, set(pairs)),
    )


def _pairs(arm: Arm, distance: str) -> dict[Pair, dict[str, float]]:
    """The share of right answers to each question over seeds; of a start model at any distance."""
    found: dict[Pair, dict[str, list[bool]]] = {}
    for run in arm.runs:
        for cell, answers in run.answers.items():
            if arm.untrained or _distance(run, cell, distance):
                samples = found.setdefault((_key(arm, run), cell), {})
                for sample, correct in answers.items():
                    samples.setdefault(sample, []).append(correct)
    return {
        pair: {sample: plain.fmean(given) for sample, given in samples.items()}
        for pair, samples in found.items()
    }


def _key(arm: Arm, run: Run) -> frozenset[Cell] | None:
    return None if arm.untrained else frozenset(run.trained_on)


def _over_models(pairs: Mapping[Pair, Mapping[str, float]]) -> Shares:
    found: dict[Cell, dict[str, list[float]]] = {}
    for (_, cell), answers in pairs.items():
        for sample, share in answers.items():
            found.setdefault(cell, {}).setdefault(sample, []).append(share)
    return {
        cell: {sample: plain.fmean(given) for sample, given in answers.items()}
        for cell, answers in found.items()
    }


def _metrics(arm: Arm, members: Sequence[Run], pairs: set[Pair]) -> dict[str, float]:
    found: dict[Cell, list[dict[str, Any]]] = {}
    for run in members:
        for key, metrics in run.cells.items():
            modality, task = key.split("/")
            if (_key(arm, run), (modality, task)) in pairs:
                found.setdefault((modality, task), []).append(metrics)
    return {
        name: plain.fmean(plain.fmean(f[name] for f in some) for some in found.values())
        for name in _METRICS
        if all(f.get(name) is not None for some in found.values() for f in some)
    }


def _compared(a: Arm, b: Arm, distance: str) -> Comparison | None:
    mine, theirs = _pairs(a, distance), _pairs(b, distance)
    changes: dict[Pair, dict[str, float]] = {}
    for (trained, cell), answers in mine.items():
        other = theirs.get((trained, cell)) or theirs.get((None, cell), {})
        shared = {sample: answers[sample] - other[sample] for sample in answers if sample in other}
        if shared:
            changes[trained, cell] = shared
    if a.untrained or not changes:
        return None
    strata = [list(answers.values()) for answers in _over_models(changes).values()]
    change, p = comparisons.test(strata)
    ends = (change.mean, change.low, change.high)
    n = sum(map(len, strata))
    return Comparison("domains", a.name, b.name, distance, distance, n, *ends, p, p)
