"""Metrics of an evaluation's predictions: accuracy, controls, open questions, reasoning."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medreason.metrics import Metric
from medreason.rewards.words import words
from medreason.samples import LETTERS
from medreason.stats import wilson

if TYPE_CHECKING:
    from medreason.evaluation.predictions import Prediction

Metrics = dict[str, Any]
"""A number for each `Metric`; None where it applies and has no value."""


def compute_metrics(
    predictions: Iterable[Prediction],
    priors: Mapping[tuple[str, str], float | None],
    controls: Sequence[str],
) -> dict[str, Any]:
    """The content of `metrics.json`: overall, macro over cells, and each cell as `modality/task`.

    `priors` has the options-only baseline (0 to 1) of each cell on the same samples. All accuracies
    are shares of all rows: a reply that could not be parsed is wrong, and counted in `parsed`.
    """
    rows = list(predictions)
    cells: dict[tuple[str, str], list[Prediction]] = {}
    for row in rows:
        cells.setdefault((row.modality, row.task), []).append(row)
    by_cell = {
        "/".join(cell): _summary(members, {cell: priors.get(cell)}, controls)
        for cell, members in sorted(cells.items())
    }
    return {
        "overall": _summary(rows, priors, controls),
        Metric.MACRO_ACCURACY: statistics.fmean(m[Metric.ACCURACY] for m in by_cell.values()),
        "cells": by_cell,
    }


def _summary(
    rows: Sequence[Prediction],
    priors: Mapping[tuple[str, str], float | None],
    controls: Sequence[str],
) -> Metrics:
    original = [row for row in rows if row.control == "original"]
    correct = sum(row.correct for row in original)
    low, high = wilson(correct, len(original))
    cell_priors = [priors.get((row.modality, row.task)) for row in original]
    known = [prior for prior in cell_priors if prior is not None]
    prior = statistics.fmean(known) if len(known) == len(original) else None
    accuracy = correct / len(original)
    metrics: Metrics = {
        Metric.N: len(original),
        Metric.CORRECT: correct,
        Metric.ACCURACY: accuracy,
        Metric.CI_LOW: low,
        Metric.CI_HIGH: high,
        Metric.PARSED: statistics.fmean(row.parse_status == "parsed" for row in original),
        Metric.CUT_OFF: statistics.fmean(row.finish_reason == "length" for row in original),
        Metric.PRIOR: prior,
        Metric.ABOVE_PRIOR: accuracy - prior if prior is not None else None,
        Metric.COMPLETION_TOKENS: statistics.fmean(row.completion_tokens for row in original),
    }
    metrics |= _open_questions(original) | _reasoning(original)
    return metrics | _option_likelihood(rows) | _controls(rows, controls)


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
    """Accuracy of the likeliest letters, where there are any; else empty."""
    scored = [row for row in rows if row.likeliest_option]
    original = [row for row in scored if row.control == "original"]
    if not original:
        return {}
    correct = sum(bool(row.option_likelihood_correct) for row in original)
    low, high = wilson(correct, len(original))
    metrics: Metrics = {
        Metric.OPTION_LIKELIHOOD: correct / len(original),
        Metric.OPTION_LIKELIHOOD_N: len(original),
        Metric.OPTION_LIKELIHOOD_CI_LOW: low,
        Metric.OPTION_LIKELIHOOD_CI_HIGH: high,
    }
    if blank := [row for row in scored if row.control == Metric.BLANK_IMAGE]:
        correct_blank = [bool(row.option_likelihood_correct) for row in blank]
        metrics[Metric.OPTION_LIKELIHOOD_BLANK_IMAGE] = statistics.fmean(correct_blank)
    return metrics


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
