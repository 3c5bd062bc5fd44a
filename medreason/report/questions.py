"""What the page embeds: figures of each cell, and some of its questions with every run's answer."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medreason.data.images import open_rgb
from medreason.evaluation import predictions
from medreason.evaluation.predictions import Prediction
from medreason.report.runs import Cell, Run, base_of, difference, paired
from medreason.samples import MODALITIES, TASKS
from medreason.statistics import holm, mcnemar

_THUMBNAIL = 160  # pixels of the longer side
_ANSWERS = 12_000  # embedded at most; beyond it a browser gets slow, so cells get fewer questions

_FIGURES = ("n", "accuracy", "ci_low", "ci_high", "prior", "above_prior", "blank_image", "parsed")


def embedded(runs: Sequence[Run], per_cell: int) -> dict[str, Any]:
    """All the page's script reads: runs and their cells, questions by cell, images once each."""
    evaluated = [run for run in runs if run.figures]
    cells = sorted({cell for run in evaluated for cell in run.tested_on}, key=_place)
    room = _ANSWERS // max(len(cells) * len(evaluated), 1)
    chosen = {cell: _choose(cell, evaluated, max(1, min(per_cell, room))) for cell in cells}
    images = _Images()
    questions = _questions(evaluated, {sample for some in chosen.values() for sample in some})
    return {
        "modalities": list(MODALITIES.items()),
        "tasks": list(TASKS.items()),
        "runs": [_figures(run, runs, evaluated) for run in evaluated],
        "questions": {
            "/".join(cell): {
                "total": len(_asked(cell, evaluated)),
                "items": [_item(questions[sample], images) for sample in chosen[cell]],
            }
            for cell in cells
        },
        "images": images.uris,
    }


def _figures(run: Run, runs: Sequence[Run], evaluated: Sequence[Run]) -> dict[str, Any]:
    base = base_of(run, evaluated)
    pairs = {key: paired(run, base, {_cell(key)}) for key in run.cells}
    tested = [key for key, (a, _) in pairs.items() if a]
    adjusted = dict(zip(tested, holm([mcnemar(*pairs[key]) for key in tested]), strict=True))
    return {
        "label": run.label,
        "colour": list(runs).index(run) % 8,
        "base": evaluated.index(base) if base else None,
        "restricted": bool(run.trained_on) and not run.tested_on <= run.trained_on,
        "cells": {
            key: {name: figures.get(name) for name in _FIGURES}
            | _against_base(run, base, _cell(key), adjusted.get(key))
            | {"in_domain": _cell(key) in run.trained_on}
            for key, figures in run.cells.items()
        },
    }


def _against_base(run: Run, base: Run | None, cell: Cell, p: float | None) -> dict[str, Any]:
    """Difference with interval, McNemar's p adjusted over cells, and how many of each kind."""
    mine = [o for o in run.outcomes.values() if o.cell == cell]
    counts: dict[str, Any] = {
        "all": len(mine),
        "wrong": sum(not o.correct for o in mine),
        "unparsed": sum(not o.parsed for o in mine),
    }
    found = difference(run, base, {cell})
    if found is None:
        return {"counts": counts, "difference": None}
    a, b = paired(run, base, {cell})
    counts["gained"] = sum(x > y for x, y in zip(a, b, strict=True))
    counts["lost"] = sum(x < y for x, y in zip(a, b, strict=True))
    counts["changed"] = counts["gained"] + counts["lost"]
    return {"counts": counts, "difference": [found.mean, found.low, found.high], "p": p}


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


def _questions(runs: Sequence[Run], wanted: set[str]) -> dict[str, list[Prediction | None]]:
    """Each wanted sample's answer of every run, None where a run was not asked it."""
    found: dict[str, list[Prediction | None]] = {sample: [None] * len(runs) for sample in wanted}
    for index, run in enumerate(runs):
        for row in predictions.read(run.evaluation / "predictions.parquet"):
            if row.control == "none" and row.sample in wanted:
                found[row.sample][index] = row
    return found


def _item(answers: Sequence[Prediction | None], images: _Images) -> dict[str, Any]:
    asked = next(row for row in answers if row)
    return {
        "id": asked.sample,
        "source": asked.source,
        "question": asked.question,
        "options": asked.options,
        "gold": asked.gold,
        "image": images.index(asked.image),
        "answers": [
            {
                "answer": row.answer,
                "correct": row.correct,
                "status": row.parse_status,
                "reasoning": row.reasoning,
                "completion": row.completion,
                "tokens": row.completion_tokens,
            }
            if row
            else None
            for row in answers
        ],
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
