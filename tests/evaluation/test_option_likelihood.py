"""The likeliest letter as a metric: in predictions, figures, tables."""

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

RIGHT_BY_LETTER = (0.1, 0.6, 0.2, 0.1)


def rows(folder: Path) -> list[predictions.Prediction]:
    """Of 36 questions the letter B is right in 9; every reply says A."""
    completion = Completion("prompt", reply("A"), 20, 6, "stop")
    return [
        predict(sample, control, completion, RIGHT_BY_LETTER)
        for control in ("original", "blank_image")
        for sample in draw_samples(folder)
    ]


def test_both_metrics_stand_side_by_side(tmp_path: Path) -> None:
    found = compute_metrics(rows(tmp_path), {}, ["blank_image"])["overall"]
    assert (found["accuracy"], found["option_likelihood"], found["option_likelihood_n"]) == (
        0.25,
        0.25,
        36,
    )
    assert found["option_likelihood_ci_low"] < 0.25 < found["option_likelihood_ci_high"]
    assert found["option_likelihood_blank_image"] == 0.25
    generated = [
        replace(row, option_likelihoods=[], likeliest_option=None) for row in rows(tmp_path)
    ]
    assert "option_likelihood" not in compute_metrics(generated, {}, [])["overall"]


def test_predictions_keep_shares_and_files_without_them_are_read(tmp_path: Path) -> None:
    predictions.write(rows(tmp_path), tmp_path / "new.parquet")
    assert predictions.read(tmp_path / "new.parquet")[0].option_likelihoods == list(RIGHT_BY_LETTER)
    import pyarrow.parquet as pq

    older = pq.read_table(tmp_path / "new.parquet").drop_columns(
        ["option_likelihoods", "likeliest_option"]
    )
    pq.write_table(older, tmp_path / "old.parquet")
    assert predictions.read(tmp_path / "old.parquet")[0].likeliest_option is None


def test_answer_without_generation_is_the_likeliest_letter(tmp_path: Path) -> None:
    row = settle(draw_samples(tmp_path)[1], "original", "prompt", RIGHT_BY_LETTER)
    assert (row.answer, row.correct, row.parse_status) == ("B", True, "parsed")
    assert (row.completion, row.finish_reason) == ("", "option_likelihood")


def test_table_says_what_was_answered_by_letters(
    composed: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = draw_samples(tmp_path)
    run = write_run(composed("method=base"), samples, lambda i, sample: reply("A"))
    answered = [settle(sample, "original", "prompt", RIGHT_BY_LETTER) for sample in samples]
    figures = compute_metrics(answered, {}, []) | {"answers": ["option_likelihood"]}
    predictions.save(run.evaluation("evaluation0"), answered, figures)
    assert read_json(run.evaluation("evaluation0") / "metrics.json")["answers"]
    table.show([run])
    shown = capsys.readouterr().out
    assert "letter" in shown
    assert "base: answered by the likeliest letter, nothing generated or parsed" in shown
