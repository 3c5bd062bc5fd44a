"""Figures beside the accuracy: controls, open questions, and what replies say of themselves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medreason.samples import LETTERS
from medreason.scores import words
from medreason.statistics import wilson

if TYPE_CHECKING:
    from medreason.evaluation.predictions import Prediction

Figures = dict[str, float | int | None]


def of_controls(rows: Sequence[Prediction], controls: Sequence[str]) -> Figures:
    """Accuracy under each control, over the samples it could be made for.

    `permuted_options` is the accuracy over all rotations, the sample itself included, and
    `consistent_options` the share of samples for which every rotation gets the same option's text.
    """
    found: Figures = {}
    for control in controls:
        members = [row for row in rows if row.control == control]
        if control == "permuted_options":
            turned = {row.sample for row in members}
            members += [row for row in rows if row.control == "none" and row.sample in turned]
            found["consistent_options"] = _consistent(members)
        found[control] = statistics.fmean(row.correct for row in members) if members else None
    return found


def of_letters(rows: Sequence[Prediction]) -> Figures:
    """Accuracy of the likeliest letters, over the questions they were asked for; else empty."""
    asked = [row for row in rows if row.likeliest]
    real = [row for row in asked if row.control == "none"]
    if not real:
        return {}
    right = sum(row.likeliest == row.gold for row in real)
    low, high = wilson(right, len(real))
    found: Figures = {
        "likelihood": right / len(real),
        "likelihood_n": len(real),
        "likelihood_ci_low": low,
        "likelihood_ci_high": high,
    }
    if blank := [row.likeliest == row.gold for row in asked if row.control == "blank_image"]:
        found["likelihood_blank_image"] = statistics.fmean(blank)
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
    found["agreement"] = _mean([row.consistent for row in rows])
    by_words = [v for row in real if (v := row.reasoning_similarity) is not None]
    by_meaning = [v for row in real if (v := row.reasoning_embedding) is not None]
    return found | {
        "reasoning_similarity": _mean(by_words),
        "reasoning_embedding": _mean(by_meaning),
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _consistent(rows: Sequence[Prediction]) -> float | None:
    chosen: dict[str, set[str | None]] = {}
    for row in rows:
        text = row.options[LETTERS.index(row.answer)] if row.answer else None
        chosen.setdefault(row.sample, set()).add(text)
    if not chosen:
        return None
    return statistics.fmean(len(texts) == 1 and None not in texts for texts in chosen.values())
