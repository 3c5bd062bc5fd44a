"""Methods against each other in every place of the train x test tables, paired by question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from medreason.report.matrices import CELLS, TABLES, Arm, addresses, answers_of, means, members_of
from medreason.report.runs import Run, paired
from medreason.samples import MODALITIES, TASKS
from medreason.stats import Difference, holm, mcnemar, mean_over_strata, sign_flip

MEANS = "8x5-means"
"""The name of the table of 8x5's rows (`ct/all`), columns (`all/disease`) and whole (`all/all`)."""
LEVEL = 0.05
MAY_BE_CHANCE = "may be chance (paired test, Holm over the places, 5 % level)"


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
        """More than chance, however many places were looked at."""
        return self.p_holm < LEVEL


def compare(a: Arm, b: Arm) -> list[Comparison]:
    """Arm a against arm b wherever both answered the same questions."""
    found = []
    for table in TABLES:
        strata = {
            (train, test): shared
            for train, test in addresses(table)
            if (shared := _shared(a, b, table, train, test))
        }
        found += _tested(table, a, b, {place: [some] for place, some in strata.items()})
        if table == "8x5":
            own = {test: shared for (_, test), shared in strata.items()}
            found += _tested(MEANS, a, b, {(m, m): some for m, some in margins(own).items()})
    return found


def of_cells(run: Run, base: Run | None) -> dict[str, tuple[Difference, float]]:
    """Run minus base with p by Holm: each cell, and the means of rows, columns and all."""
    cells: dict[str, list[float]] = {}
    for key in run.cells:
        modality, task = key.split("/")
        a, b = paired(run, base, {(modality, task)})
        if a:
            cells[key] = [x - y for x, y in zip(a, b, strict=True)]
    return _with_holm({c: [some] for c, some in cells.items()}) | _with_holm(margins(cells))


def _with_holm(
    strata: Mapping[str, Sequence[Sequence[float]]],
) -> dict[str, tuple[Difference, float]]:
    found = {place: test(some) for place, some in strata.items()}
    adjusted = holm([p for _, p in found.values()])
    return {
        place: (change, p) for (place, (change, _)), p in zip(found.items(), adjusted, strict=True)
    }


def pairs(found: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    """Each later arm against each earlier one: base comes first."""
    for i, a in enumerate(found):
        for b in found[:i]:
            yield a, b


def margins(cells: Mapping[str, list[float]]) -> dict[str, list[list[float]]]:
    """The cells below each mean of an 8 x 5 table: `ct/all`, `all/disease`, `all/all`."""
    lines = {f"{m}/all": [f"{m}/{t}" for t in TASKS] for m in MODALITIES}
    lines |= {f"all/{t}": [f"{m}/{t}" for m in MODALITIES] for t in TASKS} | {"all/all": CELLS}
    found = {line: [cells[c] for c in members if c in cells] for line, members in lines.items()}
    return {line: some for line, some in found.items() if some}


def test(strata: Sequence[Sequence[float]]) -> tuple[Difference, float]:
    """Mean over the cells of the mean difference in each, in percent points, and its p."""
    found = mean_over_strata(strata, seed=0)
    # Rounded where sums leave their mark: 13.75 is to read the same wherever it stands.
    points = Difference(*(round(100 * end, 9) for end in (found.mean, found.low, found.high)))
    if len(strata) == 1 and set(strata[0]) <= {-1.0, 0.0, 1.0}:
        return points, mcnemar([float(d > 0) for d in strata[0]], [float(d < 0) for d in strata[0]])
    return points, sign_flip([d / len(some) for some in strata for d in some], seed=0)


def _shared(a: Arm, b: Arm, table: str, train: str, test: str) -> list[float]:
    """Right in a minus right in b for each question both answered, each a share of its models."""
    mine = means(answers_of(members_of(a, table, train), table, test))
    theirs = means(answers_of(members_of(b, table, train), table, test))
    return [mine[sample] - theirs[sample] for sample in mine if sample in theirs]


def _tested(
    table: str, a: Arm, b: Arm, strata: Mapping[tuple[str, str], list[list[float]]]
) -> list[Comparison]:
    rows = []
    for (train, where), some in strata.items():
        change, p = test(some)
        n = sum(map(len, some))
        ends = (change.mean, change.low, change.high)
        rows.append(Comparison(table, a.name, b.name, train, where, n, *ends, p, p))
    adjusted = holm([row.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]
