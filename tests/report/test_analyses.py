"""Curves of training and accuracy by length, where there are data."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import draw_samples, reply, write_run

from medreason.config import Config
from medreason.report import analyses
from medreason.report.matrices import Arm, arms
from medreason.report.page import page
from medreason.report.runs import load
from medreason.samples import Sample

Compose = Callable[..., Config]


def longer_is_wrong(i: int, sample: Sample) -> str:
    """Right in 2 to 7 words, wrong in more."""
    right = i % 12 < 6
    wrong = "ABCD"["ABCD".index(sample.answer) - 1]
    return reply(sample.answer if right else wrong, "It is bright. " * (1 + i % 12))


def two_seeds(composed: Compose, folder: Path) -> list[Arm]:
    samples = draw_samples(folder / "images")
    folders = []
    for seed in range(2):
        logs = [
            {
                **{"step": step, "loss": 0.1, "reward": step / 10 + seed},
                **{"completions/mean_length": 40.0, "frac_reward_zero_std": 0.25 * seed},
            }
            for step in (1, 2)
        ]
        config = composed("method=grpo", f"seed={seed}")
        key = f"{seed:012d}"
        folders.append(write_run(config, samples, longer_is_wrong, key=key, logs=logs))
    return arms(load(folders))


def test_curves_are_means_over_the_models_of_an_arm(composed: Compose, tmp_path: Path) -> None:
    curves = analyses.training(two_seeds(composed, tmp_path))
    assert set(curves) == {"reward", "completions/mean_length", "frac_reward_zero_std"}
    [(step, low, mean, high), _] = curves["reward"]["grpo"]
    assert (step, mean) == (1, pytest.approx(0.6))
    assert low < mean < high
    assert curves["frac_reward_zero_std"]["grpo"][1][2] == pytest.approx(0.125)


def test_accuracy_by_length_counts_every_answer_once(composed: Compose, tmp_path: Path) -> None:
    lengths = analyses.by_length(two_seeds(composed, tmp_path))
    assert sum(row.answers for row in lengths) == 2 * 36
    assert [row.accuracy for row in lengths][:2] == [1, 1]
    assert lengths[-1].accuracy == 0
    assert all(a.high < b.low for a, b in itertools.pairwise(lengths))
    assert all(row.ci_low <= row.accuracy <= row.ci_high for row in lengths)


def test_tables_and_pictures_are_written_and_the_page_has_charts(
    composed: Compose, tmp_path: Path
) -> None:
    members = two_seeds(composed, tmp_path)
    assert {path.name for path in analyses.write(members, tmp_path)} == {
        *("training.csv", "training.parquet", "training.png"),
        *("accuracy-by-length.csv", "accuracy-by-length.parquet", "accuracy-by-length.png"),
    }
    with (tmp_path / "training.csv").open() as stream:
        assert {row["quantity"] for row in csv.DictReader(stream)} == {*analyses.QUANTITIES}
    html = page(members[0].runs, sweep="demo")
    assert "<figcaption>Groups without reward variance, share</figcaption>" in html
    assert "<figcaption>Accuracy % by completion length</figcaption>" in html


def test_lengths_of_few_clusters_are_in_the_table_alone(composed: Compose, tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=3)
    few = arms(load([write_run(composed("method=base"), samples, longer_is_wrong)]))
    assert {path.name for path in analyses.write(few, tmp_path)} == {
        *("accuracy-by-length.csv", "accuracy-by-length.parquet"),
    }
    assert analyses.length_charts(few, {few[0].runs[0].name: 0}) == []


def test_an_arm_with_enough_clusters_in_one_fifth_alone_has_no_line(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = two_seeds(composed, tmp_path)
    colours = {arms[0].runs[0].name: 0}
    (chart,) = analyses.length_charts(arms, colours)
    assert all(len(mark.points) > 1 for mark in chart.marks)
    lengths = analyses.by_length(arms)
    monkeypatch.setattr(analyses, "by_length", lambda _: lengths[:1])
    assert analyses.length_charts(arms, colours) == []


def test_without_data_there_is_neither_table_nor_chart(composed: Compose, tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    runs = load([write_run(composed("method=base"), samples, lambda i, s: reply("A"))])
    assert analyses.write(arms(runs), tmp_path) == []
    assert "Completion length" not in page(runs, sweep="demo")
    assert analyses.by_length([]) == []


def test_pictures_have_the_colours_of_the_page() -> None:
    light = Path(analyses.__file__).with_name("page.css").read_text().partition("@media")[0]
    assert tuple(re.findall(r"--s\d: (#\w+)", light)) == analyses._COLOURS
