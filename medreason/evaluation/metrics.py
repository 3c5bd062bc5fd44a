"""Metrics of an evaluation's predictions: accuracy, controls, open questions, reasoning."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medreason.config.endpoint import ServedModel
from medreason.generation.rows import FAILED
from medreason.metrics import Metric
from medreason.option_prior import guessing
from medreason.rewards.words import words
from medreason.samples import LETTERS
from medreason.stats import Estimate, accuracy

if TYPE_CHECKING:
    from medreason.evaluation.predictions import Prediction

Metrics = dict[str, Any]
"""A number for each `Metric`; None where it applies and has no value."""


Cell = tuple[str, str]
Priors = Mapping[Cell, float | None]


def compute_metrics(
    predictions: Iterable[Prediction],
    priors: Priors,
    controls: Sequence[str],
    clusters: str = "patient",
) -> dict[str, Any]:
    """The content of `metrics.json`: `overall` over questions, `over_cells`, and each cell as
    `modality/task`.

    `priors` has the options-only baseline (0 to 1) of each cell on the same samples. All accuracies
    are shares of all rows: a reply that could not be parsed is wrong, and counted in `parsed`.
    Intervals count the `clusters` of `config.Statistics`.
    """
    rows = list(predictions)
    cells: dict[Cell, list[Prediction]] = {}
    for row in rows:
        cells.setdefault((row.modality, row.task), []).append(row)
    by_cell = {
        "/".join(cell): _summary(members, {cell: priors.get(cell)}, controls, clusters)
        for cell, members in sorted(cells.items())
    }
    overall = _summary(rows, priors, controls, clusters)
    over_cells = _mean_of_cells([*by_cell.values()], overall)
    over_cells |= _intervals(rows, clusters, over_cells=True)
    return {"overall": overall, "over_cells": over_cells, "cells": by_cell}


def add_requests(
    metrics: dict[str, Any],
    rows: Sequence[Prediction],
    answered: Sequence[Prediction],
    endpoint: ServedModel,
) -> None:
    """Add to `metrics` what became of the requests to a server: `rows` are all that were asked,
    `answered` those that count."""
    replied = {row.sample for row in answered}
    lost: dict[str, list[bool]] = {}
    for row in rows:
        if row.control == "original":
            lost.setdefault(f"{row.modality}/{row.task}", []).append(row.sample not in replied)
    for cell, values in metrics["cells"].items():
        values[Metric.UNANSWERED] = statistics.fmean(lost[cell])
    shares = [statistics.fmean(of_cell) for of_cell in lost.values()]
    metrics["over_cells"][Metric.UNANSWERED] = statistics.fmean(shares)
    metrics["overall"][Metric.UNANSWERED] = statistics.fmean(itertools.chain(*lost.values()))
    failures = Counter(row.completion for row in rows if row.finish_reason == FAILED)
    tokens = [
        sum(getattr(row, name) for row in rows) for name in ("prompt_tokens", "completion_tokens")
    ]
    cost = endpoint.cost(*tokens)
    metrics["overall"][Metric.COST_USD] = metrics["over_cells"][Metric.COST_USD] = cost
    metrics["requests"] = {
        "replies": len(rows) - sum(failures.values()),
        "failures": dict(failures),
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
    }


def _mean_of_cells(cells: Sequence[Metrics], overall: Metrics) -> Metrics:
    """Each metric's mean over the cells that have it, the options-only baseline's only where all
    have one; counts are those of all questions."""
    metrics: Metrics = {}
    for name in dict.fromkeys(name for cell in cells for name in cell):
        values = [cell[name] for cell in cells if cell.get(name) is not None]
        partial = name in (Metric.PRIOR, Metric.ABOVE_PRIOR) and len(values) < len(cells)
        metrics[name] = statistics.fmean(values) if values and not partial else None
    return metrics | {n: v for n, v in overall.items() if Metric(n).unit == "count"}


def _summary(
    rows: Sequence[Prediction], priors: Priors, controls: Sequence[str], clusters: str
) -> Metrics:
    original = [row for row in rows if row.control == "original"]
    cell_priors = [priors.get((row.modality, row.task)) for row in original]
    known = [prior for prior in cell_priors if prior is not None]
    prior = statistics.fmean(known) if len(known) == len(original) else None
    correct = sum(row.correct for row in original)
    metrics: Metrics = {
        Metric.N: len(original),
        Metric.CORRECT: correct,
        Metric.PARSED: statistics.fmean(row.parse_status == "parsed" for row in original),
        Metric.CUT_OFF: statistics.fmean(row.finish_reason == "length" for row in original),
        Metric.PRIOR: prior,
        Metric.ABOVE_PRIOR: correct / len(original) - prior if prior is not None else None,
        Metric.GUESSING: guessing(row.options for row in original),
        Metric.COMPLETION_TOKENS: statistics.fmean(row.completion_tokens for row in original),
    }
    metrics |= _open_questions(original) | _reasoning(original)
    metrics |= _option_likelihood(rows) | _controls(rows, controls)
    return metrics | _intervals(rows, clusters)


def _intervals(rows: Sequence[Prediction], clusters: str, *, over_cells: bool = False) -> Metrics:
    """Accuracy and option likelihood with their intervals, over questions or over cells."""

    def estimate(members: Sequence[Prediction], hits: Sequence[bool]) -> Estimate:
        labels = [row.cluster(clusters) for row in members]
        names = [f"{row.modality}/{row.task}" for row in members] if over_cells else None
        return accuracy(hits, labels, names)

    original = [row for row in rows if row.control == "original"]
    metrics = interval_metrics(estimate(original, [row.correct for row in original]))
    if scored := [row for row in original if row.likeliest_option]:
        likely = estimate(scored, [bool(row.option_likelihood_correct) for row in scored])
        metrics |= likelihood_metrics(likely)
    return metrics


def interval_metrics(estimate: Estimate) -> Metrics:
    """The metrics that an estimate of the accuracy gives."""
    return {
        Metric.CLUSTERS: estimate.clusters,
        Metric.DESIGN_EFFECT: estimate.design_effect,
        Metric.ACCURACY: estimate.mean,
        Metric.CI_LOW: estimate.low,
        Metric.CI_HIGH: estimate.high,
    }


def likelihood_metrics(estimate: Estimate) -> Metrics:
    """The metrics that an estimate of the accuracy by option likelihood gives."""
    return {
        Metric.OPTION_LIKELIHOOD: estimate.mean,
        Metric.OPTION_LIKELIHOOD_N: estimate.n,
        Metric.OPTION_LIKELIHOOD_CI_LOW: estimate.low,
        Metric.OPTION_LIKELIHOOD_CI_HIGH: estimate.high,
    }


def _controls(rows: Sequence[Prediction], controls: Sequence[str]) -> Metrics:
    """Accuracy under each control, over the samples it could be made for.

    Under `permuted_options` it is over all rotations, the sample itself included.
    """
    metrics: Metrics = {}
    for control in controls:
        members = [row for row in rows if row.control == control]
        if control == Metric.PERMUTED_OPTIONS:
            rotated = {row.sample for row in members}
            members += [row for row in rows if row.control == "original" and row.sample in rotated]
            metrics[Metric.OPTION_INVARIANCE] = _option_invariance(members)
        metrics[Metric(control)] = _mean([row.correct for row in members])
    return metrics


def _option_invariance(rows: Sequence[Prediction]) -> float | None:
    """Share of samples for which every rotation gets the same option's text."""
    chosen: dict[str, set[str | None]] = {}
    for row in rows:
        text = row.options[LETTERS.index(row.answer)] if row.answer else None
        chosen.setdefault(row.sample, set()).add(text)
    return _mean([len(texts) == 1 and None not in texts for texts in chosen.values()])


def _option_likelihood(rows: Sequence[Prediction]) -> Metrics:
    """Accuracy of the likeliest letters with a blank image, where there are any; else empty."""
    blank = [row for row in rows if row.control == Metric.BLANK_IMAGE and row.likeliest_option]
    if not blank:
        return {}
    correct_blank = [bool(row.option_likelihood_correct) for row in blank]
    return {Metric.OPTION_LIKELIHOOD_BLANK_IMAGE: statistics.fmean(correct_blank)}


def _open_questions(original: Sequence[Prediction]) -> Metrics:
    """Exact match and token F1 of open questions, and accuracy of the closed ones beside them, as
    the literature counts both; empty where all are closed."""
    rows = [row for row in original if not row.closed]
    if not rows:
        return {}
    closed = [row.correct for row in original if row.closed]
    metrics: Metrics = {
        Metric.CLOSED_N: len(closed),
        Metric.CLOSED_ACCURACY: _mean(closed),
        Metric.OPEN_N: len(rows),
        Metric.EXACT_MATCH: statistics.fmean(row.correct for row in rows),
        Metric.OPEN_TOKEN_F1: statistics.fmean(row.token_f1 for row in rows),
    }
    if scores := [row.bertscore for row in rows if row.bertscore is not None]:
        metrics[Metric.OPEN_BERTSCORE] = statistics.fmean(scores)
    return metrics


def _reasoning(original: Sequence[Prediction]) -> Metrics:
    """Share of replies with reasoning; its words and its consistency with the answer, over those.

    The similarities are over the questions with a reference explanation, where a reply without
    reasoning counts 0.
    """
    rows = [row for row in original if row.reasoning]
    overlaps = [v for row in original if (v := row.reasoning_similarity) is not None]
    cosines = [v for row in original if (v := row.reasoning_embedding) is not None]
    return {
        Metric.WITH_REASONING: len(rows) / len(original),
        Metric.REASONING_WORDS: _mean([len(words(row.reasoning or "")) for row in rows]),
        Metric.CONSISTENCY: _mean([row.consistency for row in rows]),
        Metric.REASONING_SIMILARITY: _mean(overlaps),
        Metric.REASONING_EMBEDDING: _mean(cosines),
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
