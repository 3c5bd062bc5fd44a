"""Answers and reasoning of arms trained on the same cells, over seeds and paired by question."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_folders import draw_samples, reply, write_run

from medreason.config import Config
from medreason.report import reasoning
from medreason.report.runs import load
from medreason.runs.run_folder import EvaluationFolder, evaluations_by_sweep
from medreason.samples import Sample

Compose = Callable[..., Config]
CT = ("modality=ct", "task=disease")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    drawn = draw_samples(tmp_path / "images")
    return [replace(sample, explanation="The mass is bright.") for sample in drawn]


def says(thought: str, *, right_in: str) -> Callable[[int, Sample], str]:
    """Right on the questions of one modality, with this reasoning on all."""
    return lambda _, s: reply(s.answer if s.modality == right_in else "Z", thought)


def folders(composed: Compose) -> list[EvaluationFolder]:
    return evaluations_by_sweep(composed().folder / "runs")["runs"]


def rows(path: Path) -> dict[tuple[str, ...], dict]:
    found = pq.read_table(path).to_pylist()
    names = [name for name in ("arm", "a", "b", "where", "score") if name in found[0]]
    return {tuple(row[name] for name in names): row for row in found}


def test_question_of_two_evaluations_of_one_model_counts_once(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    sft = composed("method=sft", *CT)
    for i, asked in enumerate((samples[:12], samples)):
        write_run(sft, asked, says("It is bright.", right_in="ct"), evaluation_key=f"evaluation{i}")
    reasoning.write(load(folders(composed)), tmp_path)
    levels = rows(tmp_path / "reasoning.parquet")
    assert (levels["sft", "in-domain", "accuracy"]["n"], len(levels)) == (12, 4)


def test_arms_stand_in_domain_and_out_of_domain_with_every_seed(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    write_run(composed("method=base"), samples, says("It is dark.", right_in=""), key="base")
    for seed, modality in enumerate(("ct", "mri")):
        sft = composed("method=sft", *CT, f"seed={seed}")
        rarl = composed("method=rarl", "prompt=think", *CT, f"seed={seed}")
        write_run(sft, samples, says("It is bright.", right_in=modality), key=f"sft{seed}")
        write_run(rarl, samples, says("The mass is bright.", right_in="ct"), key=f"rarl{seed}")
    written = reasoning.write(load(folders(composed)), tmp_path)
    assert [path.name for path in written if path.suffix == ".csv"] == [
        "reasoning.csv",
        "reasoning-differences.csv",
    ]
    levels = rows(tmp_path / "reasoning.parquet")
    assert len(levels) == 3 * 2 * 2
    sft_right = levels["sft", "in-domain", "accuracy"]
    assert (sft_right["n"], sft_right["mean"], sft_right["seeds"]) == (12, 50.0, "100.0 0.0")
    assert levels["rarl", "out of domain", "reasoning"]["mean"] == 100.0
    assert levels["rarl", "out of domain", "reasoning"]["n"] == 24  # CT's other task and MRI
    assert levels["sft", "out of domain", "reasoning"]["mean"] == pytest.approx(100 * 4 / 6)
    changes = rows(tmp_path / "reasoning-differences.parquet")
    gain = changes["rarl", "sft", "in-domain", "accuracy"]
    assert gain["mean"] == 50.0
    assert 0 < gain["low"] < 50 < gain["high"] < 100  # twelve equal changes are no certainty
    assert gain["seeds"] == "0.0 100.0"
    assert changes["rarl", "base", "in-domain", "accuracy"]["seeds"] == "100.0 100.0"
    assert "| rarl | sft  | in-domain     | accuracy" in (tmp_path / "reasoning.md").read_text()


def test_runs_without_explanations_or_on_different_cells_have_no_such_table(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    plain = [replace(sample, explanation=None) for sample in samples]
    write_run(composed("method=sft", *CT), plain, says("It is.", right_in="ct"), key="sft0")
    assert reasoning.write(load(folders(composed)), tmp_path) == []
    config = composed("method=sft", *CT, "seed=1")
    write_run(config, samples, says("It is.", right_in="ct"), key="sft1")
    assert reasoning.write(load(folders(composed)), tmp_path) == []
    elsewhere = composed("method=sft", "modality=mri", "task=disease")
    explained = [write_run(elsewhere, samples, says("It is.", right_in="ct"), key="sft2")]
    explained += [folder for folder in folders(composed) if folder.run.path.name.endswith("sft1")]
    assert reasoning.write(load(explained), tmp_path) == []


def test_start_models_alone_are_compared_on_all_questions(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    for key, prompt, cell in (("b0", "think", "ct"), ("b1", "think_after", "mri")):
        config = composed("method=base", f"prompt={prompt}")
        write_run(config, samples, says("It is.", right_in=cell), evaluation_key=key)
    reasoning.write(load(folders(composed)), tmp_path)
    (change, *_) = rows(tmp_path / "reasoning-differences.parquet").items()
    assert change[0][2:] == ("all questions", "accuracy")
    assert (change[1]["n"], abs(change[1]["mean"])) == (36, pytest.approx(100 / 3))


def test_intervals_of_too_few_clusters_are_left_out_and_one_seed_is_said(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    def written(count: int, key: str) -> str:
        asked = [s for s in samples if (s.modality, s.task) == ("ct", "disease")][:count]
        made = [
            write_run(composed("method=base"), asked, says("No.", right_in=""), evaluation_key=key),
            write_run(
                composed("method=sft", *CT),
                asked,
                says("It is.", right_in="ct"),
                evaluation_key=key,
            ),
        ]
        reasoning.write(load(made), tmp_path)
        return (tmp_path / "reasoning.md").read_text()

    few = written(2, "few")
    assert re.search(r"\| sft +\| in-domain \| accuracy +\| 2 +\| 2 +\| 100.0 \| - +\| - ", few)
    assert "| 100.0 | -   | -    | 100.0 | - | -" in few
    assert "-: no interval of fewer than 3 clusters" in few
    assert "training seed" not in few
    many = written(12, "many")
    assert "no interval" not in many
    (row,) = [line for line in many.splitlines() if re.match(r"\| sft +\| base +\| .*accur", line)]
    # p = erfc(12 / sqrt(13) / sqrt(2)), and twice that
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["<0.001", "0.002"]
    assert (
        "p_holm: by Holm over the 2 rows of this table (accuracy and reasoning, in-domain), where "
        "page and terminal adjust those of accuracy in one place by themselves"
    ) in many
    assert "SFT has one training seed: intervals and p are of the questions alone" in many


def test_a_single_arm_has_no_differences(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    write_run(composed("method=sft", *CT), samples, says("It is.", right_in="ct"), key="sft0")
    written = [path.name for path in reasoning.write(load(folders(composed)), tmp_path)]
    assert not any(line.isspace() for line in (tmp_path / "reasoning.md").read_text().splitlines())
    assert written == ["reasoning.md", "reasoning.csv", "reasoning.parquet"]
