"""Run folders as the worker leaves them, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from medreason import config as configuration
from medreason.config import Config
from medreason.data import audit, image_cache
from medreason.evaluation import predictions
from medreason.evaluation.metrics import compute_metrics
from medreason.runs.files import write_json
from medreason.runs.run_folder import EvaluationFolder, RunFolder
from medreason.samples import Sample, letter_at

CELLS = (("ct", "disease"), ("ct", "anatomy"), ("mri", "disease"))


def draw_samples(folder: Path, per_cell: int = 12) -> list[Sample]:
    """Closed questions of three cells; the two of CT share their images."""
    samples = []
    for modality, task in CELLS:
        for i in range(per_cell):
            image = folder / f"{modality}-{i}.png"
            if not image.exists():
                folder.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30), (20 * i % 256, 90, len(modality) * 40)).save(image)
            samples.append(
                Sample(
                    id=f"{modality}-{i}-{task}",
                    image=image,
                    question=f"What does image {i} show?",
                    options=("lesion", "cyst", "nodule", "nothing"),
                    answer=letter_at(i % 4),
                    explanation=None,
                    modality=modality,
                    task=task,
                    source="drawn",
                    patient=None,
                    split="test",
                )
            )
    return samples


def reply(answer: str, reasoning: str = "It is bright.") -> str:
    return f"<think>{reasoning}</think>\n<answer>{answer}</answer>"


def write_run(
    config: Config,
    samples: Sequence[Sample],
    answer: Callable[[int, Sample], str],
    *,
    key: str = "0123456789ab",
    evaluation_key: str = "evaluation0",
    priors: Mapping[tuple[str, str], float | None] | None = None,
    logs: Sequence[dict[str, Any]] = (),
    **state: Any,
) -> EvaluationFolder:
    """A finished run whose completion to the i-th sample is `answer(i, sample)`; one that ends in
    an ellipsis was cut off. It was trained on as many others of each sample's cell. In a folder
    that is there already, one more evaluation of it."""
    folder = RunFolder(config.folder / "runs" / f"{config.run_name}-{key}")
    evaluation = EvaluationFolder(folder, evaluation_key)
    evaluation.path.mkdir(parents=True)
    if not folder.config.exists():
        configuration.write(config, folder.config)
    configuration.write(config, evaluation.config)
    trained_on = [replace(sample, split="train") for sample in samples]
    cells = audit.cells([*samples, *trained_on])
    write_json(evaluation.data, {"test_rows_on_trained_images": 0, "leaks": [], "cells": cells})
    rows = [
        predictions.predict(sample, control, _completion(text))
        for control in ("original", "blank_image")
        for i, sample in enumerate(samples)
        for text in [answer(i, sample) if control == "original" else reply("A")]
    ]
    images = image_cache.digests({sample.image for sample in samples}, config.folder / "cache")
    rows = predictions.with_digests(rows, samples, images)
    priors = priors or {sample.cell: 0.25 for sample in samples}
    metrics = compute_metrics(rows, priors, ["blank_image"])
    metrics["answers"] = config.evaluation.answers
    predictions.save(evaluation.path, rows, metrics)
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in logs))
    evaluations = [*folder.state().evaluations, evaluation_key]
    done = {"state": "done", "trained": True, "evaluations": evaluations, "train_seconds": 93.0}
    done["sweeps"] = {config.sweep: [evaluation_key]}
    folder.update(**(done | state))
    return evaluation


def write_failed(config: Config, error: str, *, key: str = "ba9876543210") -> EvaluationFolder:
    folder = RunFolder(config.folder / "runs" / f"{config.run_name}-{key}")
    folder.path.mkdir(parents=True)
    configuration.write(config, folder.config)
    folder.update(state="failed", sweeps={config.sweep: ["evaluation0"]}, error=error, attempts=1)
    return EvaluationFolder(folder, "evaluation0")


def _completion(text: str) -> SimpleNamespace:
    return SimpleNamespace(
        prompt="prompt",
        text=text,
        prompt_tokens=20,
        completion_tokens=len(text.split()),
        finish_reason="length" if text.endswith("\u2026") else "stop",
    )
