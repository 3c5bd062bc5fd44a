"""Figures beside the accuracy: controls, open questions, and what replies say of themselves."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medreason.rewards.words import words
from medreason.samples import lettered
from medreason.stats import wilson

if TYPE_CHECKING:
    from medreason.evaluation.predictions import Prediction

Figures = dict[str, float | int | None]


def of_controls(rows: Sequence[Prediction], controls: Sequence[str]) -> Figures:
    """Accuracy under each control, over the samples it could be made for.

    `permuted_options` is the accuracy over all rotations, the sample itself included, and
    `option_invariance` the share of samples for which every rotation gets the same option's text.
    """
    found: Figures = {}
    for control in controls:
        members = [row for row in rows if row.control == control]
        if control == "permuted_options":
            turned = {row.sample for row in members}
            members += [row for row in rows if row.control == "original" and row.sample in turned]
            found["option_invariance"] = _option_invariance(members)
        found[control] = statistics.fmean(row.correct for row in members) if members else None
    return found


def of_option_likelihood(rows: Sequence[Prediction]) -> Figures:
    """Accuracy of the likeliest letters, over the questions they were asked for; else empty."""
    asked = [row for row in rows if row.likeliest_option]
    real = [row for row in asked if row.control == "original"]
    if not real:
        return {}
    right = sum(row.likeliest_option == row.gold for row in real)
    low, high = wilson(right, len(real))
    found: Figures = {
        "option_likelihood": right / len(real),
        "option_likelihood_n": len(real),
        "option_likelihood_ci_low": low,
        "option_likelihood_ci_high": high,
    }
    if blank := [row.likeliest_option == row.gold for row in asked if row.control == "blank_image"]:
        found["option_likelihood_blank_image"] = statistics.fmean(blank)
    return found


def of_open_questions(real: Sequence[Prediction]) -> Figures:
    """Exact match and token F1 of questions without options; empty where there is none."""
    rows = [row for row in real if not row.options]
    if not rows:
        return {}
    found: Figures = {
        "open_n": len(rows),
        "exact_match": statistics.fmean(row.correct for row in rows),
        "open_token_f1": statistics.fmean(row.token_f1 for row in rows),
    }
    if scored := [row.bertscore for row in rows if row.bertscore is not None]:
        found["open_bertscore"] = statistics.fmean(scored)
    return found


def of_reasoning(real: Sequence[Prediction]) -> Figures:
    """Share of replies with reasoning; its words and its agreement with the answer, over those.

    The similarities are over the questions with a reference explanation, where a reply without
    reasoning counts 0.
    """
    rows = [row for row in real if row.reasoning]
    found: Figures = {"with_reasoning": len(rows) / len(real)}
    found["reasoning_words"] = _mean([len(words(row.reasoning or "")) for row in rows])
    found["consistency"] = _mean([row.consistency for row in rows])
    by_words = [v for row in real if (v := row.reasoning_similarity) is not None]
    by_meaning = [v for row in real if (v := row.reasoning_embedding) is not None]
    return found | {
        "reasoning_similarity": _mean(by_words),
        "reasoning_embedding": _mean(by_meaning),
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _option_invariance(rows: Sequence[Prediction]) -> float | None:
    chosen: dict[str, set[str | None]] = {}
    for row in rows:
        text = dict(lettered(row.options))[row.answer] if row.answer else None
        chosen.setdefault(row.sample, set()).add(text)
    if not chosen:
        return None
    return statistics.fmean(len(texts) == 1 and None not in texts for texts in chosen.values())


def compute_metrics(
    predictions: Iterable[Prediction],
    priors: Mapping[tuple[str, str], float | None],
    controls: Sequence[str],
) -> dict[str, Any]:
    """`metrics.json`: overall, macro over cells, and each cell as `modality/task`.

    `priors` has the accuracy (0 to 1) of the options-only baseline on the samples of each cell. All
    accuracies are shares of all rows: what could not be parsed is wrong, and counted in `parsed`.
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
        "macro_accuracy": statistics.fmean(cell["accuracy"] for cell in by_cell.values()),
        "cells": by_cell,
    }


def _summary(
    rows: Sequence[Prediction],
    priors: Mapping[tuple[str, str], float | None],
    controls: Sequence[str],
) -> dict[str, Any]:
    real = [row for row in rows if row.control == "original"]
    right = sum(row.correct for row in real)
    low, high = wilson(right, len(real))
    known = [(priors.get((row.modality, row.task))) for row in real]
    prior = statistics.fmean(p for p in known if p is not None) if None not in known else None
    accuracy = right / len(real)
    summary: dict[str, Any] = {
        "n": len(real),
        "correct": right,
        "accuracy": accuracy,
        "ci_low": low,
        "ci_high": high,
        "parsed": sum(row.parse_status == "parsed" for row in real) / len(real),
        "prior": prior,
        "above_prior": accuracy - prior if prior is not None else None,
        "completion_tokens": statistics.fmean(row.completion_tokens for row in real),
    }
    summary |= of_open_questions(real) | of_reasoning(real)
    summary |= of_option_likelihood(rows)
    return summary | of_controls(rows, controls)
