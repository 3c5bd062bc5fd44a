"""Published numbers beside ours: what is read, refused, compared and shown."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import pytest
from run_folders import draw_samples, reply, write_run

from medreason.actions import report
from medreason.config import Config
from medreason.report import published, published_file
from medreason.report.matrices import arms
from medreason.report.page import page
from medreason.report.published import Compared
from medreason.report.runs import load
from medreason.samples import Sample
from medreason.stats import Estimate

Compose = Callable[..., Config]
PUBLISHED = [f"experiments/{paper}/published.csv" for paper in ("med_r1", "rarl")]
ROW = {
    **{"method": "grpo", "model": "tiny", "prompt": "think", "train": "ct", "test": "mri"},
    **{"metric": "accuracy", "value": "60", "n": "1000", "tag": "code", "harness": "theirs"},
    "source": "a table",
}


def write(path: Path, *rows: dict[str, str]) -> str:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, published_file.COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_the_published_numbers_of_both_papers_are_read() -> None:
    rows = [row for path in PUBLISHED for row in published_file.read(path)]
    values = {(r.name, r.model, r.place, r.harness): r.value for r in rows}
    assert values["grpo prompt=think", "qwen2_vl_2b", "oct to oct", "Med-R1"] == 99.17
    assert values["grpo prompt=think", "qwen2_vl_2b", "mean of 8x8", "Med-R1"] == 69.91
    assert values["sft", "qwen2_vl_2b", "ct to ct", "Med-R1"] is None
    rated = "rarl, reasoning rated by people", "qwen2_vl_2b", "silvar_med to silvar_med", "RARL"
    assert values[rated] == 64.86
    differences = [r.value for r in rows if r.minus == "think" and r.train != "8x8"]
    assert len(differences) == 64 + 25
    assert statistics.fmean(filter(None, differences[:64])) == pytest.approx(2.57, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "mir"}, "line 2: no cell of this name: test 'mir'; did you mean 'mri'"),
        ({"train": "ct/diseases"}, "no cell of this name: train 'ct/diseases'; .*'ct/disease'"),
        ({"test": "mri+pet"}, "no cell of this name: test 'pet'"),
        ({"model": "qwen2_vl_3b"}, "no model of this name: .* did you mean 'qwen2"),
        ({"method": "ppo"}, "no method of this name: method 'ppo'; did you mean 'grpo'"),
        ({"prompt": "thinking"}, "no prompt of this name: .* did you mean 'think'"),
        ({"minus": "thinks"}, "no minus of this name: .* did you mean 'think'"),
        ({"value": "0.6991e3"}, "value '0.6991e3'; give percent from 0 to 100, or leave it empty"),
        ({"value": "-1"}, "value '-1'; give percent from 0 to 100"),
        ({"value": "nan"}, "value 'nan'; give percent"),
        ({"minus": "think", "value": "-101"}, "percent points of a difference from -100 to 100"),
        ({"n": "0"}, "n '0'; give a whole number above 0"),
        ({"step": "1.5"}, "step '1.5'; give a whole number above 0"),
        ({"tag": "seen"}, "no tag of this name: tag 'seen'; known: 3rd, abs, code"),
        ({"source": ""}, "no source; say where the number comes from"),
    ],
)
def test_a_bad_row_is_named_with_the_remedy(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    path = write(tmp_path / "published.csv", ROW | changes)
    with pytest.raises(ValueError, match=message):
        published_file.read(path)


def test_one_number_twice_of_one_harness_is_refused_and_of_two_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "published.csv", ROW, ROW | {"value": "61"})
    with pytest.raises(ValueError, match=r"line 3: the same number as line 2, .*'theirs'; keep"):
        published_file.read(path)
    path = write(tmp_path / "published.csv", ROW, ROW | {"value": "61", "harness": "another"})
    assert [row.value for row in published_file.read(path)] == [60, 61]


def test_a_file_that_is_not_there_is_named_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report.published='no.csv': no such file; .*method, mod"):
        published_file.read("no.csv")
    (tmp_path / "published.csv").write_text("method,value\nsft,3\n")
    with pytest.raises(ValueError, match=r"no column \['model', 'checkpoint'"):
        published_file.read(str(tmp_path / "published.csv"))


def test_a_sweep_does_not_start_with_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "published.csv", ROW | {"test": "mir"})
    words = ("-m", "seed=0,1", f"report.published={path}", f"outputs={tmp_path}/outputs")
    done = commands.medreason(*words)
    assert done.returncode == 1
    assert "line 2: no cell of this name: test 'mir'; did you mean 'mri'" in done.stderr
    assert not (tmp_path / "outputs").exists()


def sweep(composed: Compose, folder: Path, path: str) -> list[Compared]:
    """GRPO on CT with both prompts: think right on 9 of 12 questions of MRI, no_think on all."""
    samples = draw_samples(folder / "images")
    names = (f"report.published={path}", "method=grpo", "modality=ct", "sweep=demo")
    folders = []
    for prompt, right in (("think", 9), ("no_think", 12)):
        config = replace(composed(*names, f"prompt={prompt}"), choices={"prompt": prompt})
        answer = right_on(right)
        folders.append(write_run(config, samples, answer, key=f"{prompt:_<12}", chosen_step=40))
    runs = load(folders)
    return published.compare(runs, arms(runs))


def right_on(questions: int) -> Callable[[int, Sample], str]:
    wrong = {"A": "B", "B": "C", "C": "D", "D": "A"}
    return lambda i, s: reply(s.answer if i % 12 < questions else wrong[s.answer])


def compared(composed: Compose, folder: Path, *changes: dict[str, str]) -> Sequence[Compared]:
    return sweep(composed, folder, write(folder / "published.csv", *[ROW | c for c in changes]))


def test_a_difference_beyond_both_intervals_is_told_from_one_within(
    composed: Compose, tmp_path: Path
) -> None:
    near, far, unknown = compared(
        composed, tmp_path, {}, {"value": "5", "harness": "b"}, {"n": "", "harness": "c"}
    )
    assert near.ours
    assert (near.ours.mean, near.ours.n, near.difference) == (75, 12, 15)
    assert near.ours.low < 60 < near.ours.high
    assert near.low == pytest.approx(57, abs=1)
    assert (near.verdict, far.verdict) == ("within the intervals", "beyond both intervals")
    assert (unknown.difference, unknown.verdict) == (15, "n not published")


def test_ours_of_too_few_clusters_has_neither_interval_nor_verdict() -> None:
    row: Any = SimpleNamespace(value=5.0, minus="")
    ours = Estimate(75.0, 10.0, 99.0, 12, 2, 1.0)
    few = Compared(row, 1.0, 9.0, "grpo", ours)
    assert (few.few, few.beyond, few.verdict) == (True, None, "too few clusters of ours")
    assert published._with_interval(few, 75.0, 10.0, 99.0, few=few.few) == "75.0 [-]"
    enough = replace(few, ours=replace(ours, clusters=3))
    assert (enough.few, enough.verdict) == (False, "beyond both intervals")
    minus: Any = SimpleNamespace(value=5.0, minus="think")
    assert replace(enough, published=minus).few  # a difference takes more clusters than an accuracy


def test_a_published_difference_stands_beside_the_difference_of_ours(
    composed: Compose, tmp_path: Path
) -> None:
    [row] = compared(
        composed, tmp_path, {"prompt": "no_think", "minus": "think", "value": "16.94", "n": "3241"}
    )
    assert row.ours
    assert (row.ours.mean, row.arm) == (25, "grpo prompt=no_think")
    assert row.low == pytest.approx(16.94 - 1.79, abs=0.01)  # 1.96 sqrt((0.3 - 0.1694^2) / 3241)
    assert row.verdict == "within the intervals"


def test_a_number_without_one_of_ours_says_why(composed: Compose, tmp_path: Path) -> None:
    rows = compared(
        composed,
        tmp_path,
        {"method": "sft"},
        {"train": "mri"},
        {"train": "8x8", "test": "8x8"},
        {"step": "10"},
        {"step": "40"},
        {"model": "other:MedVLM-R1-2B"},
        {"metric": "reasoning rated by people"},
        {"test": "xray", "value": ""},
        {"minus": "zero_shot"},
    )
    assert [row.verdict for row in rows] == [
        "no sft prompt=think of tiny in this sweep",
        "not trained or not tested",
        "not trained or not tested in 62 of the 64 places",
        "weights of step 40 were tested",
        "within the intervals",
        "MedVLM-R1-2B: not run here",
        "reasoning rated by people: not measured here",
        "not published",
        "no zero_shot to subtract in this sweep",
    ]
    assert all(row.ours is None for row in rows if row.why)


def test_tests_of_a_data_set_count_as_that_set(composed: Compose, tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "images")
    joined = [replace(s, id=f"vqa_rad/{s.id}") for s in samples[:24]] + samples[24:]
    path = write(
        tmp_path / "published.csv",
        ROW | {"train": "silvar_med", "test": "vqa_rad"},
        ROW | {"train": "silvar_med", "test": "slake"},
    )
    config = composed("method=grpo", f"report.published={path}")
    config = replace(config, choices={"data": "silvar_med"})
    runs = load([write_run(config, joined, lambda i, s: reply(s.answer))])
    first, second = published.compare(runs, arms(runs))
    assert first.ours
    assert (first.ours.n, first.ours.mean) == (24, 100)
    assert second.why == "not trained or not tested"


@pytest.mark.parametrize("data", ["med_r1_modality", "prepared", "modality_of_ours"])
def test_a_modality_is_tested_on_its_own_split_files_wherever_they_were_read(
    composed: Compose, tmp_path: Path, data: str
) -> None:
    """A file of question types asks about the modality, too, with other questions."""
    files = ("modality/test/CT(Computed Tomography)", "question_type/test/Disease Diagnosis")
    samples = [
        replace(s, id=f"Splits/{files[i % 2]}_test.json:{i}")
        for i, s in enumerate(draw_samples(tmp_path / "images"))
        if s.cell == ("ct", "disease")
    ]
    places = [{"train": place, "test": place} for place in ("ct", "disease", "ct/disease")]
    path = write(tmp_path / "published.csv", *[ROW | place for place in places])
    typed = ("method=grpo", "modality=ct", "task=disease", f"report.published={path}")
    config = replace(composed(*typed), choices={"data": data})
    runs = load([write_run(config, samples, lambda i, s: reply(s.answer))])
    rows = published.compare(runs, arms(runs))
    assert [row.ours and row.ours.n for row in rows] == [6, 6, 12]


def test_a_released_model_stands_for_the_training_it_came_from(
    composed: Compose, tmp_path: Path
) -> None:
    path = write(tmp_path / "published.csv", ROW | {"checkpoint": "VQA_CT", "model": "qwen2_vl_2b"})
    names = ("method=released", "modality=ct", "model.name=VQA_CT")
    config = composed(*names, f"report.published={path}")
    runs = load([write_run(config, draw_samples(tmp_path / "images"), right_on(9))])
    [row] = published.compare(runs, arms(runs))
    assert row.ours
    assert row.ours.mean == 75


def test_report_shows_published_numbers_on_terminal_page_and_in_a_table(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "published.csv", ROW | {"train": "all", "value": "10"}, ROW)
    config = composed("method=grpo", f"report.published={path}", "sweep=demo")
    write_run(config, draw_samples(tmp_path / "images"), right_on(9))
    report.run(composed("action=report", "sweep=demo", "tracking=none"))
    printed = capsys.readouterr().out
    assert "all to mri  10.0 [8.3, 12.0]" in printed
    assert "beyond both intervals" in printed
    assert "the model tiny stands in for the papers', a rehearsal" in printed
    folder = tmp_path / "outputs" / "reports" / "demo"
    page = (folder / "index.html").read_text()
    assert '<h2 id="published-heading">Published</h2>' in page
    assert "1</b> published numbers without one of ours" in page
    with (folder / "tables" / "published.csv").open() as stream:
        first, second = csv.DictReader(stream)
    assert (first["ours"], first["verdict"]) == ("75", "beyond both intervals")
    assert (second["ours"], second["verdict"]) == ("", "not trained or not tested")


def test_a_published_table_is_shown_as_a_table_with_ours_in_it(
    composed: Compose, tmp_path: Path
) -> None:
    family = published_file.FAMILIES["5x5"]
    table = [{"train": a, "test": b, "value": "10"} for a in family for b in family]
    path = write(tmp_path / "published.csv", *[ROW | changes for changes in table[:13]])
    names = ("method=grpo", "task=anatomy", f"report.published={path}")
    runs = load([write_run(composed(*names), draw_samples(tmp_path / "images"), right_on(9))])
    rows = published.compare(runs, arms(runs))
    html = page(runs, sweep="demo", beside=rows)
    assert "<b>10.0</b><i>ours 75.0*</i>" in html
    assert html.count('title="not published"') == 25 - 13
    (tmp_path / "tables").mkdir()
    assert {path.name for path in published.write(rows, tmp_path / "tables")} == {
        *("published.csv", "published.parquet", "5x5-published-grpo-prompt=think-theirs.png"),
        "5x5-published-grpo-prompt=think-theirs-difference.png",
    }
