"""Data that the page embeds: metrics of each cell, and some of its questions with every answer."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medreason import config as configuration
from medreason.data.images import open_rgb
from medreason.evaluation import predictions
from medreason.evaluation.predictions import Prediction
from medreason.metrics import HEADLINE, Metric, Shown
from medreason.report import comparisons
from medreason.report.matrices import EVERY_CELL
from medreason.report.runs import NO_ANSWERS, Cell, Run, base_of, changes, power
from medreason.samples import MODALITY_NAMES, SOFT_TISSUE, TASK_NAMES, UNKNOWN, Window
from medreason.stats import Difference, Power

_THUMBNAIL = 160  # pixels of the longer side
_REPLIES = 12_000  # different ones embedded at most; beyond it a browser gets slow
_OF_CELL = (*Metric.shown_in(Shown.PAGE), Metric.GUESSING)
_IN_FRONT = (*HEADLINE, Metric.ABOVE_PRIOR)  # of a cell; its tooltip lists the other metrics


class Answer(NamedTuple):
    """The answer of a run to one question; equal where two runs gave the same."""

    answer: str | None
    correct: bool
    status: str
    reasoning: str | None
    completion: str
    tokens: int


def embedded(runs: Sequence[Run], per_cell: int) -> dict[str, Any]:
    """All the page's script reads: runs and their cells, questions by cell, images once each."""
    evaluated = [run for run in runs if run.metrics]
    outcomes = [
        run.answers.assign(change=changes(run, base_of(run, evaluated))) for run in evaluated
    ]
    outcomes = pd.concat(outcomes) if outcomes else NO_ANSWERS
    questions, counts = _questions(outcomes), _counts(outcomes)
    chosen = _choose(questions, per_cell)
    images = _Images()
    samples, answers = _read(evaluated, {s for members in chosen.values() for s in members})
    chosen = _within_limit(chosen, answers)
    return {
        "modalities": _in_use(MODALITY_NAMES, evaluated, 0),
        "tasks": _in_use(TASK_NAMES, evaluated, 1),
        "metrics": {
            metric: {
                "name": metric.column_title,
                "label": metric.label,
                "beside": metric not in _IN_FRONT,
            }
            for metric in _OF_CELL
        },
        "runs": [_run(run, evaluated, counts) for run in evaluated],
        "questions": {
            cell: {
                "total": int((questions["cell"] == cell).sum()),
                "items": [_item(*samples[s], answers[s], images) for s in chosen[cell]],
            }
            for cell in sorted(chosen, key=EVERY_CELL.index)
        },
        "images": images.uris,
    }


def _in_use(names: Mapping[str, str], runs: Sequence[Run], part: int) -> list[tuple[str, str]]:
    """Keys and names of an axis; "unknown" only where a run was tested on such questions."""
    tested = {cell.split("/")[part] for run in runs for cell in run.cells}
    return [(key, name) for key, name in names.items() if key != UNKNOWN or key in tested]


def _run(run: Run, evaluated: Sequence[Run], counts: Counts) -> dict[str, Any]:
    base = base_of(run, evaluated)
    changes = {
        place: compared(change, p, power(change, run.statistics))
        for place, (change, p) in comparisons.of_cells(run, base).items()
    }
    return {
        "label": run.label,
        "base": evaluated.index(base) if base else None,
        "restricted": bool(run.trained_on) and not run.tested_on <= run.trained_on,
        "means": {place: change for place, change in changes.items() if place not in run.cells},
        "cells": {
            cell: {m: v for m in _OF_CELL if (v := metrics.get(m)) is not None}
            | {"counts": counts[run.name, cell], "in_domain": cell in run.trained_on}
            | (
                {"against": {"base": changes[cell]}}
                if cell in changes
                else {"power": shown_power(power(metrics, run.statistics))}
            )
            for cell, metrics in run.cells.items()
        },
    }


def compared(change: Difference, p: float, able: Power) -> list[float | None]:
    """A difference as the page's script reads it, in percent points: mean, low, high, p, n,
    clusters, and its `Power`."""
    size = change.n, change.clusters
    return [change.mean, change.low, change.high, p, *size, *shown_power(able)]


def shown_power(able: Power) -> list[float | None]:
    """The smallest difference that a test shows, and the questions that the wanted one needs."""
    smallest = able.smallest_difference
    return [None if smallest is None else round(smallest, 1), able.questions_needed]


Counts = dict[Any, dict[Any, int]]
"""By run and cell, questions of each kind."""


def _counts(outcomes: pd.DataFrame) -> Counts:
    """The changed ones only where a base answered some."""
    kinds = {"all": True, "wrong": outcomes["correct"] == 0, "unparsed": ~outcomes["parsed"]}
    counts = _sums(outcomes, kinds)
    both = outcomes.dropna(subset="change")
    change = both["change"]
    changed = {"gained": change > 0, "lost": change < 0, "changed": change != 0}
    for place, sums in _sums(both, changed).items():
        counts[place] |= sums
    return counts


def _sums(outcomes: pd.DataFrame, kinds: Mapping[str, Any]) -> Counts:
    place = ["run", "cell"]
    return outcomes[place].assign(**kinds).groupby(place).sum().to_dict("index")


def _questions(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Each question that any run answered: cell, question, and its `kind`, 0 where runs differ, 1
    unparsed, 2 wrong in all, 3 right in all."""
    questions = outcomes.groupby(["cell", "question"], sort=False, as_index=False).agg(
        right=("correct", "mean"), parsed=("parsed", "all")
    )
    right = questions["right"]
    kinds = np.select(
        [right.between(0, 1, "neither"), ~questions["parsed"], right == 0], [0, 1, 2], 3
    )
    return questions.assign(kind=kinds)


def _choose(questions: pd.DataFrame, count: int) -> dict[Cell, list[str]]:
    """Questions of each cell, taken in turn from the kinds."""
    turn = questions.groupby(["cell", "kind"]).cumcount()
    ordered = questions.assign(turn=turn).sort_values(["turn", "kind"])
    groups = ordered.groupby("cell")["question"]
    return {str(cell): list(questions[:count]) for cell, questions in groups}


def _read(
    runs: Sequence[Run], questions: set[str]
) -> tuple[dict[str, tuple[Prediction, Window]], dict[str, list[Answer | None]]]:
    """The first prediction about each question, with the window of its image, and each run's
    answer, None where it has none."""
    first: dict[str, tuple[Prediction, Window]] = {}
    answers: dict[str, list[Answer | None]] = {name: [None] * len(runs) for name in questions}
    for index, run in enumerate(runs):
        names = run.answers.set_index("sample")["question"]
        samples = set(names[names.isin(questions)].index)
        for row in predictions.read(run.evaluation.path / "predictions.parquet", samples=samples):
            question = str(names[row.sample])
            if question not in first:
                first[question] = replace(row, image=_image(row, run)), _window(run)
            reply = (row.answer, row.correct, row.parse_status, row.reasoning)
            answers[question][index] = Answer(*reply, row.completion, row.completion_tokens)
    return first, answers


def _within_limit(
    chosen: Mapping[Cell, Sequence[str]], answers: Mapping[str, Sequence[Answer | None]]
) -> dict[Cell, list[str]]:
    """Fewer questions of each cell, but one, until their different replies are few enough."""
    replies = {sample: len(set(given)) for sample, given in answers.items()}
    most = max(map(len, chosen.values()), default=0)
    while (
        most > 1
        and sum(replies[s] for samples in chosen.values() for s in samples[:most]) > _REPLIES
    ):
        most -= 1
    return {cell: list(samples[:most]) for cell, samples in chosen.items()}


def _image(row: Prediction, run: Run) -> str:
    return predictions.image_of(row, run.config.folder, run.folder) if run.config else row.image


def _window(run: Run) -> Window:
    return configuration.handling(run.config.data)[0].ct_window if run.config else SOFT_TISSUE


def _item(
    first: Prediction, window: Window, answers: Sequence[Answer | None], images: _Images
) -> dict[str, Any]:
    """`answers` are places in `replies`, since many models give the same."""
    replies = list(dict.fromkeys(answer for answer in answers if answer))
    place = {reply: i for i, reply in enumerate(replies)}
    return {
        "id": first.sample,
        "source": first.source,
        "question": first.question,
        "options": first.options,
        "gold": first.gold,
        "image": images.index(first.image, window),
        "replies": [reply._asdict() for reply in replies],
        "answers": [place[answer] if answer else None for answer in answers],
    }


class _Images:
    """Thumbnails as data URIs, each file once."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._places: dict[str, int | None] = {}

    def index(self, path: str, window: Window) -> int | None:
        """Place in `uris`; None where the file is gone, since old runs outlive their images."""
        if path not in self._places:
            try:
                self.uris.append(_thumbnail(Path(path), window))
                self._places[path] = len(self.uris) - 1
            except ValueError:
                self._places[path] = None
        return self._places[path]


def _thumbnail(path: Path, window: Window) -> str:
    image = open_rgb(path, window)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
