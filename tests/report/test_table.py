from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.text import Text
from run_folders import draw_samples, reply, write_failed, write_run

from medreason.config import Config, Statistics
from medreason.data.audit import leaks_of_run
from medreason.metrics import Metric
from medreason.report import arms, loading, matrices, summary, table, tables
from medreason.report import page as page_module
from medreason.report.page import page
from medreason.report.runs import load
from medreason.report.tables import gather
from medreason.runs.files import read_json, write_json
from medreason.runs.run_folder import EvaluationFolder, RunFolder
from medreason.samples import Sample

Compose = Callable[..., Config]


def right(i: int, sample: Sample) -> str:
    return reply(sample.answer)


def half_right(i: int, sample: Sample) -> str:
    return reply(sample.answer if i % 2 else "ABCD"["ABCD".index(sample.answer) - 1])


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return draw_samples(tmp_path / "images")


def test_runs_come_as_base_sft_grpo_rarl(composed: Compose, samples: list[Sample]) -> None:
    folders = [
        write_run(composed(f"method={method}"), samples, right)
        for method in ("rarl", "sft", "base", "grpo")
    ]
    assert [row.label for row in table.rows(folders)] == ["base", "sft", "grpo", "rarl"]


def test_time_of_an_evaluation_is_its_own(composed: Compose, samples: list[Sample]) -> None:
    config = composed("method=base")
    seconds = {"one": 30.0, "two": 216.0}
    folders = [
        write_run(config, samples, right, evaluation_key=key, evaluate_seconds=246.0,
                  seconds_of=seconds)
        for key in ("one", "two")
    ]  # fmt: skip
    assert sorted(row.evaluate_seconds for row in table.rows(folders)) == [30.0, 216.0]
    html = page(load(folders), sweep="s")
    assert "<small>30 s</small>" in html
    assert "for 2" not in html
    (row,) = (row for row in table.rows(folders) if row.evaluate_seconds == 30.0)
    assert page_module._duration(row.evaluate_seconds / 100) == "< 1 s"  # it was evaluated
    assert page_module._duration(0.0) == "\u2013"


def test_single_run_is_shown_beside_the_start_model_of_its_sweep(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    started = replace(composed("method=base"), choices={"prompt": "think"})
    base = write_run(started, samples, half_right)
    sft = write_run(composed("method=sft"), samples, right)
    table.show_with_base(sft, [base], Statistics())
    printed = capsys.readouterr().out
    assert "no base run here" not in printed
    assert "+50.0 [" in printed
    typed = ["method=rarl", "data.seed=3", "prompt=rarl"]
    rarl = replace(composed("method=rarl", "prompt=rarl"), choices={"prompt": "rarl"}, typed=typed)
    other = write_run(rarl, samples, right)
    table.show_with_base(other, [base], Statistics())
    printed = " ".join(capsys.readouterr().out.split())
    assert "rarl: not compared with a start model, evaluated with another prompt" in printed
    where = f"outputs={rarl.folder}"
    assert f"`python -m medreason method=base data.seed=3 prompt=rarl {where}` adds it" in printed
    assert "no base run here" not in printed
    table.show_with_base(sft, [], Statistics())
    told = f"no base run here; `python -m medreason method=base {where}` adds it"
    assert told in capsys.readouterr().out


def test_accuracy_comes_with_interval_prior_and_control(
    composed: Compose, samples: list[Sample]
) -> None:
    asked = [replace(s, question=f"{s.question} ({s.task})") for s in samples]
    folder = write_run(composed("method=base"), asked, half_right)
    [row] = table.rows([folder])
    metrics = row.metrics
    assert (metrics["n"], metrics["clusters"], metrics["accuracy"]) == (36, 24, 0.5)
    assert (metrics["prior"], metrics["above_prior"]) == (0.25, 0.25)
    # The two questions about an image of CT are answered alike: 12 pairs and 12 alone.
    assert metrics["design_effect"] == pytest.approx(60 / 36, rel=0.1)
    assert 0.25 < metrics["ci_low"] < 0.31
    assert 0.69 < metrics["ci_high"] < 0.75
    [alone] = table.rows([folder], Statistics(clusters="question"))
    assert alone.metrics["clusters"] == 36
    assert alone.metrics["ci_low"] == pytest.approx(0.3447, abs=1e-4)
    assert alone.metrics["ci_high"] == pytest.approx(0.6553, abs=1e-4)
    assert metrics["blank_image"] == pytest.approx(0.25)
    assert metrics["parsed"] == 1.0
    assert row.difference is None


def test_patients_are_clusters_where_they_are_known(
    composed: Compose, samples: list[Sample]
) -> None:
    of_patients = [
        replace(s, question=f"({s.task})", patient=f"p{i % 8}" if i < 24 else None)
        for i, s in enumerate(samples)
    ]
    folder = write_run(composed("method=base"), of_patients, half_right)
    counts = {
        clusters: table.rows([folder], Statistics(clusters=clusters))[0].metrics["clusters"]
        for clusters in ("patient", "image", "question")
    }
    assert counts == {"patient": 8 + 12, "image": 24, "question": 36}


def test_table_averages_as_it_says(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    """12, 12 and 3 questions; the start model is right on the last cell alone."""
    asked = samples[:27]
    priors = {("ct", "disease"): 0.2, ("ct", "anatomy"): 0.2, ("mri", "disease"): 0.8}

    def right_on_mri(i: int, sample: Sample) -> str:
        return reply(sample.answer if sample.modality == "mri" else "?")

    folders = [
        write_run(composed("method=base"), asked, right_on_mri, priors=priors),
        write_run(composed("method=grpo"), asked, right, priors=priors),
    ]
    for average, accuracy, prior in (("questions", 3 / 27, 7.2 / 27), ("cells", 1 / 3, 0.4)):
        statistics = Statistics(average=average)
        base, grpo = table.rows(folders, statistics)
        assert base.metrics["accuracy"] == pytest.approx(accuracy)
        assert base.metrics["prior"] == pytest.approx(prior)
        assert base.metrics["above_prior"] == pytest.approx(accuracy - prior)
        assert grpo.difference
        assert grpo.difference.mean == pytest.approx(100 * (1 - accuracy))
        table.show(folders, statistics)
        shown = capsys.readouterr().out
        assert f"over {average}" in shown
        assert f"means over {average}; clusters: patients (images where no" in shown
        assert "27 in 15" in shown


def test_fewer_paired_questions_than_the_row_has_are_counted(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        write_run(composed("method=base"), samples[:24], half_right),
        write_run(composed("method=grpo"), samples, right),
    ]
    table.show(folders)
    line = next(ln for ln in capsys.readouterr().out.splitlines() if ln.startswith("grpo"))
    assert "36 in 24" in line
    assert "] of 24" in line


def test_rows_say_which_questions_their_options_only_baseline_counts(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        write_run(composed("method=base"), samples, half_right),
        write_run(composed("method=grpo"), samples, right),
    ]
    table.show(folders)
    assert "options only: learned" not in capsys.readouterr().out  # all the same
    one_cell = composed("method=sft", "modality=ct", "task=disease")
    table.show([*folders, write_run(one_cell, samples, right)])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"trained on; all: every test question, 36 in 24 clusters {table.OWN_BASELINES}" in shown


def test_columns_of_the_cells_trained_on_stand_apart_from_those_of_all(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        write_run(composed("method=base"), samples, half_right),
        write_run(composed("method=sft", "modality=ct", "task=disease"), samples, half_right),
    ]
    table.show(folders)
    above, *lines = capsys.readouterr().out.splitlines()
    rule = "(\u2500+) +"
    groups = rf"in-domain \u2500* *{rule * 2}all \u2500* *{rule * 3}\u2500+"
    assert re.fullmatch(groups, above.strip())
    (sft,) = (line for line in lines if line.startswith("sft "))
    number, interval = r"[+-]?\d+\.\d", r"\[[+-]?\d+\.\d, [+-]?\d+\.\d\]"
    row = rf"sft +12 in 12 +50\.0 {interval} +\+0\.0 {interval} +50\.0 +25\.0 +\+25\.0( +{number})+"
    assert re.fullmatch(row, sft.strip())
    html = page(load(folders), sweep="s")
    names = re.findall(r'<th scope="colgroup" colspan="(\d)">([^<]+)', html)
    assert names == [("3", "In-domain"), ("8", "All questions")]


def test_few_clusters_are_said_once(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    for count, words in ((2, "for an interval or a difference"), (4, "for a difference")):
        folders = [
            write_run(composed(f"method={method}"), samples[:count], right, key=f"{count:012}")
            for method in ("base", "sft")
        ]
        table.show(folders)
        shown = capsys.readouterr().out
        assert shown.count(f"{count} clusters: too few {words}; a difference takes 6") == 1
        assert f"{count} clusters: too few {words}" in page(load(folders), sweep="s")
    table.show([write_run(composed("method=base"), samples, right)])
    assert "too few" not in capsys.readouterr().out


@pytest.mark.parametrize(("count", "accuracy"), [(2, "-"), (4, r"\d.*")])
def test_too_few_clusters_have_neither_interval_nor_p(
    composed: Compose,
    samples: list[Sample],
    capsys: pytest.CaptureFixture[str],
    count: int,
    accuracy: str,
) -> None:
    folders = [
        write_run(composed("method=base"), samples[:count], half_right),
        write_run(composed("method=sft"), samples[:count], right),
    ]
    runs = load(folders)
    found = tables.gather(runs)
    table.show_rows(table.rows_of(runs))
    arms.show_differences(found.domains)
    shown = capsys.readouterr().out
    assert re.search(rf"sft +{count} in {count} +100\.0 \[{accuracy}\].*\+50\.0 \[-\]", shown)
    assert re.search(r"sft minus base +\+50\.0 \[-\] +- +- +", shown)
    assert shown.count("no interval and no p of fewer than 6 clusters") == 1
    reason = f"({count} clusters, too few for an interval, so no clear difference)"
    assert f"50.0 points more than the start model {reason}" in summary.lead(runs, found)
    html = page(runs, sweep="s", tables=found)
    assert "<b>+50.0</b> <small>[\u2013]</small>" in html
    assert "<td>\u2013</td><td>\u2013</td><td>" in html
    assert html.count("No interval and no p of fewer than 6 clusters.") == 1
    assert html.count("<small>[\u2013]</small>") == (4 if accuracy == "-" else 2)
    assert ('<line class="line' in html) == (accuracy != "-")


def test_cell_of_open_questions_explains_the_dash_of_the_options_only_baseline(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    note = "options only: no number where a cell has no test question with options"
    table.show([write_run(composed("method=base"), samples, right)])
    assert note not in capsys.readouterr().out
    priors = {sample.cell: 0.25 for sample in samples} | {samples[0].cell: None}
    table.show([write_run(composed("method=base"), samples, right, priors=priors, key="open")])
    assert note in capsys.readouterr().out


def test_difference_to_base_is_paired_and_in_percent_points(
    composed: Compose, samples: list[Sample]
) -> None:
    base = write_run(composed("method=base"), samples, half_right)
    tested = [sample for sample in reversed(samples) if sample.id != "ct-1-anatomy"]
    trained = write_run(composed("method=grpo"), tested, right)
    _, row = table.rows([trained, base])
    assert row.difference is not None
    assert row.difference.mean == pytest.approx(100 * 18 / 35)
    assert row.difference.low < row.difference.mean < row.difference.high


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (["model.max_pixels=784"], "its start model is not in this sweep"),
        (["prompt=no_think"], "evaluated with another prompt: think, no_think"),
        (
            ["evaluation.max_new_tokens=12"],
            "evaluated with another evaluation.max_new_tokens: 256, 12",
        ),
    ],
)
def test_base_that_was_asked_otherwise_gives_no_difference_but_the_reason(
    composed: Compose,
    samples: list[Sample],
    base: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = replace(composed("method=base", *base), choices=chosen(base))
    folders = [
        write_run(start, samples, half_right),
        write_run(replace(composed("method=grpo"), choices=chosen([])), samples, right),
    ]
    assert table.rows(folders)[1].difference is None
    table.show(folders)
    assert f"grpo: not compared with a start model, {words}" in " ".join(
        capsys.readouterr().out.split()
    )


def chosen(overrides: list[str]) -> dict[str, str]:
    options = dict(override.split("=") for override in overrides)
    return {"prompt": options.get("prompt", "think")}


def test_questions_of_another_data_seed_are_others_under_the_same_ids(
    composed: Compose, samples: list[Sample]
) -> None:
    others = [replace(sample, options=sample.options[::-1]) for sample in samples]
    folders = [
        write_run(composed("method=base", "data.seed=3"), others, half_right),
        write_run(composed("method=grpo"), samples, right),
    ]
    assert table.rows(folders)[1].difference is None


def test_same_questions_are_paired_whatever_their_ids(
    composed: Compose, samples: list[Sample]
) -> None:
    renamed = [replace(sample, id=f"other-{i}") for i, sample in enumerate(samples)]
    folders = [
        write_run(composed("method=base", "data.seed=3"), renamed, half_right),
        write_run(composed("method=grpo"), samples, right),
    ]
    difference = table.rows(folders)[1].difference
    assert difference
    assert difference.mean == pytest.approx(50)


def test_two_evaluations_of_one_training_are_two_rows_each_with_its_own_base(
    composed: Compose, samples: list[Sample]
) -> None:
    def asked(method: str, prompt: str) -> Config:
        return replace(composed(f"method={method}", f"prompt={prompt}"), choices={"prompt": prompt})

    evaluations = [
        write_run(asked("base", "think"), samples, half_right, evaluation_key="b0"),
        write_run(asked("base", "no_think"), samples, right, evaluation_key="b1"),
        write_run(asked("sft", "think"), samples, half_right, key="1" * 12),
        write_run(asked("sft", "no_think"), samples, right, key="2" * 12),
    ]
    rows = table.rows(evaluations)
    assert [row.label for row in rows] == [
        *("base prompt=think", "base prompt=no_think", "sft prompt=think", "sft prompt=no_think"),
    ]
    gains = {row.label: row.difference.mean for row in rows if row.difference}
    assert gains == {"sft prompt=no_think": 0.0, "sft prompt=think": 0.0}


def test_run_of_one_cell_is_compared_on_that_cell(composed: Compose, samples: list[Sample]) -> None:
    def right_on_ct_disease(i: int, sample: Sample) -> str:
        return reply(sample.answer) if sample.cell == ("ct", "disease") else "no idea"

    base = write_run(composed("method=base"), samples, half_right)
    cell = ("modality=ct", "task=disease")
    trained = write_run(composed("method=sft", *cell), samples, right_on_ct_disease)
    start, row = table.rows([base, trained])
    assert row.restricted
    assert row.in_domain
    assert (row.in_domain.n, row.in_domain.mean) == (12, 1.0)
    assert row.metrics["accuracy"] == pytest.approx(1 / 3)
    assert row.metrics["parsed"] == pytest.approx(1 / 3)
    assert row.difference is not None
    assert row.difference.mean < 0
    assert row.in_domain_difference is not None
    assert row.in_domain_difference.mean == pytest.approx(50)
    assert start.in_domain
    assert (start.in_domain.n, start.in_domain.mean) == (12, 0.5)


def test_cells_without_training_questions_are_not_in_domain(
    composed: Compose, samples: list[Sample]
) -> None:
    """All cells are chosen, but the data set has questions about CT alone to train on."""
    trained = write_run(composed("method=sft"), samples, right)
    facts = read_json(trained.data)
    facts["cells"]["mri"]["disease"]["train"] = 0
    write_json(trained.data, facts)
    (row,) = table.rows([trained])
    assert row.restricted
    assert row.in_domain
    assert row.in_domain.n == 24
    (run,) = load([trained])
    assert run.trained_on == {"ct/disease", "ct/anatomy"}
    assert "mri/disease" in run.chosen_cells


def test_failed_and_unfinished_runs_are_shown_with_their_error(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = write_failed(composed("method=rarl"), "OutOfMemoryError: 40 GiB\nTraceback ...")
    run = RunFolder(tmp_path / "outputs" / "runs" / "sft-tiny-all-all-0123456789ab")
    run.update(state="planned")
    bare = EvaluationFolder(run, "evaluation0")
    assert [(r.label, r.state, r.error) for r in table.rows([failed, bare])] == [
        ("sft", "not started", None),
        ("rarl", "failed", "OutOfMemoryError: 40 GiB"),
    ]
    trials = [replace(row, label=label) for row in table.rows([bare]) for label in ("a", "b")]
    assert table.unfinished(trials) == [f"a, b: {trials[0].state}"]
    table.show([failed, bare])
    printed = capsys.readouterr().out
    assert "rarl: failed, OutOfMemoryError: 40 GiB" in printed
    assert "sft: not started" in printed
    assert "Traceback" not in printed


def test_table_without_a_base_run_says_how_to_get_the_difference(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed("method=sft", "sweep=own")
    sft = write_run(config, samples, right)
    table.show([sft])
    told = (
        f"vs base: no base run here; `python -m medreason method=base outputs={config.folder} "
        "sweep=own` adds it, with the words for data, model, prompt and evaluation that these "
        "runs were given"
    )
    assert told in capsys.readouterr().out.splitlines()  # whole, to be copied
    assert f"{told}." in page(load([sft]), sweep="s")
    failed = write_failed(composed("method=base"), "no")
    table.show([sft, failed])
    assert "vs base: the base run has no results yet" in capsys.readouterr().out
    table.show([failed])
    assert "vs base:" not in capsys.readouterr().out


def test_start_model_of_a_search_is_added_by_a_command_that_does_not_search(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(composed("method=sft", "sweep=search"), typed=["experiment=smoke/search"])
    trial = replace(config, runs=replace(config.runs, test=False))
    table.show([write_run(trial, samples, right)])
    told = (
        "`python -m medreason method=base experiment=smoke/search hydra.mode=RUN "
        f"outputs={config.folder} sweep=search`"
    )
    assert told in capsys.readouterr().out


def test_start_model_of_a_typed_search_is_added_without_a_mode(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed("method=sft", "sweep=rates")
    typed = ["hydra/sweeper=search", "method=sft", "seed=1"]
    trial = replace(config, typed=typed, runs=replace(config.runs, test=False))
    table.show([write_run(trial, samples, right)])
    told = f"`python -m medreason method=base outputs={config.folder} sweep=rates` adds it"
    assert told in capsys.readouterr().out


def test_words_that_were_typed_for_a_run_are_those_of_its_start_model(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config-dir", "my", "data=pairs", "data.columns.image=Bild", "+data.more=[a,b]"]
    typed = [*words, "method=sft", "method.trl.max_steps=2", "evaluation.max_new_tokens=24"]
    config = composed("method=sft", "sweep=own")
    typed += ["prompt=mine", "sweep=own"]
    table.show([write_run(replace(config, typed=typed), samples, right)])
    told = (
        "vs base: no base run here; `python -m medreason --config-dir my method=base data=pairs "
        "data.columns.image=Bild '+data.more=[a,b]' evaluation.max_new_tokens=24 prompt=mine "
        f"outputs={config.folder} sweep=own` adds it"
    )
    assert told in capsys.readouterr().out.splitlines()


def test_told_commands_have_the_outputs_where_the_runs_lie_now(
    composed: Compose,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = composed("method=sft", "sweep=own", "outputs=outputs")
    for typed in (["method=sft", "model=tiny"], ["model=tiny", "outputs=/elsewhere"]):
        shutil.rmtree("outputs", ignore_errors=True)
        write_run(replace(config, typed=typed), samples, right)
        told = "`python -m medreason method=base model=tiny{} sweep=own` adds it"
        places = {"outputs": "", "moved": " outputs=moved", "a b": " 'outputs=a b'"}
        for outputs, word in places.items():
            if outputs != "outputs":
                shutil.copytree("outputs", outputs, dirs_exist_ok=True)
            table.show(loading.evaluations_of(Path(outputs, "runs"), "own"))
            assert told.format(word) in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"make some with `.* sweep=own outputs=none`"):
        loading.evaluations_of(Path("none/runs"), "own")


def test_long_note_goes_on_in_an_indented_line(capsys: pytest.CaptureFixture[str]) -> None:
    note = "a sentence that is longer than any line " * 6 + "ends"
    command = "`a command that is longer than any line " * 6 + "ends`"
    table.show_table(
        lambda compact: table.filled({"run": ["sft"]}, Text(f"{note}\nshort\n{command}"))
    )
    lines = capsys.readouterr().out.splitlines()
    (first,) = (i for i, line in enumerate(lines) if line.startswith("a sentence"))
    folded = lines[first : lines.index("short")]
    assert 1 < len(folded) < 5
    assert all(line[:2] == "  " and line[2] != " " for line in folded[1:])
    assert all(line == line.rstrip() and len(line) <= 100 for line in folded)
    assert " ".join(map(str.strip, folded)) == note
    assert lines[-1] == command


def test_columns_that_a_terminal_has_no_room_for_stand_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TTY_COMPATIBLE": "1", "NO_COLOR": "1", "COLUMNS": "30"}.items():
        monkeypatch.setenv(name, value)
    columns = {"run": ["base", "sft"], "accuracy": ["47.5 [40.8, 54.1]", "69.6 [63.5, 75.2]"]}
    columns |= {"n": ["240", "240"], "points": ["-", "+22.1 [+14.8, +29.0]"]}
    table.show_table(lambda compact: table.filled(columns, Text("a note")))
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = [line.split("  ") for line in map(str.rstrip, out.splitlines()) if line.strip()]
    words = [[word.strip() for word in line if word.strip()] for line in lines]
    assert ["sft", "69.6 [63.5, 75.2]", "240"] in words
    assert ["sft", "+22.1 [+14.8, +29.0]"] in words
    assert max(map(len, out.splitlines())) <= 30
    assert "…" not in out


def test_clear_difference_of_one_training_each_says_that_seeds_may_differ(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    sft_said = "SFT has one training seed: intervals and p are of the questions alone"

    def shown(*folders: EvaluationFolder, said: str = sft_said) -> list[bool]:
        """Whether the terminal, the page and its headline say it."""
        runs = load(folders)
        tables = gather(runs)
        arms.show_differences(tables.domains)
        printed = " ".join(capsys.readouterr().out.split())
        html = page(runs, sweep="s", tables=tables)
        return [
            said in printed,
            said in html.partition("Differences: paired")[2],
            said in html.partition("Differences: paired")[0],
        ]

    base = write_run(composed("method=base"), samples, half_right)
    no_think = composed("method=base", "prompt=no_think")
    other = write_run(no_think, samples, right, evaluation_key="no_think")
    sft = write_run(composed("method=sft"), samples, right)
    again = write_run(composed("method=sft", "seed=1"), samples, right, key="1" * 12)
    same = write_run(composed("method=grpo"), samples, half_right)
    assert shown(base, sft) == [True, True, True]
    assert shown(base, sft, again) == [False, False, False]
    worse = write_run(composed("method=grpo"), samples, lambda i, s: reply("?"), key="2" * 12)
    assert shown(base, sft, again, worse) == [False, False, False]
    said = "GRPO has one training seed: intervals and p are of the questions alone"
    assert shown(base, sft, again, worse, said=said) == [True, True, True]
    assert shown(base, same) == [False, False, False]  # not clear
    assert shown(base, other) == [False, False, False]  # of start models, which no seed trains


def test_note_of_p_says_over_which_differences_it_is_adjusted() -> None:
    def note(several: bool, tests: int) -> str:
        return arms.Differences([], [], "", "", several, tests).note

    assert note(False, 6) == "*: p by Holm, over the 6 differences, is below 0.05"
    where = "in one place (in-domain or out of domain)"
    assert note(True, 6) == f"*: p by Holm, over the 6 differences {where}, is below 0.05"


def test_a_run_that_saw_its_test_images_says_so(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    column = "17 test questions about 9 images of train; correct the column 'fold'"
    patients = "3 patients in both train and test; data.split=by_patient has no such leak"
    folders = [write_run(composed(f"method={m}"), samples, right) for m in ("sft", "grpo", "rarl")]
    for folder, leaks in zip(folders, ([column], [column, patients], []), strict=True):
        facts = read_json(folder.data) | {"test_rows_on_trained_images": 17, "leaks": leaks}
        write_json(folder.data, facts)
    table.show(folders)
    printed = " ".join(capsys.readouterr().out.split())
    said = [f"sft, grpo: {column}", f"grpo: {patients}"]
    assert all(line in printed for line in said)
    assert "by_image" not in printed
    runs = load(folders)
    html = page(runs, sweep="s")
    assert all(f"{line.replace(chr(39), '&#39;')}." in html for line in said)
    [arm] = [arm for arm in matrices.arms(runs) if arm.name == "grpo"]
    assert arms.leak_note(arm, table.rows_of(runs)) == [
        f"grpo: 1 of 1 model has images or patients on two sides of the split, as {column}"
    ]


def test_a_run_of_an_earlier_version_says_that_it_saw_its_test_images() -> None:
    assert leaks_of_run({"test_rows_on_trained_images": 17}) == [
        "17 test questions about images of train"
    ]
    assert leaks_of_run({"test_rows_on_trained_images": 0}) == []


@pytest.mark.parametrize(
    ("inside", "prior", "words"),
    [
        (0.25, 0.25, "25.0 % of the questions, in-domain and overall"),
        (0.5, 0.25, "50.0 % of the in-domain questions and 25.0 % of all"),
        (None, 0.25, "25.0 % of the questions"),
        (
            0.25,
            0.249,
            "25.0 % of the questions, in-domain and overall; the options-only baseline is lower, "
            "so guessing is the number to beat",
        ),
    ],
)
def test_guessing_is_told_in_plain_words(inside: float | None, prior: float, words: str) -> None:
    row = table.Row(
        *("a", "sft", "sft", "done"),
        metrics={Metric.GUESSING: 0.25, Metric.PRIOR: prior},
        in_domain_guessing=inside,
        restricted=inside is not None,
    )
    assert table.guessing_note([row]) == [f"guessing between the options is right on {words}"]


def test_counts_have_commas_on_the_terminal_and_on_the_page() -> None:
    assert table.size(1920, 192) == "1,920 in 192"
    template = page_module._environment().from_string("{{ 1920 | count }} {{ 36 | count }}")
    assert template.render() == "1,920 36"
    folder = Path(table.__file__).parent
    bare = r"\{\{ (?:\w+\.)?(?:n|clusters|paired) \}\}|\$\{(?:cell\.)?(?:n|clusters|total)\}"
    for name in ("tables.html", "published.html", "search.html", "page.js"):
        assert re.findall(bare, (folder / name).read_text()) == []


def test_labels_say_no_more_than_is_needed(composed: Compose, samples: list[Sample]) -> None:
    def chosen(prompt: str) -> Config:
        config = composed("method=rarl", f"prompt={prompt}")
        return replace(config, choices={"prompt": prompt})

    folders = [
        write_run(composed("method=base"), samples, right),
        write_run(composed("method=sft", "modality=ct", "task=disease"), samples, right),
        write_run(composed("method=sft", "modality=mri"), samples, right),
        write_run(composed("method=grpo", "seed=0"), samples, right, key="aaaaaaaaaaaa"),
        write_run(composed("method=grpo", "seed=1"), samples, right, key="bbbbbbbbbbbb"),
        write_run(chosen("think"), samples, right, key="cccccccccccc"),
        write_run(chosen("no_think"), samples, right, key="dddddddddddd"),
    ]
    labels = {row.label for row in table.rows(folders)}
    assert labels == {
        "base",
        "sft CT/Disease",
        "sft MRI/all",
        "grpo seed 0",
        "grpo seed 1",
        "rarl prompt=think",
        "rarl prompt=no_think",
    }


def test_runs_that_differ_in_one_value_are_told_apart_by_it(
    composed: Compose, samples: list[Sample]
) -> None:
    rates = ("1e-5", "0.001")
    folders = [
        write_run(
            composed("method=sft", f"method.trl.learning_rate={rate}"), samples, right, key=key
        )
        for rate, key in zip(rates, ("aaaaaaaaaaaa", "bbbbbbbbbbbb"), strict=True)
    ]
    labels = {row.label for row in table.rows(folders)}
    assert labels == {f"sft learning_rate={rate}" for rate in rates}


@pytest.mark.parametrize("cell", [(), ("modality=ct", "task=disease")])
def test_table_fits_100_columns_without_wrapped_cells(
    composed: Compose,
    samples: list[Sample],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cell: tuple[str, ...],
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    folders = [
        write_run(composed("method=base"), samples, half_right),
        *(
            write_run(
                composed(f"method={m}", "prompt=think", *cell),
                samples,
                right,
                train_seconds=5025.0,
            )
            for m in ("sft", "grpo", "rarl")
        ),
    ]
    table.show(folders)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    grpo = next(line for line in lines if line.startswith("grpo"))
    assert "100.0" in grpo
    assert "+50.0 [+" in grpo
    assert not any("…" in line for line in lines)
    assert sum(line.startswith(("base", "sft", "grpo", "rarl")) for line in lines) == 4


def test_cut_off_predictions_are_named(composed: Compose, samples: list[Sample]) -> None:
    folder = write_run(composed("method=base"), samples, right)
    path = folder.path / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"predictions\.parquet: not a predictions"):
        table.rows([folder])


def test_csv_has_a_row_for_each_run_and_cell(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    folders = [
        write_run(composed("method=base"), samples, half_right),
        write_failed(composed("method=sft"), "ValueError: no"),
    ]
    table.write_csv(load(folders), tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as stream:
        found = list(csv.DictReader(stream))
    assert [(r["run"], r["modality"], r["task"], r["n"]) for r in found] == [
        ("base", "all", "all", "36"),
        ("base", "ct", "anatomy", "12"),
        ("base", "ct", "disease", "12"),
        ("base", "mri", "disease", "12"),
        ("sft", "all", "all", ""),
    ]
    assert float(found[1]["accuracy"]) == 0.5
    assert [r["average"] for r in found] == [*["over questions"] * 4, ""]
    # Nothing to compare with: what a paired test of 12 questions shows at the discordance assumed.
    assert float(found[1]["smallest_difference"]) == pytest.approx(0.57, abs=0.01)
    assert found[1]["difference"] == ""


def test_replies_that_are_cut_off_are_named_with_share_and_key(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    always = write_run(composed("method=base"), samples, lambda *_: "<think>The image\u2026")
    often = write_run(
        composed("method=sft", "evaluation.max_new_tokens=12"),
        samples,
        lambda i, sample: "<think>\u2026" if i % 4 else reply(sample.answer),
    )
    seldom = write_run(
        composed("method=grpo"), samples, lambda i, _: "<think>\u2026" if i % 4 == 0 else reply("A")
    )
    table.show([always, often, seldom])
    shown = capsys.readouterr().out
    assert (
        "base: 100.0 % of its replies were cut off at evaluation.max_new_tokens=256; set" in shown
    )
    assert "sft: 75.0 % of its replies were cut off at evaluation.max_new_tokens=12; set" in shown
    assert "grpo: 25" not in shown


def test_name_of_a_group_of_columns_stands_once_with_a_line_over_all() -> None:
    columns = {"n in\nclusters": ["9 in 2"], "vs base": ["+1.0 [-2.0, +4.0]"]}
    headings = list(table.under("all", columns | {"%": ["50.0"]}))
    above = "all " + "\u2500" * 4
    assert headings[0] == f"{above}\nn in\nclusters"
    assert headings[1] == "\u2500" * 17 + "\n\nvs base"
    assert headings[2] == "\u2500" * 4 + "\n\n%"


def test_baselines_of_single_cells_are_one_note(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        write_run(composed("method=sft", f"modality={modality}"), samples, right)
        for modality in ("ct", "mri")
    ]
    table.show(runs)
    shown = " ".join(capsys.readouterr().out.split())
    assert f" {table.OWN_BASELINES} means over questions" in shown


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.5, "0.500"), (0.0161, "0.016"), (1.0, "1.000"), (0.0012, "0.001"), (0.0025, "0.003")],
)
def test_p_values_have_the_digits_of_a_table(p: float, text: str) -> None:
    assert arms.p_text(p) == text
    assert arms.p_text(0.0497) == "0.0497"  # on its side of the level
    assert arms.p_text(0.00056) == "<0.001"


def test_base_of_another_sweep_is_said_with_the_report_of_both(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_run(composed("method=base", "sweep=first"), samples, half_right)
    sft = write_run(composed("method=sft", "sweep=second"), samples, right)
    table.show([sft])
    told = (
        "vs base: no base run here; sweep=first has it: `python -m medreason action=report "
        f"sweep=second,first outputs={sft.run.path.parent.parent}`"
    )
    assert told in capsys.readouterr().out
    other = composed("method=base", "sweep=third", "model.max_pixels=784")
    shutil.rmtree(base.run.path)
    write_run(other, samples, half_right)  # another start model
    table.show([sft])
    assert "`python -m medreason method=base" in capsys.readouterr().out


def test_validation_has_its_interval_where_the_width_allows(
    composed: Compose,
    samples: list[Sample],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged = {"step": 2, "validation/accuracy": 0.596, "validation/ci_low": 0.432}
    logged |= {"validation/ci_high": 0.742, "validation/clusters": 20}
    run = write_run(composed("method=sft"), samples, right, logs=[logged], chosen_step=2)
    monkeypatch.setenv("COLUMNS", "200")
    table.show([run])
    assert " 59.6 [43.2, 74.2] at 2 " in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    table.show([run])
    printed = capsys.readouterr().out
    assert " 59.6 at 2 " in printed
    assert "[43.2" not in printed
