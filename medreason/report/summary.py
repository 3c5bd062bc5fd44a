"""The sentence on top of a report: accuracy after training beside its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medreason.console import counted
from medreason.metrics import Metric
from medreason.report.arms import gain, p_text, start
from medreason.report.comparisons import MOST_NAMED, Comparison, one_seed_note
from medreason.report.domains import ELSEWHERE, IN_DOMAIN, Total
from medreason.report.names import in_words, spoken
from medreason.report.runs import Cell, Run, base_of, changes, difference, estimate, mean_metric
from medreason.report.table import guessing_is_higher, percent, percent_range
from medreason.report.tables import Tables
from medreason.runs.openings import Opening
from medreason.stats import FEWEST, FEWEST_FOR_INTERVAL, Estimate

_BASELINES = {
    Metric.PRIOR: "the options-only baseline gives",
    Metric.GUESSING: "guessing between the options",
    Metric.BLANK_IMAGE: "a blank image",
}

_REACHED = {
    Metric.PRIOR: "the options-only baseline",
    Metric.GUESSING: "guessing between the options",
    Metric.BLANK_IMAGE: "its own answers to a blank image",
}

_TABLE = "the table "  # of `names.data_name`


def lead(runs: Sequence[Run], tables: Tables) -> str:
    """The sentence; of several models about every arm, since the best of many is best by luck."""
    return " ".join(filter(None, [caution(runs, tables), numbers(runs, tables)]))


def conclusion(runs: Sequence[Run], tables: Tables) -> str:
    """What the numbers of trained models come to: `caution`, or of several models that all are
    above the baselines; empty where that is not known."""
    if text := caution(runs, tables):
        return text
    totals = _trained_totals(tables)
    if best(runs) is None or not _are_several(tables) or not totals:
        return ""
    above = [metric for metric in _BASELINES if all(metric in _known(t.metrics) for t in totals)]
    beaten = [_REACHED[metric].replace("its own", "their own") for metric in above]
    listed = " and ".join(filter(None, [", ".join(beaten[:-1]), *beaten[-1:]]))
    return f"All trained models are clearly above {listed}." if beaten else ""


def numbers(runs: Sequence[Run], tables: Tables) -> str:
    """The sentence without the conclusion."""
    chosen = best(runs)
    if chosen is None:
        return "No run of this sweep has been evaluated yet."
    if _are_several(tables):
        return _of_arms(tables)
    base = base_of(chosen, runs)
    than = _than(tables, base.label if base else None, first=True)
    return _of_run(chosen, _counting(chosen), base, than)


def of_one_seed(runs: Sequence[Run], tables: Tables) -> str:
    """What to know of a clear difference in the sentence whose arm is one training; else empty."""
    totals = _trained_totals(tables)
    if best(runs) is None or (_are_several(tables) and len(totals) > MOST_NAMED):
        return ""
    gains = [gain(tables, total.arm, IN_DOMAIN) for total in totals]
    shown = (arm for change in gains if change for arm in tables.domains.of_one_seed(change))
    note = one_seed_note(shown)
    return f"{note}." if note else ""


def caution(runs: Sequence[Run], tables: Tables) -> str:
    """Which models are not clearly above the options-only baseline (guessing, where that is higher)
    or their own answers to a blank image, each by its name; empty where all are."""
    chosen = best(runs)
    if _are_several(tables):
        return _not_above(_trained_totals(tables)).strip()
    if chosen is None:
        return ""
    cells = _counting(chosen)
    reached = _reached(_baselines(chosen, cells), _accuracy(chosen, cells).low)
    return _conclusion(f"{_title(chosen)} is not", reached).strip()


def _are_several(tables: Tables) -> bool:
    return sum(arm.models for arm in tables.arms if not arm.untrained) > 1


def tested(openings: Sequence[Opening]) -> list[str]:
    """Of each test split how many arms were tested on it; empty without openings."""
    sentences = []
    for data, members in _by_test(openings).items():
        arms = {opening.arm for opening in members}
        evaluations = {(opening.run, opening.evaluation) for opening in members}
        several = f" in {len(evaluations)} evaluations" if len(evaluations) > len(arms) else ""
        were = "was" if len(arms) == 1 else "were"
        sentences.append(
            f"{counted(len(arms), 'arm')} {were} tested{several} on the test questions of "
            f"{data if data.startswith(_TABLE) else f'data={data}'}"
        )
    return sentences


def chosen_by_test(openings: Sequence[Opening]) -> str:
    """What to know of the best of several trained arms that nothing but the test compares; empty
    where there is one, or where validations do."""
    for data, members in _by_test(openings).items():
        trained = [opening for opening in members if opening.trained]
        arms = len({opening.arm for opening in trained})
        if arms > 1 and not all(opening.validated for opening in trained):
            return (
                f"No validation: {arms} trained arms were tested on {data}. Whoever takes the best "
                "of them chooses by the test, and its accuracy is too high by that choice; "
                "validation=in_domain chooses without it."
            )
    return ""


def _by_test(openings: Sequence[Opening]) -> dict[str, list[Opening]]:
    """By data set; arms that were tested on other questions of it count with the others."""
    by_data: dict[str, list[Opening]] = {}
    for opening in openings:
        data = opening.data
        name = data if data.startswith(_TABLE) else data.rpartition(".")[2]
        by_data.setdefault(name, []).append(opening)
    return by_data


def best(runs: Sequence[Run]) -> Run | None:
    """Highest accuracy on the cells that count; a start model only where nothing else is."""
    evaluated = [run for run in runs if run.metrics]
    trained = [run for run in evaluated if run.trained_on]
    return max(
        trained or evaluated,
        key=lambda run: _accuracy(run, _counting(run)).mean,
        default=None,
    )


def _of_arms(tables: Tables) -> str:
    """Every arm is named: the best of them alone would be a choice after the fact, too."""
    totals = _trained_totals(tables)
    if not totals:
        return "No trained run of this sweep was tested on what it was trained on."
    if len(totals) > MOST_NAMED:
        range_of_all = percent_range([total.accuracy for total in totals])
        text = f"The {len(totals)} trained arms answer {range_of_all}\u00a0% {_asked(tables)}"
    else:
        text = ", ".join(_of_arm(t, tables, first=i == 0) for i, t in enumerate(totals))
    text += ", in the mean over cells" if totals[0].average == "cells" else ""
    if len({t.n for t in totals}) > 1:
        text += " (not all on the same questions: compare the differences alone)"
    shown = {metric for total in totals for metric in _known(total.metrics)}
    baselines = {
        metric: percent_range([t.metrics[metric] for t in totals]) + "\u00a0%"
        for metric in _BASELINES
        if metric in shown and all(metric in t.metrics for t in totals)
    }
    return text + _beside(baselines)


def _trained_totals(tables: Tables) -> list[Total]:
    """Of each trained arm that was tested on what it was trained on."""
    return [
        total
        for arm in tables.arms
        if not arm.untrained and (total := tables.domains.total(arm.name, IN_DOMAIN))
    ]


def _not_above(totals: Sequence[Total]) -> str:
    """That none is above a baseline, or which arms are not."""
    by_arms: dict[tuple[str, ...], list[Metric]] = {}
    for metric in _BASELINES:
        arms = tuple(t.arm for t in totals if metric in _reached(t.metrics, t.ci_low))
        by_arms.setdefault(arms, []).append(metric)
    by_arms.pop((), None)
    return "".join(
        _conclusion("No trained model is", reached)
        if len(arms) == len(totals)
        else _conclusion(f"{in_words(arms)} {'is' if len(arms) == 1 else 'are'} not", reached)
        for arms, reached in by_arms.items()
    )


def _beside(baselines: Mapping[Metric, str]) -> str:
    """The end of the sentence."""
    texts = [f"{_BASELINES[metric]} {percent}" for metric, percent in baselines.items()]
    return ("; on the same questions " + ", ".join(texts) if texts else "") + "."


def _conclusion(who: str, reached: Sequence[Metric]) -> str:
    """What a model shows that is not above these baselines: the lower end of its interval is at
    most theirs."""
    beaten_by = " or ".join(_REACHED[metric] for metric in reached)
    if who.endswith(" are not"):
        beaten_by = beaten_by.replace("its own", "their own")
    return f" {who} clearly above {beaten_by}." if reached else ""


def _asked(tables: Tables) -> str:
    """In-domain questions, where any others were asked."""
    others = any(tables.domains.total(arm.name, ELSEWHERE) for arm in tables.arms)
    return f"of the {'in-domain' if others else 'test'} questions right"


def _of_arm(total: Total, tables: Tables, *, first: bool) -> str:
    answers, right = ("answers ", f" {_asked(tables)}") if first else ("", "")
    text = f"{spoken(total.arm)} {answers}{percent(total.accuracy)} %{right}"
    change = gain(tables, total.arm, IN_DOMAIN)
    if change is None:
        return f"{text} ({_range_text(total.ci_low, total.ci_high, total.clusters)})"
    more = "more" if change.difference >= 0 else "less"
    points = f"{abs(change.difference):.1f}{' points' if first else ''} {more}"
    points += _than(tables, start(tables, total.arm), first=first)
    ends = _ends(change.low, change.high, change.clusters, first=first)
    if change.low > 0 or change.high < 0:  # else the interval has its doubt
        ends += _among_others(change)
    return f"{text}, {points} ({ends})"


def _than(tables: Tables, start_model: str | None, *, first: bool) -> str:
    """What a difference is to: of several start models by its name."""
    several = sum(arm.untrained for arm in tables.arms) > 1
    if not several:
        return " than the start model" if first else ""
    _, _, rest = (start_model or "").partition(" ")
    return f" than the start model{f' ({rest})' * bool(rest)}"


def _among_others(change: Comparison) -> str:
    """That a difference is not clear where all that are shown are counted."""
    if change.clear or change.clusters < FEWEST:
        return ""
    return f"; p by Holm {p_text(change.p_holm)}, so no clear difference"


def _range_text(low: float, high: float, clusters: int) -> str:
    if clusters < FEWEST_FOR_INTERVAL:
        return _few(clusters)
    return f"95 % interval {percent(low)} to {percent(high)}"


def _few(clusters: int) -> str:
    return f"{counted(clusters, 'cluster')}, too few for an interval"


def _ends(low: float, high: float, clusters: int, *, first: bool = True) -> str:
    ends = f"{low:.1f} to {high:.1f}".replace("-", "\u2212")
    doubt = ", so no clear difference" if low <= 0 <= high else ""
    if clusters < FEWEST:
        return _few(clusters) + doubt
    return f"{'95 % interval ' if first else ''}{ends}{doubt}"


def _counting(run: Run) -> set[Cell]:
    """The cells a run was trained on, as far as it was tested there, else all."""
    return run.trained_on & run.tested_on or run.tested_on


def _of_run(run: Run, cells: set[Cell], base: Run | None, than: str) -> str:
    accuracy = _accuracy(run, cells)
    trained = run.trained_on and not run.tested_on <= cells
    which = "in-domain question" if trained else "question"
    mean = " in the mean over cells" if run.statistics.average == "cells" else ""
    asked = counted(accuracy.n, which)
    text = f"{_title(run)} answers {percent(accuracy.mean)} % of {asked} right{mean}"
    if change := difference(run, changes(run, base)[run.answers["cell"].isin(cells)]):
        more = "more" if change.mean >= 0 else "less"
        text += f", {abs(change.mean):.1f} points {more}{than} "
        text += f"({_ends(change.low, change.high, change.clusters)})"
    else:
        text += f" ({_range_text(accuracy.low, accuracy.high, accuracy.clusters)})"
    known = _baselines(run, cells)
    return text + _beside({metric: f"{percent(share)} %" for metric, share in known.items()})


def _baselines(run: Run, cells: set[Cell]) -> dict[Metric, float]:
    """Those that the run has for all of the cells."""
    return _known({metric: mean_metric(run, cells, metric) for metric in _BASELINES})


def _known(metrics: Mapping[Any, float | None]) -> dict[Metric, float]:
    """The baselines there are; guessing only where it is above the options-only baseline."""
    known = {m: share for m in _BASELINES if (share := metrics.get(m)) is not None}
    if not guessing_is_higher(metrics):
        known.pop(Metric.GUESSING, None)
    return known


def _reached(metrics: Mapping[Any, float | None], low: float) -> list[Metric]:
    """The baselines that a model with this lower end of its interval is not clearly above: of
    options-only and guessing the higher one counts."""
    known = _known(metrics)
    if Metric.GUESSING in known:
        known.pop(Metric.PRIOR, None)
    return [metric for metric, share in known.items() if low <= share]


def _accuracy(run: Run, cells: set[Cell]) -> Estimate:
    return estimate(run.answers[run.answers["cell"].isin(cells)], run.statistics)


def _title(run: Run) -> str:
    method, _, rest = run.label.partition(" ")
    name = "The start model" if method == "base" else method.upper()
    return f"{name} ({rest})" if rest else name
