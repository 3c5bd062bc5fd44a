"""A search chooses by validation alone: what has no score is refused, and one trial is tested."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from omegaconf import DictConfig, open_dict, read_write
from run_folders import draw_samples, reply, write_run

from medreason.config import CONF, Config
from medreason.report import search as report
from medreason.report.curves import validation_ends
from medreason.report.page import page
from medreason.report.runs import load
from medreason.runs import openings
from medreason.runs.run_folder import EvaluationFolder, evaluations_by_sweep, run_folders
from medreason.sweeps import callback, jobs, search
from medreason.sweeps.callback import Sweep
from medreason.sweeps.search import Search
from medreason.training import selection

Compose = Callable[..., Config]
RECIPE = ("experiment=smoke/search", "validation.every=10")


def with_hydra(*overrides: str) -> DictConfig:
    """A composition with Hydra's own values, as the callback gets it."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


def test_search_is_read_from_recipe_and_command_line() -> None:
    config = with_hydra(*RECIPE, "method.trl.beta=0.02")
    with read_write(config):  # `compose` takes no sweep
        config.hydra.overrides.task.append("seed=choice(0,1)")
    assert search.is_search(config)
    assert not search.is_search(with_hydra("experiment=smoke/demo"))
    read = Search.of(config)
    assert read.keys == ["method.trl.learning_rate", "seed"]
    assert {"method=grpo", "method.trl.beta=0.02", *RECIPE} == set(read.fixed)
    assert (read.trials, read.at_a_time) == (6, 2)
    assert search.label(["method.trl.learning_rate=1.2345678e-05", *RECIPE], read.keys) == [
        "learning_rate=1.235e-5"
    ]


@pytest.mark.parametrize(
    ("words", "trials"),
    [
        ((), 2),
        (("hydra.sweeper.n_jobs=1",), 1),
        (("hydra/launcher=basic",), 1),
        (("hydra.sweeper.n_jobs=9", "hydra.launcher.n_jobs=4"), 4),
        (("hydra/launcher=submitit_slurm", "hydra.sweeper.n_jobs=9"), 9),
    ],
)
def test_as_many_trials_run_at_a_time_as_sweeper_and_launcher_allow(
    words: tuple[str, ...], trials: int
) -> None:
    config = with_hydra(*RECIPE, *words)
    with read_write(config):
        config.hydra.overrides.task.append("seed=choice(0,1)")
    assert Search.of(config).at_a_time == trials


@pytest.mark.parametrize(
    ("words", "searched", "message"),
    [
        (("method=sft",), ["seed"], r"validation=none validation\.every=null: .*tune on the test"),
        (
            ("method=sft", "validation=in_domain", "validation.every=null"),
            ["seed"],
            r"validation=in_domain validation\.every=null: .*set validation\.every=auto",
        ),
        (
            ("method=base",),
            ["seed"],
            r"method=base has no score.*choose a method that trains, or set hydra.mode=RUN",
        ),
        (
            ("method=sft", "validation=in_domain"),
            ["validation.share"],
            r"validation\.share is searched.*do not compare; give validation\.share one value",
        ),
        (
            ("method=sft", "action=evaluate", "validation=in_domain"),
            ["seed"],
            r"action=evaluate: a search chooses by validation scores",
        ),
    ],
)
def test_search_without_scores_that_compare_is_refused(
    composed: Compose, words: tuple[str, ...], searched: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Search(searched, [], 6, 1).refuse_unusable(composed(*words))
    Search(["seed"], [], 6, 1).refuse_unusable(composed("method=sft", "validation=in_domain"))


def test_search_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nothing to search: .*interval.* leave hydra/sweeper"):
        Search.of(with_hydra("hydra/sweeper=search", "method=sft", "validation=in_domain"))


def test_search_without_the_extra_is_refused_with_the_remedy(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    config = with_hydra(*RECIPE)
    with pytest.raises(ValueError, match=r"needs Optuna.*`uv pip install -e '/\S+\[search\]'`"):
        search.open_study(config, Search.of(config), composed("method=sft", "validation=in_domain"))
    few = with_hydra(*RECIPE, "hydra.sweeper.sampler.n_startup_trials=6")
    with pytest.raises(SystemExit, match="medreason: this search needs Optuna"):
        Sweep().on_multirun_start(few)
    assert capsys.readouterr().err == ""  # no note comes first


def test_what_is_only_tested_cannot_be_left_untested(composed: Compose) -> None:
    with pytest.raises(ValueError, match=r"runs\.test=false leaves nothing to do for method=base"):
        composed("method=base", "runs.test=false")


def write_trial(
    composed: Compose, folder: Path, key: str, rate: str, score: float | None
) -> EvaluationFolder:
    """A trial as a search leaves it: trained, validated, not tested; None where it failed."""
    words = (f"method.trl.learning_rate={rate}", "validation=in_domain", "runs.test=false")
    chosen = {"chosen_step": 10, "chosen_because": "best of 2 validations", "evaluations": []}
    failed = {"state": "failed", "trained": False, "evaluations": []} if score is None else chosen
    ends = {"validation/ci_low": 0.2, "validation/ci_high": 0.9}
    logs = [{"step": 10, "loss": 1.0, selection.SCORE: score, **ends}] if score else []
    config = composed("method=sft", *words)
    samples = draw_samples(folder / "images", per_cell=2)
    return write_run(
        config, samples, lambda i, s: reply(s.answer), key=key * 12, logs=logs, **failed
    )


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ("2.4e-6 2.5e-6 1.7e-5 9e-5", ["3e-6", "1e-5", "3e-5"]),
        ("1.1e-7 1.2e-7 3e-5 7e-4", ["1e-6", "1e-5", "1e-4"]),
        ("0.31 0.32 0.55 0.9", ["0.4", "0.6", "0.8"]),
        ("0.1 0.2 0.3", ["0.1", "0.2", "0.3"]),
    ],
)
def test_axis_of_a_search_has_ticks_at_round_values(values: str, labels: list[str]) -> None:
    wide = report._is_wide(report._numbers(values.split()))
    places, shown = report._places(values.split(), log=wide)
    assert [label for _, label in shown] == labels
    assert (places[0], places[-1]) == (0, 1)
    ordered = sorted([*shown, *zip(places, values.split(), strict=True)])
    assert [float(label) for _, label in ordered] == sorted(float(label) for _, label in ordered)


@pytest.mark.parametrize(
    ("values", "logarithmic", "axis", "middle"),
    [
        ("1e-5 1e-4 3e-5", False, ", log scale", 0.477),  # by a factor of 10
        ("1e-5 4e-5 2e-5", False, "", 1 / 3),
        ("1e-5 4e-5 2e-5", True, ", log scale", 0.5),  # chosen by tag(log, ...)
        ("0 1 0.1", True, "", 0.1),
    ],
)
def test_axis_of_a_search_is_logarithmic_where_its_values_are(
    values: str, logarithmic: bool, axis: str, middle: float
) -> None:
    trials: Any = [
        SimpleNamespace(values={"a.rate": value}, score=0.5, low=0.4, high=0.6, chosen=False)
        for value in values.split()
    ]
    (picture,) = report.pictures(trials, ["a.rate"] if logarithmic else [])
    assert picture.axis == f"a.rate{axis}"
    first, last, between = (point.x for point in picture.points)
    assert (between - first) / (last - first) == pytest.approx(middle, abs=0.001)


def test_a_trial_is_named_by_its_values_where_the_command_line_got_a_plus() -> None:
    config = with_hydra("hydra/sweeper=search", "method=sft", "validation=in_domain")
    with read_write(config):  # as `cli` hands a key of a method to Hydra
        config.hydra.overrides.task = [
            *("++method.trl.learning_rate=tag(log, interval(1e-6, 1e-4))", "++data.n=choice(1, 2)")
        ]
    read = Search.of(config)
    assert read.keys == ["method.trl.learning_rate", "data.n"]
    assert read.logarithmic == ["method.trl.learning_rate"]
    told = search.label(["++method.trl.learning_rate=3e-05", "method=sft"], read.keys)
    assert told == ["learning_rate=3e-5"]


def test_a_value_of_the_command_line_takes_a_key_out_of_the_recipe_s_search() -> None:
    """Else Optuna would choose the key as well, and its study hold values of no effect."""
    config = with_hydra(*RECIPE)
    with read_write(config):
        config.hydra.overrides.task = ["++method.trl.beta=0.02", "seed=0"]
    jobs.drop_typed_params(config)
    assert {*config.hydra.sweeper.params} == {"method", "method.trl.learning_rate"}
    read = Search.of(config)
    assert read.keys == ["method.trl.learning_rate"]
    assert "++method.trl.beta=0.02" in read.fixed


def test_a_value_of_the_command_line_is_no_second_key_of_a_sweep() -> None:
    config = with_hydra("experiment=smoke/demo")
    with read_write(config), open_dict(config):
        config.hydra.sweeper.params = {"method": "sft", "method.trl.learning_rate": "1e-4,2e-4"}
        config.hydra.overrides.task = ["++method.trl.learning_rate=3e-5"]
    jobs.drop_typed_params(config)
    assert jobs.split_jobs(config) == [["method=sft", "++method.trl.learning_rate=3e-05"]]


def test_search_of_random_draws_alone_is_named() -> None:
    few = with_hydra(*RECIPE, "hydra.sweeper.sampler.n_startup_trials=6").hydra.sweeper
    assert search.random_line(few) == (
        "hydra.sweeper.n_trials=6: every trial is a random draw, since the sampler learns from "
        "scores after hydra.sweeper.sampler.n_startup_trials=6; set more trials, or fewer of those"
    )
    more = with_hydra(*RECIPE, "hydra.sweeper.sampler.n_startup_trials=5").hydra.sweeper
    assert search.random_line(more) == ""


def test_no_interval_of_a_trial_is_shown_of_too_few_clusters() -> None:
    row = {"validation/ci_low": 0.2, "validation/ci_high": 0.9, "validation/clusters": 2}
    assert validation_ends(row) == (None, None)
    assert validation_ends(row | {"validation/clusters": 3}) == (0.2, 0.9)
    trial: Any = SimpleNamespace(score=0.5, low=None, high=None)
    assert report.score_text(trial) == "50.0 [-]"


def test_the_best_trial_alone_is_tested(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"a": ("1e-6", 0.5), "b": ("1e-5", 0.75), "c": ("1e-4", 0.75), "d": ("1e-3", None)}
    evaluations = [
        write_trial(composed, tmp_path, key, rate, score) for key, (rate, score) in scores.items()
    ]
    hydra: Any = SimpleNamespace(outputs="elsewhere", sweep="runs")
    chosen = search.chosen_trial(hydra, evaluations)
    assert chosen
    said = f"learning_rate=1e-5 {evaluations[1].run.path.name}, best of 2 validations"
    assert f"chosen of 4 trials by validation: {said}" in capsys.readouterr().err
    assert chosen.method.trl["learning_rate"] == 1e-5  # of two equal ones the first by name
    equal = [SimpleNamespace(score=score) for score in (0.5, 0.5, 0.4, None)]
    assert "3 of 4 trials are trained; the best by validation (2 are equal)" in report.note(
        equal  # pyright: ignore[reportArgumentType]
    )
    assert (chosen.runs.test, chosen.outputs) == (True, "elsewhere")
    trials, runs = report.split(load(evaluations))
    assert [trial.chosen for trial in trials] == [True, False, False, False]
    assert [trial.score for trial in trials] == [0.75, 0.75, 0.5, None]
    assert trials[0].values == {"method.trl.learning_rate": "1e-05"}
    assert len(runs) == 4  # none is tested, so their curves are shown
    assert [report.tested_text(trial) for trial in trials][:2] == ["chosen, not tested yet", "no"]
    (picture,) = report.pictures(trials)
    assert picture.title == "Validation accuracy % by method.trl.learning_rate"
    assert picture.axis == "method.trl.learning_rate, log scale"
    assert [label for _, label in picture.labels] == ["1e-6", "1e-5", "1e-4"]
    places = sorted(point.x for point in picture.points)
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)  # logarithmic
    assert [point.chosen for point in picture.points] == [True, False, False]

    assert report.split(load(evaluations[:1]))[0] == []  # one run is no search
    evaluations[1].run.update(evaluations=[evaluations[1].key])
    trials, runs = report.split(load(evaluations))
    assert [run.folder for run in runs] == [evaluations[1].run]
    assert report.tested_text(trials[0]) == "100.0 %"
    html = page(runs, sweep="runs", trials=trials)
    assert '<h2 id="search-heading">Search</h2>' in html
    assert "3 of 4 trials are trained; the best by validation" in html
    assert html.count('class="chosen s2"') == 1


def test_a_search_that_was_finished_before_ends_in_a_whole_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = callback.Sweep()
    sweep._folder, sweep._started = tmp_path, time.monotonic()
    sweep._search = Search.of(with_hydra(*RECIPE))
    assert not sweep._show_summary(with_hydra(*RECIPE, "sweep=rates"))
    assert re.fullmatch(r"sweep rates: 0 jobs in \d+ s\n", capsys.readouterr().err)


def opening(arm: str, **changes: Any) -> openings.Opening:
    values = {
        "sweep": "s", "data": "phantom", "questions": "q", "arm": arm, "method": "sft",
        "run": f"sft-{arm}", "evaluation": "e", "trained": True, "validated": False,
    }  # fmt: skip
    return openings.Opening(**(values | changes))


def test_each_opening_of_a_test_is_counted_once_and_outlives_its_run(tmp_path: Path) -> None:
    for arm in ("a", "b", "a"):
        openings.record(tmp_path, opening(arm))
    openings.record(tmp_path, opening("a", sweep="other"))
    with (tmp_path / "openings.jsonl").open("a") as stream:
        stream.write('{"sweep": "s", "da')
    assert openings.read(tmp_path, "s") == [opening("a"), opening("b")]


# Optuna's part needs the extra `search`.

TRIALS = 20


def medreason(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "medreason", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(CONF.parent)},
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(find_spec("optuna") is None, reason="the extra search is not installed")
def test_a_search_that_was_killed_goes_on_and_repeats_no_trial(tmp_path: Path) -> None:
    optuna = importlib.import_module("optuna")
    words = (
        *("-m", "hydra/sweeper=search", "hydra/launcher=joblib_x2", "hydra.sweeper.n_jobs=2"),
        *(f"hydra.sweeper.n_trials={TRIALS}", "sweep=search", "method=sft", "modality=xray"),
        *("method.trl.learning_rate=tag(log, interval(1e-5, 1e-3))", "seed=choice(0,1,2)"),
        *("data.train_images=8", "data.test_images=1", "method.trl.max_steps=2"),
        *("validation=in_domain", "validation.every=2", "validation.questions=6"),
        *("validation.share=0.3", "validation.max_new_tokens=2", "validation.controls=[]"),
        *("evaluation.max_new_tokens=2", "evaluation.modalities=[xray]", "hardware.threads=1"),
        *("method.prompts_per_step=4", "hardware.per_device_prompts=4"),
    )
    first = medreason(tmp_path, *words)
    finished: set[Path] = set()
    while len(finished) < TRIALS // 2 + 1:  # in the middle of a pair
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.5)
        states = [each for each in run_folders(tmp_path / "outputs/runs") if each.state().attempts]
        finished = {each.path for each in states}
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = {each.path: each.state().trained for each in run_folders(tmp_path / "outputs/runs")}
    output, _ = (second := medreason(tmp_path, *words)).communicate()
    assert second.returncode == 0, output
    storage = f"sqlite:///{tmp_path}/outputs/searches/search/study.db"
    study = optuna.load_study(study_name="search", storage=storage)
    states = Counter(trial.state.name for trial in study.trials)
    assert states["COMPLETE"] == TRIALS
    assert not states["RUNNING"] + states["WAITING"]
    evaluations = evaluations_by_sweep(tmp_path / "outputs/runs")["search"]
    assert [each.run.state().trained for each in evaluations] == [True] * TRIALS
    assert before.keys() <= {each.run.path for each in evaluations}
    chosen = selection.best_run(each.run for each in evaluations)
    assert chosen
    (tested,) = openings.read(tmp_path / "outputs", "search")
    assert tested.run == chosen.path.name
    # What was trained before the kill was not trained again; the chosen one was tested once more.
    again = {e.run.path.name for e in evaluations if e.run.state().attempts > 1}
    assert not again & {path.name for path, trained in before.items() if trained} - {tested.run}
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "medreason"]
    runs = client.search_runs([experiment.experiment_id], "tags.`medreason.kind` = 'run'")
    assert len(runs) == len(evaluations)
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1
    assert {run.info.status for run in runs} == {"FINISHED"}
