from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_folders import draw_samples, reply, write_failed, write_run

from medreason.config import Config, Statistics
from medreason.report import arms, summary
from medreason.report.page import page
from medreason.report.runs import Run, load
from medreason.report.table import percent, rows_of, show_rows
from medreason.report.tables import gather
from medreason.runs.openings import Opening
from medreason.runs.run_folder import EvaluationFolder, RunFolder
from medreason.samples import Sample

Compose = Callable[..., Config]

LOGS = [{"step": i, "loss": 1.0 / i, "reward": 0.1 * i} for i in range(1, 4)]


def right(i: int, sample: Sample) -> str:
    return reply(sample.answer)


def half_right(i: int, sample: Sample) -> str:
    return reply(sample.answer if i % 2 else "ABCD"["ABCD".index(sample.answer) - 1])


def embedded(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def lead(runs: list[Run]) -> str:
    return summary.lead(runs, gather(runs))


def answer(item: dict[str, Any], run: int) -> dict[str, Any] | None:
    """What a run said to a question: pages hold each different reply once."""
    place = item["answers"][run]
    return None if place is None else item["replies"][place]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return draw_samples(tmp_path / "images")


def test_first_sentence_says_what_training_bought(composed: Compose, samples: list[Sample]) -> None:
    base = write_run(composed("method=base"), samples, half_right)
    grpo = write_run(composed("method=grpo"), samples, right)
    assert re.fullmatch(
        r"GRPO answers 100\.0 % of 36 questions right, 50\.0 points more than the start model "
        r"\(95 % interval 2\d\.\d to 7\d\.\d\); on the same questions the options-only baseline "
        r"gives 25\.0 %, a blank image 25\.0 %\.",
        lead(load([base, grpo])),
    )


def test_first_sentence_names_the_start_model_where_there_are_two(
    composed: Compose, samples: list[Sample]
) -> None:
    words = [("method=base", "prompt=think"), ("method=base", "prompt=no_think")]
    folders = [
        write_run(composed(*each), samples, half_right, evaluation_key=f"e{i}")
        for i, each in enumerate(words)
    ]
    folders.append(write_run(composed("method=grpo", "prompt=no_think"), samples, right))
    assert "50.0 points more than the start model (prompt=no_think) (95 %" in lead(load(folders))
    folders.append(write_run(composed("method=sft", "prompt=think"), samples, right))
    text = lead(load(folders))
    assert "50.0 points more than the start model (prompt=think) (95 %" in text
    assert "50.0 more than the start model (prompt=no_think) (" in text


def test_first_sentence_counts_the_cells_trained_on(
    composed: Compose, samples: list[Sample]
) -> None:
    sft = write_run(composed("method=sft", "modality=ct"), samples, half_right)
    assert lead(load([sft])).startswith(
        "SFT is not clearly above the options-only baseline or its own answers to a blank image. "
        "SFT answers 50.0 % of 24 in-domain questions right (95 % interval"
    )


def test_difference_that_may_be_chance_is_called_unclear(
    composed: Compose, samples: list[Sample]
) -> None:
    base = write_run(composed("method=base"), samples, half_right)
    worse = write_run(
        composed("method=grpo"), samples, lambda i, s: "?" if i == 1 else half_right(i, s)
    )
    assert "2.8 points less than the start model" in lead(load([base, worse]))
    assert "so no clear difference)" in lead(load([base, worse]))


def test_difference_that_is_not_clear_among_several_is_called_so() -> None:
    def ends(**values: object) -> str:
        return summary._among_others(SimpleNamespace(**values))  # pyright: ignore[reportArgumentType]

    assert ends(clear=False, clusters=10, p_holm=0.1237) == (
        "; p by Holm 0.124, so no clear difference"
    )
    assert ends(clear=True, clusters=10, p_holm=0.01) == ""
    assert ends(clear=False, clusters=3, p_holm=0.5) == ""


def test_first_sentence_speaks_of_methods_where_they_have_several_models(
    composed: Compose, samples: list[Sample]
) -> None:
    """The best of many models on a few questions each is best by luck."""
    folders = [write_run(composed("method=base"), samples, half_right)]
    for modality, answers in (("ct", right), ("mri", half_right)):
        config = composed("method=sft", f"modality={modality}", "task=disease")
        folders.append(write_run(config, samples, answers, key=modality * 6))
    text = lead(load(folders))
    assert text.startswith(
        "SFT answers 75.0 % of the in-domain questions right, 25.0 points more "
        "than the start model (95 % interval 4"
    )
    assert "the options-only baseline gives 25.0" in text


def test_first_sentence_names_every_method_or_their_range(
    composed: Compose, samples: list[Sample]
) -> None:
    """The best of several methods on the questions it was chosen by is best by luck."""
    folders = [write_run(composed("method=base"), samples, half_right)]
    for method, answers in (("sft", right), ("grpo", half_right)):
        folders.append(write_run(composed(f"method={method}"), samples, answers))
    text = lead(load(folders))
    assert text.startswith(
        "SFT answers 100.0 % of the test questions right, 50.0 points more than the start model ("
    )
    assert ", GRPO 50.0 %, 0.0 more (" in text
    for rate in range(3):
        config = composed("method=sft", f"method.trl.learning_rate={rate + 1}e-7")
        folders.append(write_run(config, samples, right, key=str(rate) * 12))
    text = lead(load(folders))
    assert (
        "The 5 trained arms answer 50.0 to 100.0\u00a0% of the test questions right; on the same "
        "questions the options-"
    ) in text


@pytest.mark.parametrize(
    ("average", "start", "trained"), [("questions", 12 / 27, 24 / 27), ("cells", 1 / 3, 2 / 3)]
)
def test_all_numbers_of_a_report_are_averaged_in_one_way(
    composed: Compose, samples: list[Sample], average: str, start: float, trained: float
) -> None:
    """12, 12 and 3 questions: the start model is right on the first cell, SFT on both of CT."""

    def right_on(*cells: tuple[str, str]) -> Callable[[int, Sample], str]:
        return lambda i, s: reply(s.answer if s.cell in cells else "?")

    first, second = ("ct", "disease"), ("ct", "anatomy")
    asked = samples[:27]
    folders = [
        write_run(composed("method=base"), asked, right_on(first)),
        write_run(composed("method=sft"), asked, right_on(first, second)),
    ]
    runs = load(folders, Statistics(average=average))
    tables = gather(runs)
    rows = rows_of(runs)
    gain = 100 * (trained - start)
    assert [row.metrics["accuracy"] for row in rows] == pytest.approx([start, trained])
    totals = [tables.domains.total(name, "in-domain") for name in ("base", "sft")]
    assert [total.accuracy for total in totals if total] == pytest.approx([start, trained])
    assert rows[1].difference
    assert rows[1].difference.mean == pytest.approx(gain)
    change = tables.domains.change("sft", "base", "in-domain")
    assert change
    assert (change.difference, change.p) == pytest.approx((gain, rows[1].difference.p))
    assert (change.low, change.high) == (rows[1].difference.low, rows[1].difference.high)
    assert f"{100 * trained:.1f} % of 27 questions" in lead(runs)
    data = embedded(page(runs, sweep="s", tables=tables))
    assert data["average"] == average
    assert data["runs"][1]["means"]["all/all"][0] == pytest.approx(gain)
    [power] = {tuple(c["power"]) for c in data["runs"][0]["cells"].values() if c["n"] == 12}
    assert power == (53.5, 940)  # of 12 questions, 0.3 of them unlike, by Connor's formula


def many(composed: Compose, samples: list[Sample]) -> list[Run]:
    """A start model and 13 SFT models that differ in seed, one of them failed."""
    folders = [write_run(composed("method=base"), samples, half_right)]
    for seed in range(12):
        config = composed("method=sft", f"seed={seed}")
        folders.append(
            write_run(config, samples, right, logs=LOGS, key=f"{seed:012d}", train_seconds=9.0)
        )
    folders.append(write_failed(composed("method=sft", "seed=12"), "ValueError: no"))
    return load(folders)


def test_many_runs_are_folded_behind_their_method_without_a_script(
    composed: Compose, samples: list[Sample]
) -> None:
    html = page(many(composed, samples), sweep="seeds")
    shown, *folded = html.split('<details class="fold">')
    assert (
        "<h1>All trained models are clearly above the options-only baseline and their own answers "
        "to a blank image.</h1>"
    ) in shown
    assert "SFT answers 100.0\u00a0% of the test questions right" in shown
    assert '<th scope="row">sft minus base</th>' in shown
    assert "seed 3" not in shown
    assert "ValueError: no" in shown  # what went wrong is not folded away
    assert len(folded) == 2
    assert "<summary><b>sft</b>, 12 runs one by one</summary>" in folded[1]
    assert "seed 3" in folded[1]
    assert embedded(html)["grouped"] is True


def test_conclusion_lists_all_baselines(composed: Compose, samples: list[Sample]) -> None:
    asked = yes_or_no_first(samples)
    made = [write_run(composed(f"method={m}"), asked, right) for m in ("sft", "grpo")]
    runs = load(made)
    assert summary.conclusion(runs, gather(runs)) == (
        "All trained models are clearly above the options-only baseline, guessing between the "
        "options and their own answers to a blank image."
    )


def yes_or_no_first(samples: list[Sample]) -> list[Sample]:
    """Two thirds of the questions are of yes or no: guessing gives 41.7 %."""
    return [
        replace(s, options=("Yes", "No"), answer="AB"[i % 2]) if i < 24 else s
        for i, s in enumerate(samples)
    ]


def test_headline_takes_guessing_for_the_baseline_where_that_is_higher(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = yes_or_no_first(samples)
    made = [write_run(composed(f"method={m}"), asked, half_right) for m in ("sft", "grpo")]
    better = write_run(composed("method=rarl"), asked, right)
    runs = load([*made, better])
    assert [run.overall["prior"] for run in runs] == [0.25] * 3  # below the lower ends
    assert all(0.25 < run.overall["ci_low"] < 5 / 12 for run in runs[:2])
    conclusion = "clearly above guessing between the options or {} own answers to a blank image."
    baselines = (
        "the options-only baseline gives 25.0\u00a0%, guessing between the options 41.7\u00a0%, "
        "a blank image 41.7\u00a0%."
    )
    text = lead(runs)
    assert text.startswith(f"SFT and GRPO are not {conclusion.format('their')}")
    assert text.endswith(baselines)
    alone = lead(load(made[:1]))
    assert alone.startswith(f"SFT is not {conclusion.format('its')}")
    assert alone.endswith(baselines.replace("\u00a0", " "))
    show_rows(rows_of(runs))
    note = (
        "uessing between the options is right on 41.7 % of the questions; the options-only "
        "baseline is lower, so guessing is the number to beat"
    )
    assert f"g{note}" in " ".join(capsys.readouterr().out.split())
    html = page(runs, sweep="s")
    assert f"<h1>SFT and GRPO are not {conclusion.format('their')}</h1>" in html
    assert '<p class="lead">SFT answers 50.0\u00a0% of the test questions right' in html
    assert f"G{note}." in html
    assert embedded(html)["metrics"]["guessing"]["beside"]  # in the tooltip of a cell
    assert embedded(html)["runs"][0]["cells"]["ct/disease"]["guessing"] == 0.5


def test_guessing_of_an_evaluation_before_it_was_computed_is_of_its_predictions(
    composed: Compose, samples: list[Sample]
) -> None:
    evaluation = write_run(composed("method=sft"), yes_or_no_first(samples), right)
    path = evaluation.path / "metrics.json"
    old = json.loads(path.read_text())
    for metrics in (old["overall"], old["over_cells"], *old["cells"].values()):
        del metrics["guessing"]
    path.write_text(json.dumps(old))
    for average in ("questions", "cells"):
        (run,) = load([evaluation], Statistics(average=average))
        assert run.overall["guessing"] == pytest.approx(5 / 12)
    assert run.cells["mri/disease"]["guessing"] == 0.25


def test_start_models_alone_have_a_row_each_however_many(
    composed: Compose, samples: list[Sample]
) -> None:
    config = composed("method=base")
    runs = load(
        [write_run(config, samples, right, key=f"{i:012d}") for i in range(arms.MOST_RUNS + 1)]
    )
    assert not arms.grouped(runs, gather(runs))


def test_curves_of_many_runs_are_one_line_a_method_with_a_band(
    composed: Compose, samples: list[Sample]
) -> None:
    html = page(many(composed, samples), sweep="seeds")
    assert html.count("sft, mean of 12</li>") == 2  # loss and reward
    assert html.count('class="band') == 2
    assert html.count("<polyline") == 2


def test_headline_says_where_nothing_is_above_the_baselines(
    composed: Compose, samples: list[Sample]
) -> None:
    def quarter_right(i: int, sample: Sample) -> str:
        return right(i, sample) if i % 4 == 0 else half_right(0, sample)

    words = "clearly above the options-only baseline or its own answers to a blank image. "
    runs = [
        write_run(composed(f"method={method}"), samples, quarter_right)
        for method in ("base", "sft", "grpo")
    ]
    assert lead(load(runs[:2])).startswith(f"SFT is not {words}SFT answers ")
    assert lead(load(runs)).startswith(f"No trained model is {words}SFT answers ")
    better = write_run(composed("method=rarl"), samples, right)
    assert "clearly above" not in lead(load([runs[0], better]))
    assert lead(load([*runs, better])).startswith(
        f"SFT and GRPO are not {words.replace('its', 'their')}SFT answers "
    )
    assert lead(load([runs[1], better])).startswith(f"SFT is not {words}SFT answers ")


def prompts(composed: Compose, samples: list[Sample]) -> list[Run]:
    """Start model and one SFT model, each evaluated with two prompts."""
    evaluations = []
    for method, key in (("base", "0" * 12), ("sft", "1" * 12)):
        for prompt, answers in (("think", half_right), ("no_think", right)):
            config = composed(f"method={method}", f"prompt={prompt}")
            config = replace(config, choices={"prompt": prompt})
            if method == "sft":  # trained once
                config.prompt.train, config.prompt.style = ["{question}"], "think"
            made = write_run(config, samples, answers, key=key, evaluation_key=prompt, logs=LOGS)
            evaluations.append(made)
    return load(evaluations)


def test_arms_are_compared_on_page_and_terminal_or_say_why_not(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = prompts(composed, samples)
    tables = gather(runs)
    arms.show_differences(tables.domains)
    printed = capsys.readouterr().out
    points = r"\+50\.0\* \[\+2\d\.\d, \+7\d\.\d\]"
    line = rf"base: prompt=no_think minus think +{points} +0\.0\d+ +0\.0\d+ +36 in 24"
    assert re.search(line, printed)
    assert re.search(
        r"prompt=think: sft minus base +\+0\.0 \[-\d+\.\d, \+\d+\.\d\] +1\.000 +1\.000 +36 in 24",
        printed,
    )
    assert (
        len(
            re.findall(
                r"^sft prompt=(?:no_)?think minus base prompt=(?:no_)?think( +-){4}$",
                *(printed, re.M),
            )
        )
        == 2
    )
    assert "-: trained differently and evaluated with another prompt" in printed
    html = page(runs, sweep="s", tables=tables)
    assert '<th scope="row" class="long">base: prompt=no_think minus think</th>' in html
    assert html.count("trained differently and evaluated with another prompt: ") == 2
    assert "*: p by Holm, over the 4 differences, is below 0.05." in html


def test_curves_are_once_a_training_however_often_it_was_evaluated(
    composed: Compose, samples: list[Sample]
) -> None:
    html = page(prompts(composed, samples), sweep="s")
    legends = re.findall(r'<li><span class="swatch s\d"></span>(.*)</li>', html)
    assert sorted(legends) == ["base", "base", "sft", "sft"]  # loss and reward


def test_of_many_differences_those_of_the_smallest_p_are_shown_and_the_rest_is_named(
    composed: Compose, tmp_path: Path
) -> None:
    few = draw_samples(tmp_path / "few", per_cell=2)
    folders = [
        write_run(
            composed("method=sft", f"method.trl.learning_rate=1e-{i}"),
            few,
            half_right,
            key=f"{i:012d}",
        )
        for i in range(2, 9)
    ]
    runs = load(folders)
    tables = gather(runs)
    shown = arms.differences(tables.domains)
    assert (len(shown.compared), shown.tests) == (15, 21)
    html = page(runs, sweep="s", tables=tables)
    assert "15 of 21 differences, those of the smallest p; all: tables/comparisons.csv" in html


def test_same_reply_of_many_models_is_held_once(composed: Compose, samples: list[Sample]) -> None:
    item = embedded(page(many(composed, samples), sweep="s"))["questions"]["ct/disease"]["items"][0]
    assert len(item["answers"]) == 13
    assert len(item["replies"]) <= 2


def test_controls_are_shown_where_an_evaluation_has_them(
    composed: Compose, samples: list[Sample]
) -> None:
    folder = write_run(composed("method=base"), samples, right)
    path = folder.path / "metrics.json"
    figures = json.loads(path.read_text())
    for some in (figures["overall"], *figures["cells"].values()):
        some |= {"shuffled_image": 0.317, "no_image": 0.218, "permuted_options": 0.519}
    path.write_text(json.dumps(figures))
    html = page(load([folder]), sweep="demo")
    for head, value in (("Shuffled image", 31.7), ("No image", 21.8), ("Options turned", 51.9)):
        assert f'<th scope="col">{head}</th>' in html
        assert f"<td>{value}</td>" in html
    assert embedded(html)["runs"][0]["cells"]["ct/disease"]["no_image"] == 0.218


def test_sweep_without_results_still_has_a_page(composed: Compose) -> None:
    failed = write_failed(composed("method=sft"), "ValueError: <b>no</b> data")
    html = page(load([failed]), sweep="demo")
    assert "No run of this sweep has been evaluated yet." in html
    assert "ValueError: &lt;b&gt;no&lt;/b&gt; data" in html


def test_runs_without_results_are_counted(composed: Compose, samples: list[Sample]) -> None:
    runs = [
        write_run(composed(f"method={method}"), samples, right, key=key * 12)
        for method, key in (("base", "0"), ("sft", "1"))
    ]
    runs.append(write_failed(composed("method=rarl"), "no"))
    html = page(load(runs), sweep="demo")
    assert "<li>3 runs: 1 base, 1 sft, 1 without results</li>" in html
    assert "; *: p is below 0.05." in html  # one difference, and Holm's adjustment of one p


def test_an_interrupted_run_is_not_called_running(composed: Compose, tmp_path: Path) -> None:
    failed = write_failed(composed("method=sft"), "")
    failed.run.update(state="running", evaluating=failed.key, error=None)
    (failed.run.checkpoints / "checkpoint-40").mkdir(parents=True)
    progress = {"phase": "training", "done": 49, "total": 60, "left_seconds": 1.0, "note": ""}
    failed.run.progress.write_text(json.dumps(progress))
    html = page(load([failed]), sweep="demo")
    state = '<span class="state">interrupted at step 49 of 60; the same command resumes</span>'
    assert state in html


def test_what_people_and_models_write_is_escaped(composed: Compose, samples: list[Sample]) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    asked = [replace(s, question=evil, options=(evil, "b", "c", "d")) for s in samples]
    base = write_run(composed("method=base"), asked, lambda i, s: reply("A", evil))
    html = page(load([base]), sweep=evil)
    assert "alert(1)</script>" not in html
    assert "<img src=x" not in html
    assert embedded(html)["questions"]["ct/disease"]["items"][0]["question"] == evil


def test_page_needs_no_network(composed: Compose, samples: list[Sample]) -> None:
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(f"{tag} {k}={v}" for k, v in attrs if k in ("src", "href", "srcset"))

    html = page(load([write_run(composed("method=base"), samples, right)]), sweep="demo")
    Links().feed(html)
    assert links == []
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert "url(" not in html


def test_questions_are_capped_and_each_image_comes_once(
    composed: Compose, samples: list[Sample]
) -> None:
    runs = load(
        [
            write_run(composed("method=base"), samples, half_right),
            write_run(composed("method=sft"), samples, right),
        ]
    )
    data = embedded(page(runs, sweep="demo", questions_per_cell=5))
    assert {key: (c["total"], len(c["items"])) for key, c in data["questions"].items()} == {
        "ct/anatomy": (12, 5),
        "ct/disease": (12, 5),
        "mri/disease": (12, 5),
    }
    assert len(data["images"]) == len(set(data["images"])) == 10  # both tasks of CT share theirs
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in data["images"])


def test_answers_of_all_runs_stand_side_by_side(composed: Compose, samples: list[Sample]) -> None:
    runs = load(
        [
            write_run(composed("method=base"), samples, half_right),
            write_run(composed("method=sft"), samples[:6], lambda i, s: "no idea"),
        ]
    )
    data = embedded(page(runs, sweep="demo", questions_per_cell=12))
    items = {item["id"]: item for item in data["questions"]["ct/disease"]["items"]}
    assert len(items) == 12
    start, trained = (answer(items["ct-1-disease"], run) for run in (0, 1))
    assert start
    assert trained
    assert (start["correct"], trained["status"]) == (True, "no answer tag")
    assert answer(items["ct-7-disease"], 1) is None
    counts = data["runs"][1]["cells"]["ct/disease"]["counts"]
    assert counts == {"all": 6, "wrong": 6, "unparsed": 6, "gained": 0, "lost": 3, "changed": 3}


def test_images_are_found_where_outputs_were_moved(composed: Compose, tmp_path: Path) -> None:
    config = composed("method=base")
    drawn = draw_samples(config.folder / "cache")
    folder = write_run(config, drawn, right)
    moved = tmp_path / "moved"
    config.folder.rename(moved)
    data = embedded(
        page(
            load([EvaluationFolder(RunFolder(moved / "runs" / folder.run.path.name), folder.key)]),
            sweep="demo",
        )
    )
    assert data["questions"]["ct/disease"]["items"][0]["image"] is not None


def test_image_that_is_gone_leaves_the_question(composed: Compose, samples: list[Sample]) -> None:
    base = write_run(composed("method=base"), samples, right)
    samples[0].image.unlink()
    data = embedded(page(load([base]), sweep="demo", questions_per_cell=12))
    images = {i["id"]: i["image"] for i in data["questions"]["ct/disease"]["items"]}
    assert images["ct-0-disease"] is None
    assert images["ct-1-disease"] is not None


def test_curves_show_what_was_logged_up_to_a_cut_off_line(
    composed: Compose, samples: list[Sample]
) -> None:
    sft = write_run(composed("method=sft"), samples, right, logs=LOGS)
    with sft.run.metrics.open("a") as stream:
        stream.write('{"step": 4, "lo')
    html = page(load([sft]), sweep="demo")
    assert "Loss, SFT" in html
    assert "Reward, weighted sum" in html
    assert "3 steps" in html
    assert "Completion length" not in html


def test_validations_have_bands_and_a_ring_at_the_chosen_step(
    composed: Compose, samples: list[Sample]
) -> None:
    logs = [
        {"step": step, "loss": 1.0, "validation/blank_image": 0.25}
        | {f"{side}/{name}": score + more
           for side, score in (("validation", accuracy), ("transfer", 0.3))
           for name, more in (("accuracy", 0.0), ("ci_low", -0.1), ("ci_high", 0.1))}
        for step, accuracy in ((5, 0.5), (10, 0.7), (15, 0.6))
    ]  # fmt: skip
    chosen = {"chosen_step": 10, "chosen_because": "best of 3 validations (step 10: 70.0 %)"}
    sft = write_run(composed("method=sft"), samples, right, logs=logs, **chosen)
    base = write_run(composed("method=base"), samples, half_right, key="0" * 12)
    runs = load([base, sft])
    html = page(runs, sweep="demo")
    titles = ["Validation accuracy %, in-domain", "Validation accuracy %, in-domain, blank image",
              "Validation accuracy %, other cells"]  # fmt: skip
    assert [html.index(f"<figcaption>{title}</figcaption>") for title in titles] == sorted(
        html.index(f"<figcaption>{title}</figcaption>") for title in titles
    )
    assert html.count('class="band') == 2  # of the two accuracies
    assert html.count('class="chosen') == 3
    assert "sft: step 10 was kept, best of 3 validations (step 10: 70.0 %)" in html
    assert "Band: 95 % interval. Ring: the step whose weights were kept and tested." in html
    assert "70.0 <small>at 10</small>" in html
    assert [row.validation for row in rows_of(runs)] == [None, 0.7]


def opening(run: EvaluationFolder, arm: str, *, validated: bool) -> Opening:
    method = run.run.path.name.split("-")[0]
    names = {"run": run.run.path.name, "evaluation": run.key, "method": method, "arm": arm}
    return Opening("s", "phantom", "q", **names, trained=method != "base", validated=validated)


def test_a_choice_by_the_test_is_said_beside_the_headline(
    composed: Compose, samples: list[Sample]
) -> None:
    made = [
        write_run(composed(f"method={method}"), samples, right, key=key * 12)
        for method, key in (("base", "0"), ("sft", "1"), ("grpo", "2"))
    ]
    arms_of = ("start", "a", "b")
    without = [opening(*pair, validated=False) for pair in zip(made, arms_of, strict=True)]
    html = page(load(made), sweep="s", openings=without)
    assert "<li>3 arms were tested on the test questions of data=phantom</li>" in html
    assert "No validation: 2 trained arms were tested on phantom." in html
    table = [replace(each, data="the table cases.csv") for each in without]
    html = page(load(made), sweep="s", openings=table)
    assert "<li>3 arms were tested on the test questions of the table cases.csv</li>" in html
    assert "trained arms were tested on the table cases.csv." in html
    alone = page(load(made), sweep="s", openings=without[:1])
    assert "<li>1 arm was tested on the test questions of data=phantom</li>" in alone
    chosen = [opening(*pair, validated=True) for pair in zip(made, arms_of, strict=True)]
    for guarded in (without[:2], chosen):
        assert "No validation" not in page(load(made), sweep="s", openings=guarded)


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_a_half_is_rounded_on_the_page_as_in_tables_and_pictures() -> None:
    """82 of 160 is 51.25 %."""
    shares = [i / n for n in (16, 40, 80, 160, 400, 1600) for i in range(n + 1)]
    script = Path(summary.__file__).with_name("page.js").read_text()
    function = re.search(r"^function rounded.*?^}", script, re.DOTALL | re.MULTILINE)
    assert function
    program = (
        f"{function[0]}; console.log({json.dumps(shares)}.map((s) => rounded(100 * s)).join())"
    )
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().split(",") == [percent(share) for share in shares]
    assert (percent(82 / 160), percent(23 / 80)) == ("51.2", "28.8")
