"""Train x test tables from run folders: what stands where, and what is compared with what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_folders import draw_samples, reply, write_run

from medreason.config import Config
from medreason.report import comparisons, matrices, tables
from medreason.report.runs import load
from medreason.samples import Sample

Compose = Callable[..., Config]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return draw_samples(tmp_path / "images")  # ct/disease, ct/anatomy, mri/disease; 12 of each


def right_on(*cells: tuple[str, str]) -> Callable[[int, Sample], str]:
    """Right on these cells, wrong elsewhere."""
    return lambda i, s: reply(s.answer if s.cell in cells else "ABCD"["ABCD".index(s.answer) - 1])


def sweep(composed: Compose, samples: list[Sample]) -> list[matrices.Arm]:
    """A start model that is always wrong, and SFT models each right on its own cell alone."""
    folders = [write_run(composed("method=base"), samples, right_on(), key="base00000000")]
    for modality, task in (("ct", "disease"), ("ct", "anatomy"), ("mri", "disease")):
        config = composed("method=sft", f"modality={modality}", f"task={task}")
        cell = right_on((modality, task))
        folders.append(write_run(config, samples, cell, key=f"{modality}{task}0000"[:12]))
    return matrices.arms(load(folders))


def test_runs_that_differ_in_cell_alone_are_one_arm(
    composed: Compose, samples: list[Sample]
) -> None:
    base, sft = sweep(composed, samples)
    assert (base.name, base.untrained, len(base.runs)) == ("base", True, 1)
    assert (sft.name, sft.untrained, len(sft.runs)) == ("sft", False, 3)


def test_tables_hold_what_was_trained_and_tested_and_leave_the_rest_empty(
    composed: Compose, samples: list[Sample]
) -> None:
    _, sft = sweep(composed, samples)
    found = {(p.table, p.train, p.test): p for p in matrices.places(sft)}
    own = [p for p in found.values() if p.table == "8x5"]
    assert {p.test: p.accuracy for p in own} == {
        "ct/disease": 1.0,
        "ct/anatomy": 1.0,
        "mri/disease": 1.0,
    }
    assert found["40x40", "ct/disease", "mri/disease"].accuracy == 0.0
    # Two models were trained within CT, each right on half of CT's questions.
    across = found["8x8", "ct", "ct"]
    assert (across.models, across.n, across.accuracy) == (2, 24, 0.5)
    assert found["8x8", "mri", "ct"].accuracy == 0.0
    assert ("8x8", "oct", "ct") not in found
    assert found["5x5", "disease", "disease"].accuracy == 0.5
    wide = {row["train"]: row for row in matrices.wide(matrices.places(sft), "8x5")}
    assert wide["ct"]["disease"] == 100.0
    assert wide["oct"]["disease"] is None


def test_start_model_stands_beside_every_row(composed: Compose, samples: list[Sample]) -> None:
    base, sft = sweep(composed, samples)
    found = {(c.table, c.train, c.test): c for c in comparisons.compare(sft, base)}
    gain = found["40x40", "ct/disease", "ct/disease"]
    assert (gain.n, gain.difference) == (12, 100.0)
    assert gain.p == pytest.approx(2 / 2**12)
    # Nine places of the 40 x 40 table were tested, so Holm multiplies the smallest by nine.
    assert gain.p_holm == pytest.approx(9 * 2 / 2**12)
    # Several models answered each question: their mean is no 0 or 1, and McNemar does not hold.
    assert found["8x8", "ct", "ct"].p is None
    assert found["8x8", "ct", "ct"].difference == 50.0


def test_seeds_give_mean_and_spread(composed: Compose, samples: list[Sample]) -> None:
    folders = [
        write_run(
            composed("method=sft", "modality=ct", "task=disease", f"seed={seed}"),
            samples,
            right_on(("ct", "disease")) if seed else right_on(),
            key=f"{seed}00000000000",
        )
        for seed in (0, 1)
    ]
    (arm,) = matrices.arms(load(folders))
    assert arm.seeds == [0, 1]
    (own,) = [p for p in matrices.places(arm) if p.table == "8x5"]
    assert (own.seeds, own.n, own.accuracy) == (2, 12, 0.5)
    assert own.spread == pytest.approx(0.5**0.5)


def test_domains_tell_near_from_far(composed: Compose, samples: list[Sample]) -> None:
    _, sft = sweep(composed, samples)
    assert matrices.domains(sft) == {
        "in-domain": 1.0,
        "same modality": 0.0,
        "same task": 0.0,
        "neither": 0.0,
    }


def test_tables_are_written_as_csv_and_parquet_with_pictures(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    arms = sweep(composed, samples)
    found = tables.gather([run for arm in arms for run in arm.runs])
    assert found
    tables.write(found, tmp_path)
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert {"places.csv", "places.parquet", "comparisons.csv", "domains.csv"} <= names
    assert {"8x5-sft.csv", "8x8-sft.parquet", "40x40-sft.png", "5x5-sft-minus-base.png"} <= names
    assert not any("8x5-base" in name for name in names)
    places = pq.read_table(tmp_path / "tables" / "places.parquet").to_pylist()
    assert {row["arm"] for row in places} == {"base", "sft"}
