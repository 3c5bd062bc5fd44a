"""Methods against each other in every place of the train x test tables, paired by question."""

from __future__ import annotations

import statistics as plain
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from medreason.report.matrices import TABLES, Arm, addresses, answers_of, members_of
from medreason.statistics import holm, mcnemar, paired_difference


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
    p: float | None
    """Exact McNemar; none where several seeds answered, which are not independent."""
    p_holm: float | None
    """Adjusted over the places of the table."""


def compare(a: Arm, b: Arm) -> list[Comparison]:
    """Arm a against arm b wherever both answered the same questions."""
    found = []
    for table in TABLES:
        rows = [row for t, s in addresses(table) if (row := _compared(a, b, table, t, s))]
        tested = [row.p for row in rows if row.p is not None]
        adjusted = iter(holm(tested))
        found += [_with_holm(row, next(adjusted) if row.p is not None else None) for row in rows]
    return found


def pairs(found: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    """Each later arm against each earlier one: base comes first."""
    for i, a in enumerate(found):
        for b in found[:i]:
            yield a, b


def _compared(a: Arm, b: Arm, table: str, train: str, test: str) -> Comparison | None:
    theirs = _means(answers_of(members_of(b, table, train), table, test))
    mine = _means(answers_of(members_of(a, table, train), table, test))
    shared = [sample for sample in mine if sample in theirs]
    if not shared:
        return None
    x, y = [mine[s] for s in shared], [theirs[s] for s in shared]
    plainly = all(value in (0.0, 1.0) for value in (*x, *y))
    found = paired_difference(x, y, seed=0, draws=2_000)
    return Comparison(
        *(table, a.name, b.name, train, test, len(shared)),
        *(100 * found.mean, 100 * found.low, 100 * found.high),
        mcnemar(x, y) if plainly else None,
        None,
    )


def _means(answers: Mapping[int, Mapping[str, Sequence[bool]]]) -> dict[str, float]:
    """The share of right answers of each sample, over seeds and models."""
    found: dict[str, list[bool]] = {}
    for samples in answers.values():
        for sample, given in samples.items():
            found.setdefault(sample, []).extend(given)
    return {sample: plain.fmean(given) for sample, given in found.items()}


def _with_holm(row: Comparison, p: float | None) -> Comparison:
    return Comparison(**{**vars(row), "p_holm": p})
