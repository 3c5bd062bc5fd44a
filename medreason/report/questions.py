"""What the page embeds: metrics of each cell, and some of its questions with every run's answer."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medreason.data.images import open_rgb
from medreason.evaluation import predictions
from medreason.metrics import HEADLINE, Metric, Shown
from medreason.report import comparisons
from medreason.report.runs import Cell, Run, base_of, paired
from medreason.samples import MODALITIES, TASKS
from medreason.stats import Difference

_THUMBNAIL = 160  # pixels of the longer side
_IN_FRONT = (*HEADLINE, Metric.ABOVE_PRIOR)  # of a cell; its tooltip lists the other metrics
_REPLIES = 12_000  # different ones embedded at most; beyond it a browser gets slow


class Answer(NamedTuple):
    """What a run said to one question; equal where two said the same."""

    answer: str | None
    correct: bool
    status: str
    reasoning: str | None
    completion: str
    tokens: int


class _Asked(NamedTuple):
    """The question itself, from the first file that has it."""

    id: str
    source: str
    question: str
    options: list[str]
    gold: str
    image: str


def embedded(runs: Sequence[Run], per_cell: int) -> dict[str, Any]:
    """All the page's script reads: runs and their cells, questions by cell, images once each."""
    evaluated = [run for run in runs if run.metrics]
    cells = sorted({cell for run in evaluated for cell in run.tested_on}, key=_place)
    chosen = {cell: _choose(cell, evaluated, per_cell) for cell in cells}
    images = _Images()
    asked, answers = _questions(evaluated, {s for some in chosen.values() for s in some})
    chosen = _within(chosen, answers)
    return {
        "modalities": list(MODALITIES.items()),
        "tasks": list(TASKS.items()),
        "metrics": {
            metric: {"name": metric.title, "label": metric.label, "beside": metric not in _IN_FRONT}
            for metric in Metric.shown_in(Shown.PAGE)
        },
        "runs": [_run(run, evaluated) for run in evaluated],
        "questions": {
            "/".join(cell): {
                "total": len(_asked(cell, evaluated)),
                "items": [_item(asked[s], answers[s], images) for s in chosen[cell]],
            }
            for cell in cells
        },
        "images": images.uris,
    }


def _within(
    chosen: Mapping[Cell, Sequence[str]], answers: Mapping[str, Sequence[Answer | None]]
) -> dict[Cell, list[str]]:
    """Fewer questions of each cell, but one, until their different replies are few enough."""
    replies = {sample: len(set(given)) for sample, given in answers.items()}
    most = max(map(len, chosen.values()), default=0)
    while most > 1 and sum(replies[s] for some in chosen.values() for s in some[:most]) > _REPLIES:
        most -= 1
    return {cell: list(some[:most]) for cell, some in chosen.items()}


def _run(run: Run, evaluated: Sequence[Run]) -> dict[str, Any]:
    base = base_of(run, evaluated)
    changes = comparisons.of_cells(run, base)
    shown = Metric.shown_in(Shown.PAGE)
    return {
        "label": run.label,
        "base": evaluated.index(base) if base else None,
        "restricted": bool(run.trained_on) and not run.tested_on <= run.trained_on,
        "means": {
            key: [change.mean, change.low, change.high, p]
            for key, (change, p) in changes.items()
            if key not in run.cells
        },
        "cells": {
            key: {name: v for name in shown if (v := metrics.get(name)) is not None}
            | _against_base(run, base, _cell(key), changes.get(key))
            | {"in_domain": _cell(key) in run.trained_on}
            for key, metrics in run.cells.items()
        },
    }


def _against_base(
    run: Run, base: Run | None, cell: Cell, change: tuple[Difference, float] | None
) -> dict[str, Any]:
    """Difference with interval and p, and how many questions of each kind."""
    mine = [o for o in run.outcomes.values() if o.cell == cell]
    counts: dict[str, Any] = {
        "all": len(mine),
        "wrong": sum(not o.correct for o in mine),
        "unparsed": sum(not o.parsed for o in mine),
    }
    if change is None:
        return {"counts": counts}
    a, b = paired(run, base, {cell})
    counts["gained"] = sum(x > y for x, y in zip(a, b, strict=True))
    counts["lost"] = sum(x < y for x, y in zip(a, b, strict=True))
    counts["changed"] = counts["gained"] + counts["lost"]
    found, p = change
    return {"counts": counts, "against": {"base": [found.mean, found.low, found.high, p]}}


def _choose(cell: Cell, runs: Sequence[Run], count: int) -> list[str]:
    """Questions taken in turn from those that were unparsed, changed, all wrong and all right."""
    kinds: dict[int, list[str]] = {kind: [] for kind in range(4)}
    for sample in _asked(cell, runs):
        outcomes = [run.outcomes[sample] for run in runs if sample in run.outcomes]
        if len({o.correct for o in outcomes}) > 1:
            kind = 0
        elif not all(o.parsed for o in outcomes):
            kind = 1
        else:
            kind = 2 if not outcomes[0].correct else 3
        kinds[kind].append(sample)
    chosen: list[str] = []
    while len(chosen) < count and any(kinds.values()):
        for members in kinds.values():
            if members and len(chosen) < count:
                chosen.append(members.pop(0))
    return chosen


def _asked(cell: Cell, runs: Sequence[Run]) -> list[str]:
    """Ids of the cell's questions that any run was asked, each once."""
    return list(dict.fromkeys(s for r in runs for s, o in r.outcomes.items() if o.cell == cell))


def _questions(
    runs: Sequence[Run], wanted: set[str]
) -> tuple[dict[str, _Asked], dict[str, list[Answer | None]]]:
    """The wanted samples, and each run's answers to them, None where a run was not asked."""
    asked: dict[str, _Asked] = {}
    answers: dict[str, list[Answer | None]] = {sample: [None] * len(runs) for sample in wanted}
    for index, run in enumerate(runs):
        for row in predictions.read(run.evaluation / "predictions.parquet", samples=wanted):
            if row.sample not in asked:
                question = (row.question, row.options, row.gold, _image(row.image, run))
                asked[row.sample] = _Asked(row.sample, row.source, *question)
            said = (row.answer, row.correct, row.parse_status, row.reasoning)
            answers[row.sample][index] = Answer(*said, row.completion, row.completion_tokens)
    return asked, answers


def _image(recorded: str, run: Run) -> str:
    """Where an image is now; outputs may have been moved, or are named from another folder."""
    if run.config is None or not Path(recorded).is_relative_to(run.config.folder):
        return recorded
    outputs = run.folder.path.parents[1]
    return str(outputs / Path(recorded).relative_to(run.config.folder))


def _item(asked: _Asked, answers: Sequence[Answer | None], images: _Images) -> dict[str, Any]:
    """`answers` are places in `replies`, since many models say the same."""
    replies = list(dict.fromkeys(answer for answer in answers if answer))
    place = {reply: i for i, reply in enumerate(replies)}
    return {
        **asked._asdict(),
        "image": images.index(asked.image),
        "replies": [reply._asdict() for reply in replies],
        "answers": [place[answer] if answer else None for answer in answers],
    }


class _Images:
    """Thumbnails as data URIs, each file once."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._places: dict[str, int | None] = {}

    def index(self, path: str) -> int | None:
        """Place in `uris`; None where the file is gone, since old runs outlive their images."""
        if path not in self._places:
            try:
                self.uris.append(_thumbnail(Path(path)))
                self._places[path] = len(self.uris) - 1
            except ValueError:
                self._places[path] = None
        return self._places[path]


def _thumbnail(path: Path) -> str:
    image = open_rgb(path)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cell(key: str) -> Cell:
    modality, task = key.split("/")
    return modality, task


def _place(cell: Cell) -> tuple[int, int]:
    return [*MODALITIES].index(cell[0]), [*TASKS].index(cell[1])
