"""One evaluation in MLflow: its metrics, its files, its data, some answers with their images."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from PIL import Image

from medreason import config as configuration
from medreason.config import Config
from medreason.data.images import open_rgb
from medreason.evaluation import predictions
from medreason.metrics import Metric as EvaluationMetric
from medreason.runs import keys
from medreason.runs.run_folder import EvaluationFolder
from medreason.samples import Window
from medreason.stats import FEWEST_FOR_INTERVAL
from medreason.tracking.store import safe_name

_OF_CELLS = (
    EvaluationMetric.ACCURACY,
    EvaluationMetric.ABOVE_PRIOR,
    EvaluationMetric.BLANK_IMAGE,
    EvaluationMetric.PARSED,
)
"""What MLflow shows of each cell. The folder's `metrics.json`, an artifact, has all."""


def send(client: MlflowClient, run_id: str, config: Config, evaluation: EvaluationFolder) -> None:
    """Show an evaluation on an MLflow run."""
    path, key = evaluation.path, evaluation.key
    metrics = predictions.load_metrics(path)
    written = int(1000 * (path / "metrics.json").stat().st_mtime)
    average = config.statistics.average
    metrics_of_test = _test_metrics(metrics, average)
    batch = [Metric(safe_name(name), value, written, 0) for name, value in metrics_of_test]
    client.log_batch(run_id, metrics=batch)
    client.log_artifacts(run_id, str(path), f"evaluations/{key}")
    outputs = configuration.read(evaluation.config).folder  # those it was made in
    rows = [
        replace(row, image=predictions.image_of(row, outputs, evaluation.run))
        for row in predictions.read(path / "predictions.parquet")
    ]
    _send_inputs(client, run_id, config, evaluation, rows)
    _send_table(client, run_id, rows, f"predictions-{key}.json", config)
    _send_heat_map(client, run_id, metrics, evaluation.run.path.name, average)


def _send_inputs(
    client: MlflowClient,
    run_id: str,
    config: Config,
    evaluation: EvaluationFolder,
    rows: list[predictions.Prediction],
) -> None:
    name = config.choices.get("data", "data")
    parts = evaluation.run.state().train_parts
    questions = sorted({row.question_digest for row in rows})
    inputs: list[tuple[str, int | None, str]] = [
        ("test", len(questions), keys.digest({"questions": questions}))
    ]
    if "data" in parts:
        inputs.append(("train", None, parts["data"]))
    client.log_inputs(
        run_id,
        [
            DatasetInput(
                Dataset(
                    name=f"{name}-{context}",
                    digest=digest,
                    source_type="local",
                    source=json.dumps(config.data),
                    profile=json.dumps({"rows": count}),
                ),
                [InputTag("mlflow.data.context", context)],
            )
            for context, count, digest in inputs
        ],
    )


def _send_table(
    client: MlflowClient,
    run_id: str,
    rows: list[predictions.Prediction],
    name: str,
    config: Config,
) -> None:
    """The first predictions of each cell with their images, whether correct or not."""
    sent = {item.path for item in client.list_artifacts(run_id)}
    original = [row for row in rows if row.control == "original" and Path(row.image).exists()]
    shown = _take_in_turn(original, config.tracking.images)
    if not shown or name in sent:  # log_table would append to what is there
        return
    columns = ("modality", "task", "question", "completion", "answer", "gold", "correct")
    window = configuration.handling(config.data)[0].ct_window
    thumbnails = [mlflow.Image(_thumbnail(row.image, window)) for row in shown]
    table: dict[str, Any] = {"image": thumbnails}
    for column in columns:
        table[column] = [getattr(row, column) for row in shown]
    table["options"] = [", ".join(row.options) for row in shown]
    client.log_table(run_id, table, name)


def _send_heat_map(
    client: MlflowClient, run_id: str, metrics: dict[str, Any], title: str, average: str
) -> None:
    from medreason.report.heatmap import heat_map  # matplotlib, half a second

    cells = metrics["cells"]
    accuracy = {cell: 100 * values[EvaluationMetric.ACCURACY] for cell, values in cells.items()}
    questions = {cell: values[EvaluationMetric.N] for cell, values in cells.items()}
    weights = questions if average == "questions" else None
    client.log_figure(run_id, heat_map(accuracy, title=title, weights=weights), "accuracy.png")


def _test_metrics(metrics: dict[str, Any], average: str) -> Iterator[tuple[str, float]]:
    """`test/accuracy` and so on for every metric, over questions or over cells, as
    `statistics.average` says, without intervals of too few clusters; the accuracy over either; and
    `test/accuracy/<modality>-<task>` for those of `_OF_CELLS`. MLflow makes a section of charts of
    what stands before the last slash."""
    overall, over_cells = metrics["overall"], metrics["over_cells"]
    chosen = over_cells if average == "cells" else overall
    few = overall[EvaluationMetric.CLUSTERS] < FEWEST_FOR_INTERVAL
    shown = {f"test/{n}": value for n, value in chosen.items() if not (few and "ci_" in n)}
    shown[f"test/{EvaluationMetric.ACCURACY}_over_questions"] = overall[EvaluationMetric.ACCURACY]
    shown[f"test/{EvaluationMetric.ACCURACY}_over_cells"] = over_cells[EvaluationMetric.ACCURACY]
    for cell, values in metrics["cells"].items():
        place = cell.replace("/", "-")
        shown |= {f"test/{name}/{place}": values.get(name) for name in _OF_CELLS}
    return ((name, float(value)) for name, value in shown.items() if value is not None)


def _take_in_turn(rows: list[predictions.Prediction], count: int) -> list[predictions.Prediction]:
    """Rows from each cell in turn, so that a small table shows all cells."""
    cells: dict[tuple[str, str], list[predictions.Prediction]] = defaultdict(list)
    for row in rows:
        cells[row.modality, row.task].append(row)
    turns = itertools.zip_longest(*cells.values())
    return [row for turn in turns for row in turn if row is not None][:count]


def _thumbnail(path: str, window: Window) -> Image.Image:
    image = open_rgb(Path(path), window)
    image.thumbnail((160, 160))
    return image
