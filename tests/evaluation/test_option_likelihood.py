"""Option likelihood as a metric: in predictions, metrics and tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import draw_samples, reply, write_run

from medreason.config import Config
from medreason.evaluation import predictions
from medreason.evaluation.metrics import compute_metrics
from medreason.evaluation.predictions import predict, settle
from medreason.generation.rows import Completion
from medreason.report import table
from medreason.runs.files import read_json

LIKELIHOODS = (0.1, 0.6, 0.2, 0.1)


def rows(folder: Path) -> list[predictions.Prediction]:
    """Of 36 questions B, the likeliest letter, is right in 9; every reply says A."""
    completion = Completion("prompt", reply("A"), 20, 6, "stop")
    return [
        predict(sample, control, completion, LIKELIHOODS)
        for control in ("original", "blank_image")
        for sample in draw_samples(folder)
    ]


def test_both_metrics_stand_side_by_side(tmp_path: Path) -> None:
    metrics = compute_metrics(rows(tmp_path), {}, ["blank_image"])["overall"]
    assert (metrics["accuracy"], metrics["option_likelihood"], metrics["option_likelihood_n"]) == (
        0.25,
        0.25,
        36,
    )
    assert metrics["option_likelihood_ci_low"] < 0.25 < metrics["option_likelihood_ci_high"]
    assert metrics["option_likelihood_blank_image"] == 0.25
    generated = [
        replace(row, option_likelihoods=[], likeliest_option=None) for row in rows(tmp_path)
    ]
    assert "option_likelihood" not in compute_metrics(generated, {}, [])["overall"]


def test_predictions_keep_option_likelihoods(tmp_path: Path) -> None:
    predictions.write(rows(tmp_path), tmp_path / "predictions.parquet")
    row = predictions.read(tmp_path / "predictions.parquet")[0]
    assert row.option_likelihoods == list(LIKELIHOODS)
    assert row.likeliest_option == "B"


def test_answer_without_generation_is_the_likeliest_letter(tmp_path: Path) -> None:
    row = settle(draw_samples(tmp_path)[1], "original", "prompt", LIKELIHOODS)
    assert (row.answer, row.correct, row.parse_status) == ("B", True, "parsed")
    assert (row.completion, row.finish_reason) == ("", "option_likelihood")


def test_table_names_runs_answered_by_option_likelihood(
    composed: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = draw_samples(tmp_path)
    run = write_run(composed("method=base"), samples, lambda i, sample: reply("A"))
    settled = [settle(sample, "original", "prompt", LIKELIHOODS) for sample in samples]
    metrics = compute_metrics(settled, {}, []) | {"answers": ["option_likelihood"]}
    predictions.save(run.path, settled, metrics)
    assert read_json(run.path / "metrics.json")["answers"]
    table.show([run])
    shown = capsys.readouterr().out
    assert "letter" in shown
    assert "base: answered by the likeliest letter, nothing generated or parsed" in shown
