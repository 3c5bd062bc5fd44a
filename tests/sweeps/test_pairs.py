"""A sweep has a row for each pair of run and evaluation, and compares like with like alone."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import commands
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_folders import reply, write_run

from medreason import data
from medreason.config import Config
from medreason.execution.request import run_request
from medreason.report import table
from medreason.runs.run_folder import EvaluationFolder, evaluations_by_sweep
from medreason.samples import Sample

SMALL = ("data.train_images=4", "data.test_images=2", "tracking=none", "modality=ct")
AXES = {
    "method": ["base", "sft"],
    "prompt": ["think", "no_think"],
    "evaluation.max_new_tokens": ["12", "40"],
    "evaluation.samples_per_cell": ["null", "1"],
    "seed": ["0", "1"],
}


@given(
    chosen=st.fixed_dictionaries(
        {k: st.sets(st.sampled_from(v), min_size=1) for k, v in AXES.items()}
    )
)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_sweep_has_a_row_for_each_pair_and_honest_differences(
    composed: Callable[..., Config],
    chosen: dict[str, set[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    outputs = tmp_path_factory.mktemp("sweep")
    jobs = list(
        itertools.product(*([f"{key}={v}" for v in sorted(vs)] for key, vs in chosen.items()))
    )
    pairs = set()
    for job in jobs[:12]:
        config = composed(*SMALL, f"outputs={outputs}", *job)
        request = run_request(config)
        pair = request.train_key, request.evaluation_key
        if pair not in pairs:
            samples = data.tested_on(config, data.load(config.data, config.folder / "cache"))
            keys = {"key": request.train_key, "evaluation_key": request.evaluation_key}
            write_run(config, samples, guess(*pair), **keys)
        pairs.add(pair)
    assert_a_row_for_each_pair(outputs, pairs)


def assert_a_row_for_each_pair(outputs: Path, pairs: set[tuple[str, str]]) -> None:
    """Of the sweep `runs`; each with the difference that ten lines recompute from the answers."""
    evaluations = evaluations_by_sweep(outputs / "runs")["runs"]
    rows = table.rows(evaluations)
    assert len(rows) == len(pairs)
    assert len({row.label for row in rows}) == len(rows)
    for row in rows:
        (mine,) = (evaluation for evaluation in evaluations if evaluation.name == row.name)
        expected = difference_by_hand(mine, evaluations)
        if expected is None:
            assert row.difference is None
        else:
            assert row.difference
            assert row.difference.mean == pytest.approx(expected)


def guess(*seeds: str) -> Callable[[int, Sample], str]:
    draw = random.Random("".join(seeds))
    return lambda _, sample: reply(sample.answer if draw.random() < 0.5 else "Z")


def difference_by_hand(mine: EvaluationFolder, evaluations: list[EvaluationFolder]) -> float | None:
    """Percent points over the base evaluation asked in the same way that shares most questions, and
    of those the one with fewest others."""
    if mine.run.path.name.startswith("base"):
        return None
    ours = answers(mine)
    asked_alike = [
        answers(other)
        for other in evaluations
        if other.run.path.name.startswith("base") and asked(other) == asked(mine)
    ]
    base = max(asked_alike, key=lambda a: (len(ours.keys() & a.keys()), -len(a)), default={})
    both = [100.0 * (ours[question] - base[question]) for question in ours.keys() & base.keys()]
    return sum(both) / len(both) if both else None


def asked(evaluation: EvaluationFolder) -> tuple[str, ...]:
    lines = evaluation.config.read_text().splitlines()
    return tuple(
        line for line in lines if line.strip().startswith(("evaluate:", "max_new_tokens:"))
    )


def answers(evaluation: EvaluationFolder) -> dict[str, int]:
    rows = pq.read_table(evaluation.path / "predictions.parquet").to_pylist()
    return {
        f"{row['image']} {row['question']} {row['options']} {row['gold']}": int(row["correct"])
        for row in rows
        if row["control"] == "original"
    }


LAUNCHERS = [
    ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    pytest.param(("hydra/launcher=basic",), marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("launcher", ["joblib_x2", "basic"])
def test_random_sweep_that_is_run_has_a_row_for_each_pair(
    composed: Callable[..., Config], tmp_path: Path, launcher: str, seed: int
) -> None:
    draw = random.Random(seed)
    chosen = {key: draw.sample(AXES[key], 2) for key in draw.sample(sorted(AXES), 2)}
    chosen = {"method": ["base", "sft"]} | chosen
    fixed = (
        *(*SMALL, "method.trl.max_steps=1", "evaluation.modalities=[ct]", "hardware.threads=1"),
        "evaluation.controls=[]",
    )
    words = [f"{key}={','.join(values)}" for key, values in chosen.items()]
    done = commands.medreason(
        *("-m", *fixed, *words, f"outputs={tmp_path}", f"hydra/launcher={launcher}"),
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = set()
    for values in itertools.product(*chosen.values()):
        job = [f"{key}={value}" for key, value in zip(chosen, values, strict=True)]
        request = run_request(composed(*fixed, f"outputs={tmp_path}", *job))
        pairs.add((request.train_key, request.evaluation_key))
    assert_a_row_for_each_pair(tmp_path, pairs)


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda value: value[0])
def test_both_evaluations_of_one_start_model_are_kept_whatever_the_launcher(
    tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    sweep = ("method=base,sft", "prompt=think,no_think", "method.trl.max_steps=1")
    done = commands.medreason(
        *("-m", *SMALL, *sweep, *launcher, "hardware.threads=1"),
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 jobs" in done.stderr
    assert "4 done" in done.stderr
    evaluations = evaluations_by_sweep(tmp_path / "outputs/runs")["runs"]
    assert len({evaluation.run.path for evaluation in evaluations}) == 3
    assert [row.label for row in table.rows(evaluations)] == [
        *("base prompt=think", "base prompt=no_think", "sft prompt=think", "sft prompt=no_think"),
    ]
    assert all(line in done.stdout for line in ("base prompt=no_think", "sft prompt=think"))
    for evaluation in evaluations:
        assert json.loads((evaluation.path / "metrics.json").read_text())["overall"]["n"] == 80
