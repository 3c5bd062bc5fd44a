"""Methods against each other in every place of the train x test tables, paired by question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from medreason.config import Config, Statistics
from medreason.report.matrices import EVERY_CELL, TABLES, Arm, addresses, by_place, key
from medreason.report.names import in_words
from medreason.report.runs import Run, changes, paired, power, unlike_ground
from medreason.runs import keys
from medreason.samples import MODALITY_NAMES, TASK_NAMES
from medreason.stats import LEVEL, Difference, holm

MEANS = "8x5-means"
"""The table of 8x5's means over rows (`ct/all`), columns (`all/disease`) and all (`all/all`)."""
MAY_BE_CHANCE = "may be chance (paired test, Holm over the places, 5 % level)"


@dataclass(frozen=True)
class Comparison:
    """Arm a minus arm b on the questions both answered, in one place of one table."""

    table: str
    a: str
    b: str
    train: str
    test: str
    average: str
    """The mean is over questions or over cells."""
    n: int
    """Questions."""
    clusters: int
    difference: float
    """Percent points."""
    low: float
    high: float
    p: float
    """Of the same test as the interval."""
    p_holm: float
    """Adjusted over the places of the table."""
    discordance: float
    design_effect: float
    smallest_difference: float | None
    """`stats.Power`, at the discordance and design effect seen."""
    questions_needed: int

    @property
    def clear(self) -> bool:
        """More than chance, however many places were tested."""
        return self.p_holm < LEVEL


def compare(a: Arm, b: Arm) -> list[Comparison]:
    """Arm a against arm b wherever both answered the same questions."""
    comparisons = []
    # Start models have no row of their own: with one another they fill the cells of 8x5 alone.
    for table in ("8x5",) if a.untrained and b.untrained else TABLES:
        keys = ["test", "question", *(["train"] if a.untrained == b.untrained else [])]
        both = a.shares[table].merge(b.shares[table], on=keys, suffixes=("", "_b"))
        rows = by_place(both.assign(change=both["share"] - both["share_b"]))
        ordered = {
            (train, test): rows[place]
            for train, test in addresses(table)
            if (place := key(a, train, test)) in rows
        }
        comparisons += with_holm(
            [comparison(table, a, b, *place, changed) for place, changed in ordered.items()]
        )
        if table == "8x5":
            cells = {test: changed for (_, test), changed in ordered.items()}
            comparisons += with_holm(
                [
                    comparison(MEANS, a, b, line, line, changed)
                    for line, changed in margins(cells).items()
                ]
            )
    return comparisons


def comparison(
    table: str, a: Arm, b: Arm, train: str, test: str, changed: pd.DataFrame
) -> Comparison:
    """Before Holm's adjustment. `changed` has the change of each question, its cluster and cell."""
    change = paired(changed, changed["change"], a.statistics)
    able = power(change, a.statistics)
    return Comparison(
        *(table, a.name, b.name, train, test, a.statistics.average, change.n, change.clusters),
        *(change.mean, change.low, change.high, change.p, change.p),
        *(change.discordance, change.design_effect),
        *(able.smallest_difference, able.questions_needed),
    )


def with_holm(family: Sequence[Comparison]) -> list[Comparison]:
    adjusted = holm([row.p for row in family])
    return [replace(row, p_holm=p) for row, p in zip(family, adjusted, strict=True)]


def of_cells(run: Run, base: Run | None) -> dict[str, tuple[Difference, float]]:
    """Run minus base with p by Holm: each cell, and the means of rows, columns and all."""
    answers = run.answers[["cell", "cluster"]].assign(change=changes(run, base)).dropna()
    changed = dict(iter(answers.groupby("cell")))
    cells = {cell: changed[cell] for cell in run.cells if cell in changed}
    return _tested(cells, run.statistics) | _tested(margins(cells), run.statistics)


def _tested(
    family: Mapping[str, pd.DataFrame], statistics: Statistics
) -> dict[str, tuple[Difference, float]]:
    tests = {place: paired(rows, rows["change"], statistics) for place, rows in family.items()}
    adjusted = holm([change.p for change in tests.values()])
    return {place: (change, p) for (place, change), p in zip(tests.items(), adjusted, strict=True)}


MOST_NAMED = 4
"""Arms in a sentence."""


def one_seed_note(arms: Iterable[str]) -> str:
    """What a clear difference with one of these arms, which are one training each, does not say;
    empty without arms. A difference to an arm of several seeds has their mean on one side alone."""
    names = list(dict.fromkeys(arms))
    if not names:
        return ""
    who = in_words(names) if len(names) <= MOST_NAMED else f"{len(names)} arms"
    seeds = "has one training seed" if len(names) == 1 else "have one training seed each"
    return (
        f"{who} {seeds}: intervals and p are of the questions alone, and another seed may train to "
        "another difference; seed=0,1,2 trains three"
    )


def seeds(arms: Sequence[Arm]) -> dict[str, list[int]]:
    """Of each arm that was trained here the seeds of its trainings."""
    return {
        arm.name: sorted({run.config.seed for run in arm.runs if run.config})
        for arm in arms
        if _is_trained(arm)
    }


def other_seeds_note(compared: Iterable[Comparison], of: Mapping[str, Sequence[int]]) -> str:
    """Which of the arms that are compared were trained with which seeds, where two of a difference
    were not with the same; else empty."""
    known = [(c.b, c.a) for c in compared if {c.a, c.b} <= of.keys()]
    unlike = dict.fromkeys(arm for b, a in known if of[a] != of[b] for arm in (b, a))
    listed = [f"{arm} {', '.join(map(str, of[arm]))}" for arm in unlike]
    if len(listed) > MOST_NAMED:
        return f"{len(listed)} arms were not trained with the same seeds: column seed of table.csv"
    return f"not trained with the same seeds: {'; '.join(listed)}" if listed else ""


def of_one_seed(arms: Sequence[Arm]) -> frozenset[str]:
    """The arms that were trained here, once."""
    return frozenset(arm.name for arm in arms if arm.models == 1 and _is_trained(arm))


def _is_trained(arm: Arm) -> bool:
    config = arm.runs[0].config
    return config is not None and config.method.algorithm != "none"


def pairs(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    """Each later arm against each earlier one it can be compared with: base comes first."""
    return ((a, b) for a, b in all_pairs(arms) if not why_not(a, b))


def all_pairs(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    return ((a, b) for i, a in enumerate(arms) for b in arms[:i])


def why_not(a: Arm, b: Arm) -> str:
    """Why a difference of two arms would be neither one of training nor one of evaluation, but of
    both at once; empty where it would. Another prompt option, in training and evaluation, is one
    change: think against no_think. A start model is one model, whatever else its sweep would have
    trained it with."""
    mine, other = a.runs[0].config, b.runs[0].config
    assert mine
    assert other
    parts = _without_prompt if mine.prompt.name != other.prompt.name else keys.training_parts
    if a.untrained and b.untrained:
        parts = keys.start_parts
    if a.untrained != b.untrained and (start := _other_start(mine, other)):
        return start
    unlike = unlike_ground(mine, other)
    return f"trained differently and {unlike}" if unlike and parts(mine) != parts(other) else ""


def _other_start(a: Config, b: Config) -> str:
    """In what a start model differs from that of a training, where the names of the two do not say
    it; empty where they do, or where it is the same."""
    if a.model.name != b.model.name:
        return ""
    unlike = keys.differences(keys.start_parts(a), keys.start_parts(b))
    key, mine, other = next(unlike, ("", None, None))
    return f"trained from another start model, with model.{key}: {mine}, {other}" if key else ""


def _without_prompt(config: Config) -> dict[str, Any]:
    """What decides the training apart from the prompt option and the form it asks for, which
    rewards of the format have as `${prompt.style}`."""
    parts, style = keys.training_parts(config), config.prompt.style
    rewards = {
        name: reward | {"score": {k: v for k, v in reward["score"].items() if v != style}}
        for name, reward in (parts.get("reward") or {}).items()
    }
    return parts | {"prompt": None, "reward": rewards}


def margins(cells: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows below each mean: `ct/all`, `all/disease`, `all/all`."""
    lines = {f"{m}/all": [f"{m}/{t}" for t in TASK_NAMES] for m in MODALITY_NAMES}
    lines |= {f"all/{t}": [f"{m}/{t}" for m in MODALITY_NAMES] for t in TASK_NAMES}
    lines |= {"all/all": EVERY_CELL}
    members = {line: [cells[c] for c in below if c in cells] for line, below in lines.items()}
    return {line: pd.concat(rows) for line, rows in members.items() if rows}
