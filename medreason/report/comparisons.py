"""Methods against each other in every place of the train x test tables, paired by question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medreason.report.matrices import EVERY_CELL, TABLES, Arm, addresses, by_place, key
from medreason.report.runs import Run, by_cell, changes, unlike_ground
from medreason.runs import keys
from medreason.samples import MODALITY_NAMES, TASK_NAMES
from medreason.stats import Difference, holm, mcnemar, mean_over_strata, sign_flip

MEANS = "8x5-means"
"""The table of 8x5's means over rows (`ct/all`), columns (`all/disease`) and all (`all/all`)."""
LEVEL = 0.05
MAY_BE_CHANCE = "may be chance (paired test, Holm over the places, 5 % level)"

Strata = Sequence[np.ndarray]
"""The difference at each question, an array for each cell."""


@dataclass(frozen=True)
class Comparison:
    """Arm a minus arm b on the questions both answered, in one place of one table."""

    table: str
    a: str
    b: str
    train: str
    test: str
    n: int
    difference: float
    """Percent points."""
    low: float
    high: float
    p: float
    """Exact McNemar; a sign-flip test where several models or seeds answered a question."""
    p_holm: float
    """Adjusted over the places of the table."""

    @property
    def clear(self) -> bool:
        """More than chance, however many places were tested."""
        return self.p_holm < LEVEL


def compare(a: Arm, b: Arm) -> list[Comparison]:
    """Arm a against arm b wherever both answered the same questions."""
    comparisons = []
    for table in TABLES:
        keys = ["test", "question", *(["train"] if a.untrained == b.untrained else [])]
        both = a.shares[table].merge(b.shares[table], on=keys, suffixes=("", "_b"))
        strata = by_place(both.assign(difference=both["share"] - both["share_b"]), "difference")
        ordered = {
            (train, test): strata[place]
            for train, test in addresses(table)
            if (place := key(a, train, test)) in strata
        }
        comparisons += with_holm(
            [comparison(table, a, b, *place, [values]) for place, values in ordered.items()]
        )
        if table == "8x5":
            cells = {test: values for (_, test), values in ordered.items()}
            comparisons += with_holm(
                [
                    comparison(MEANS, a, b, line, line, values)
                    for line, values in margins(cells).items()
                ]
            )
    return comparisons


def comparison(table: str, a: Arm, b: Arm, train: str, test: str, strata: Strata) -> Comparison:
    """Before Holm's adjustment."""
    change, p = paired_test(strata)
    ends, n = (change.mean, change.low, change.high), sum(map(len, strata))
    return Comparison(table, a.name, b.name, train, test, n, *ends, p, p)


def with_holm(family: Sequence[Comparison]) -> list[Comparison]:
    adjusted = holm([row.p for row in family])
    return [replace(row, p_holm=p) for row, p in zip(family, adjusted, strict=True)]


def of_cells(run: Run, base: Run | None) -> dict[str, tuple[Difference, float]]:
    """Run minus base with p by Holm: each cell, and the means of rows, columns and all."""
    changed = by_cell(run, changes(run, base))
    cells = {cell: changed[cell].to_numpy() for cell in run.cells if cell in changed}
    return _tested({cell: [values] for cell, values in cells.items()}) | _tested(margins(cells))


def _tested(family: Mapping[str, Strata]) -> dict[str, tuple[Difference, float]]:
    tests = {place: paired_test(strata) for place, strata in family.items()}
    adjusted = holm([p for _, p in tests.values()])
    return {
        place: (change, p) for (place, (change, _)), p in zip(tests.items(), adjusted, strict=True)
    }


def pairs(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    """Each later arm against each earlier one it can be compared with: base comes first."""
    return ((a, b) for a, b in _all_pairs(arms) if not why_not(a, b))


def not_compared(arms: Sequence[Arm]) -> list[dict[str, str]]:
    """The other pairs, with the reason."""
    reasons = [(a.name, b.name, why_not(a, b)) for a, b in _all_pairs(arms)]
    return [{"a": a, "b": b, "reason": reason} for a, b, reason in reasons if reason]


def why_not(a: Arm, b: Arm) -> str:
    """Why a difference of two arms would be neither one of training nor one of the prompt or other
    settings of evaluation, but of both at once; empty where it would."""
    configs = [arm.runs[0].config for arm in (a, b)]
    trainings = [{**keys.training_parts(config), "prompt": None} for config in configs if config]
    return "" if trainings[0] == trainings[1] else unlike_ground(*configs)


def _all_pairs(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    return ((a, b) for i, a in enumerate(arms) for b in arms[:i])


def margins(cells: Mapping[str, np.ndarray]) -> dict[str, Strata]:
    """The cells below each mean: `ct/all`, `all/disease`, `all/all`."""
    lines = {f"{m}/all": [f"{m}/{t}" for t in TASK_NAMES] for m in MODALITY_NAMES}
    lines |= {f"all/{t}": [f"{m}/{t}" for m in MODALITY_NAMES] for t in TASK_NAMES}
    lines |= {"all/all": EVERY_CELL}
    strata = {line: [cells[c] for c in members if c in cells] for line, members in lines.items()}
    return {line: values for line, values in strata.items() if values}


def paired_test(strata: Strata) -> tuple[Difference, float]:
    """Mean over the cells of the mean difference in each, in percent points, and its p."""
    change = mean_over_strata(strata, seed=0)
    # Rounded, since sums differ in their last digits: 13.75 is to read the same in every table.
    points = Difference(*(round(100 * end, 9) for end in (change.mean, change.low, change.high)))
    if len(strata) == 1 and np.isin(strata[0], (-1.0, 0.0, 1.0)).all():
        return points, mcnemar(strata[0] > 0, strata[0] < 0)
    return points, sign_flip(np.concatenate([d / len(d) for d in strata]), seed=0)
