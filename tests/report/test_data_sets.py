"""Accuracy by data set, where the test questions are of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from run_folders import draw_samples, reply, write_run

from medreason.config import Config
from medreason.report import data_sets
from medreason.report.matrices import arms
from medreason.report.page import page
from medreason.report.runs import load
from medreason.report.table import show_table

Compose = Callable[..., Config]


def test_each_arm_has_a_row_with_its_accuracy_on_every_set(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = draw_samples(tmp_path / "images")
    samples = [replace(s, source=("SLAKE", "VQA-RAD")[i % 3 == 0]) for i, s in enumerate(drawn)]
    count = sum(s.source == "SLAKE" for s in samples)
    folders = [
        write_run(composed("method=base"), samples, lambda i, s: reply("?")),
        *(
            write_run(
                composed("method=sft", f"seed={seed}"),
                samples,
                lambda i, s, seed=seed: reply(s.answer if s.source == "SLAKE" and seed else "?"),
                key=f"{seed:012d}",
            )
            for seed in range(2)
        ),
    ]
    runs = load(folders)
    found = arms(runs)
    rows = data_sets.by_source(found)
    facts = [(r.arm, r.source, r.models, r.n, r.accuracy) for r in rows]
    assert facts == [
        ("base", "SLAKE", 1, count, 0.0),
        ("sft", "SLAKE", 2, count, 0.5),  # one of two models
        ("base", "VQA-RAD", 1, len(samples) - count, 0.0),
        ("sft", "VQA-RAD", 2, len(samples) - count, 0.0),
    ]
    sets = data_sets.shown(rows)
    show_table(lambda compact: data_sets.table(sets, found))
    printed = capsys.readouterr().out
    assert "50.0 [" in printed
    assert f"{count} in " in printed
    shown = page(runs, sweep="s", on_sets=rows)
    assert '<h2 id="sets-heading">Data sets</h2>' in shown
    assert data_sets.write(rows, tmp_path)
    assert len(pd.read_csv(tmp_path / "by-data-set.csv")) == 4


def test_one_set_has_no_table_and_many_only_a_file(composed: Compose, tmp_path: Path) -> None:
    drawn = draw_samples(tmp_path / "images")
    config = composed("method=base")
    one = load([write_run(config, drawn, lambda i, s: reply("A"), key="0" * 12)])
    assert data_sets.by_source(arms(one)) == []
    assert "sets-heading" not in page(one, sweep="s")
    samples = [replace(s, source=f"set {i % 9}") for i, s in enumerate(drawn)]
    rows = data_sets.by_source(
        arms(load([write_run(config, samples, lambda i, s: reply("A"), key="1" * 12)]))
    )
    assert len(rows) == 9
    assert data_sets.shown(rows) == {}
