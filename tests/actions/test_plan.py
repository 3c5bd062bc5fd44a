"""What a paired test can show, said before any GPU hour is spent."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from medreason import stats
from medreason.actions import plan
from medreason.config import Config

Compose = Callable[..., Config]
SMALL = ("action=plan", "method=base", "data.train_images=8", "data.test_images=12")


def power_rows(text: str) -> dict[str, list[str]]:
    """n, clusters, what can be shown and n for the wanted difference, by the first column."""
    rows = re.findall(r"^(all|\S+/\S+(?: and \d+ more)?) +(\S+) +(\d+) +(\S+) +(\S+)$", text, re.M)
    return {name: values for name, *values in rows}


def test_plan_says_what_a_paired_test_can_show_in_each_cell(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ("evaluation.modalities=[ct,mri]", "evaluation.tasks=[disease,grading]")
    plan.run(composed(*SMALL, *cells))
    shown = capsys.readouterr().out
    rows = power_rows(shown)
    assert list(rows) == ["ct/disease and 3 more", "all"]
    n, clusters, smallest, needed = rows["ct/disease and 3 more"]
    assert (n, clusters) == ("12", "6")  # two images of each drawn patient
    able = stats.power(12, 6, discordance=0.3, wanted=5, design_effect=1.2)
    assert able.smallest_difference
    assert smallest == f"{able.smallest_difference:.1f}"
    assert needed == f"{able.questions_needed:,}"
    assert rows["all"][:2] == ["48", "12"]
    assert "n for 5 points" in shown
    assert "0.3 of the questions unlike (statistics.discordance)" in " ".join(shown.split())


def test_plan_takes_what_is_assumed_from_the_configuration(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = ("evaluation.modalities=[ct]", "evaluation.tasks=[disease]")
    settings = (
        "statistics.discordance=0.1",
        "statistics.correlation=0",
        "statistics.difference=10",
    )
    plan.run(composed(*SMALL, *cell, *settings))
    shown = capsys.readouterr().out
    assert "n for 10 points" in shown
    needed = stats.power(12, 6, discordance=0.1, wanted=10).questions_needed
    assert power_rows(shown)["ct/disease and 1 more"][3] == f"{needed:,}"


def test_plan_says_where_clusters_are_too_few_to_show_anything(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.run(composed(*SMALL[:-1], "data.test_images=2"))
    assert power_rows(capsys.readouterr().out)["ct/anatomy and 39 more"][2] == "nothing"


def test_same_test_questions_are_counted_once(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [composed(*SMALL, f"method={method}") for method in ("base", "sft")]
    plan.run_all(configs, ["base", "sft"])
    assert capsys.readouterr().out.count("can show: percent points") == 1


def test_plan_counts_every_question_of_the_controls(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 questions of four options: as they are, on a blank image, and turned three times."""
    one_cell = ("evaluation.modalities=[ct]", "evaluation.tasks=[disease]")
    controls = "evaluation.controls=[blank_image,permuted_options]"
    plan.run(composed(*SMALL, *one_cell, controls))
    assert "0 updates, 60 generations" in capsys.readouterr().out
