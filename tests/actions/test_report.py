from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from run_folders import draw_samples, reply, write_failed, write_run

from medreason.actions import report, train
from medreason.config import Config
from medreason.console import report_command
from medreason.report.loading import evaluations_of
from medreason.runs import openings
from medreason.runs.run_folder import RunFolder, evaluations_by_sweep
from medreason.sweeps import callback

Compose = Callable[..., Config]


def test_report_writes_page_table_and_heat_maps(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = draw_samples(tmp_path / "images")
    demo = ("sweep=demo", "tracking=none")
    write_run(composed("method=base", *demo), samples, lambda i, s: reply("A"))
    write_run(composed("method=grpo", *demo), samples, lambda i, s: reply(s.answer))
    write_run(composed("method=sft", "sweep=other"), samples, lambda i, s: reply("B"))
    write_failed(composed("method=rarl", *demo), "OutOfMemoryError: no\nmore")

    report.run(composed("action=report", *demo))

    written = tmp_path / "outputs" / "reports" / "demo"
    assert {path.name for path in written.iterdir()} == {
        *("index.html", "table.csv", "accuracy-base.png", "accuracy-grpo.png"),
        *("difference-grpo.png", "tables"),
    }
    assert {path.name for path in (written / "tables").glob("*.csv")} == {
        *("comparisons.csv", "not-compared.csv", "domains.csv"),  # and none of train x test
    }
    with (written / "tables" / "comparisons.csv").open() as stream:
        [row] = csv.DictReader(stream)
    assert (row["a"], row["b"], row["n"]) == ("grpo", "base", "36")
    assert float(row["difference"]) == 75
    assert (written / "tables" / "not-compared.csv").read_text() == '"a","b","reason"\n'
    printed = capsys.readouterr().out
    assert "rarl: failed, OutOfMemoryError: no" in printed
    assert "grpo minus base" in printed
    assert "sft" not in printed
    tables = "comparisons.{csv,parquet}, domains.{csv,parquet}, not-compared.{csv,parquet}"
    assert printed.splitlines()[-4:-1] == [
        str(written / "index.html"),
        f"{written}/: accuracy-base.png, accuracy-grpo.png, difference-grpo.png, table.csv",
        f"{written / 'tables'}/: {tables}",
    ]
    with (written / "table.csv").open() as stream:
        assert {row["run"] for row in csv.DictReader(stream)} == {"base", "grpo", "rarl"}


def test_files_of_an_arm_that_was_renamed_do_not_stay_beside_those_of_the_new_report(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, demo = draw_samples(tmp_path / "images"), ("sweep=demo", "tracking=none")
    words = ("method=grpo", "modality=ct", *demo)
    write_run(composed("method=base", *demo), samples, lambda i, s: reply("A"))
    write_run(composed(*words), samples, lambda i, s: reply(s.answer))
    report.run(composed("action=report", *demo))
    written = tmp_path / "outputs" / "reports" / "demo"
    before = {path for path in written.rglob("*") if path.is_file()}
    names = ("notes.md", "picture.png", "accuracy-mine.png", "tables/mine.csv")
    own = [written / name for name in names]
    for path in (*own, written / "tables/8x8-grpo.png"):
        path.write_text("mine")
    write_run(
        composed(*words, "method.trl.beta=0.5"), samples, lambda i, s: reply("B"), key="f" * 12
    )
    report.run(composed("action=report", *demo))
    after = {path for path in written.rglob("*") if path.is_file()}
    gone = {path.name for path in before - after}
    assert {"accuracy-grpo.png", "difference-grpo.png"} <= gone
    assert not (written / "tables/8x8-grpo.png").exists()
    assert {"accuracy-grpo_beta=0.5.png", "accuracy-base.png"} <= {
        path.name.replace("grpo-beta", "grpo_beta") for path in after
    }
    assert all(path.exists() for path in own)
    assert {path.name for path in after if path.suffix == ".html"} == {"index.html"}


def test_several_sweeps_are_one_report_in_which_a_run_of_both_stands_once(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = draw_samples(tmp_path / "images")
    base = write_run(composed("method=base", "sweep=a"), samples, lambda i, s: reply("A"))
    base.run.update(sweeps={"b": [base.key]})
    write_run(composed("method=grpo", "sweep=a"), samples, lambda i, s: reply(s.answer))
    again = composed("method=grpo", "sweep=b", "seed=1")
    write_run(again, samples, lambda i, s: reply(s.answer), key="1" * 12)
    no_think = composed("method=sft", "sweep=b", "prompt=no_think")
    write_run(no_think, samples, lambda i, s: reply(s.answer))
    # As the command line joins them; it is on disk alone, so the server that is not there is not
    # asked.
    report.run(composed("action=report", "sweep='a,b'", "tracking.uri=http://127.0.0.1:1"))
    printed = capsys.readouterr().out
    written = tmp_path / "outputs/reports/a,b"
    assert f"{written / 'index.html'}\n" in printed
    assert "MLflow" not in printed
    with (written / "table.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["modality"] == "all"]
    assert [(row["run"], row["sweep"]) for row in rows] == [
        *(("base", "a"), ("sft", "b"), ("grpo seed 0", "a"), ("grpo seed 1", "b")),
    ]
    assert "grpo minus base" in printed  # seeds of both sweeps are one arm
    assert "-: trained differently and evaluated with another prompt" in printed

    with pytest.raises(ValueError, match=r"no runs of sweep=c below .*there are"):
        report.run(composed("action=report", "sweep='a,c'", "tracking=none"))


def test_a_table_that_was_recorded_as_hub_is_called_by_its_name(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = draw_samples(tmp_path / "images")
    words = ("method=sft", "data=hub", "data.hub=my/cases.csv", "sweep=demo", "tracking=none")
    config = replace(composed(*words), choices={"data": "hub"})
    done = write_run(config, samples, lambda i, s: reply(s.answer))
    values = {
        **{"sweep": "demo", "questions": "q", "arm": "a", "method": "sft"},
        **{"run": done.run.path.name, "evaluation": done.key, "trained": True, "validated": True},
    }
    for data in ("hub", "the table cases.csv"):  # by an earlier version, and by this one
        openings.record(tmp_path / "outputs", openings.Opening(data=data, **values))
    report.run(composed("action=report", "sweep=demo", "tracking=none"))
    said = "1 arm was tested on the test questions of the table cases.csv"
    assert said in capsys.readouterr().out.splitlines()
    page = (tmp_path / "outputs/reports/demo/index.html").read_text()
    assert "<li>data cases.csv</li>" in page


def test_a_finished_single_run_says_how_to_make_its_report(
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = composed("method=sft", "sweep=mine", "tracking=none")
    done = write_run(config, draw_samples(tmp_path / "images"), lambda i, s: reply(s.answer))
    request = SimpleNamespace(folder=done.run, evaluation=done, evaluation_key=done.key)
    monkeypatch.setattr(train.launch, "run", lambda *_: (request, True))
    train.run(config)
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == str(done.run.path)
    told = f"report: {report_command('mine', config.outputs)}"
    assert shown.err.splitlines()[-1] == told
    train.run(config, "[1/2] sft")  # a sweep says it once, at its end
    assert "report:" not in capsys.readouterr().err


def test_report_says_on_the_terminal_which_arm_is_not_above_its_blank_image(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, demo = draw_samples(tmp_path / "images"), ("sweep=demo", "tracking=none")
    write_run(composed("method=sft", *demo), samples, lambda i, s: reply(s.answer))
    write_run(
        composed("method=grpo", *demo),
        samples,
        lambda i, s: reply(s.answer if i % 3 else "A"),
        priors={sample.cell: 0.0 for sample in samples},
    )
    report.run(composed("action=report", *demo))
    assert "clearly above" not in capsys.readouterr().out
    worse = composed("method=rarl", *demo)
    priors = {sample.cell: 0.0 for sample in samples}
    write_run(worse, samples, lambda i, s: reply("A"), priors=priors)
    report.run(composed("action=report", *demo))
    said = (  # of its options guessing gives 25 %, where the options-only baseline has 0
        "RARL is not clearly above guessing between the options or its own answers to a blank "
        "image."
    )
    assert said in capsys.readouterr().out.splitlines()
    evaluations = evaluations_by_sweep(Path(worse.outputs) / "runs")["demo"]
    callback._show_table(
        evaluations, OmegaConf.create({"statistics": OmegaConf.structured(worse.statistics)})
    )
    assert said in capsys.readouterr().out.splitlines()  # at the end of a sweep, too


def test_many_runs_are_printed_as_arms(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    seeds = ("sweep=seeds", "tracking=none")
    write_run(composed("method=base", *seeds), samples, lambda i, s: reply("A"))
    for seed in range(12):
        config = composed("method=sft", f"seed={seed}", *seeds)
        write_run(config, samples, lambda i, s: reply(s.answer), key=f"{seed:012d}")
    report.run(composed("action=report", *seeds))
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.startswith("sft")]
    assert [row[1] for row in rows] == ["12", "minus"]  # models of the arm, and its difference
    assert "all 13 runs, one by one: the page and table.csv below" in printed
    assert "seed 3" not in printed


def test_unknown_sweep_names_those_there_are(composed: Compose, tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    write_run(composed("method=base", "sweep=demo"), samples, lambda i, s: reply("A"))
    with pytest.raises(ValueError, match=r"no runs of sweep=dmeo .* there are demo: type .*=demo"):
        report.run(composed("action=report", "sweep=dmeo"))


def test_sweep_that_has_not_begun_names_the_newest_of_the_others(
    composed: Compose, tmp_path: Path
) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    for age, sweep in enumerate(("own", "mine", "rates")):
        config = composed("method=base", f"sweep={sweep}")
        evaluation = write_run(config, samples, lambda i, s: reply("A"), key=f"{age:012d}")
        written = time.time() - 60 * age
        os.utime(evaluation.run.path / "state.json", (written, written))
    waiting = RunFolder(tmp_path / "outputs/runs/sft-tiny-all-all-ba9876543210")
    waiting.update(sweeps={"runs": ["evaluation0"]})
    words = (
        r"no runs of sweep=runs \(the default where no sweep is named\) below \S+ that have begun; "
        r"there are own, mine, rates: type `python -m medreason action=report sweep=own "
        r"outputs=\S+/outputs`"
    )
    with pytest.raises(ValueError, match=words):
        report.run(composed("action=report", "tracking=none"))
    with waiting.locked():  # for a GPU
        assert [each.run for each in evaluations_of(waiting.path.parent, "runs")] == [waiting]


def test_run_folder_of_another_version_is_named_with_what_evaluates_it_again(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    demo = ("sweep=demo", "tracking=none")
    old = write_run(composed("method=sft", *demo), samples, lambda i, s: reply("A")).run
    state = old.path / "state.json"
    state.write_text(state.read_text().replace('"attempts"', '"tries"'))
    words = rf"no runs of sweep=demo .*{old.path.name}/state.json: .*action=evaluate model.path="
    with pytest.raises(ValueError, match=words):
        report.run(composed("action=report", *demo))
    write_run(composed("method=base", *demo), samples, lambda i, s: reply("A"))
    report.run(composed("action=report", *demo))
    assert f"{old.path.name}/state.json: " in capsys.readouterr().err


def test_no_runs_at_all_say_how_to_make_some(composed: Compose) -> None:
    words = (
        r"^there are no runs below \S+ yet; make some with `python -m medreason -m prompt=think "
        r"method=base,sft,grpo,rarl outputs=\S+`, or set outputs="
    )
    with pytest.raises(ValueError, match=words):
        report.run(composed("action=report"))
    with pytest.raises(ValueError, match="method=base,sft,grpo,rarl sweep=own outputs="):
        report.run(composed("action=report", "sweep=own"))


def test_report_is_written_whole_where_the_reader_of_its_table_has_gone(
    composed: Compose, tmp_path: Path
) -> None:
    """As behind `| head`."""
    samples, demo = draw_samples(tmp_path / "images", per_cell=2), ("sweep=demo", "tracking=none")
    config = composed("action=report", *demo)
    for method in ("base", "sft"):
        write_run(composed(f"method={method}", *demo), samples, lambda i, s: reply(s.answer))
    reader, writer = os.pipe()
    os.close(reader)
    words = ("action=report", *demo, f"outputs={config.outputs}")
    command = [sys.executable, "-m", "medreason", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    written = {path.name for path in (config.folder / "reports/demo").iterdir()}
    assert {"index.html", "table.csv", "accuracy-sft.png", "tables"} <= written


def test_report_is_written_before_its_table_is_printed(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind `| less`, which reads a long table page by page."""
    demo = ("sweep=demo", "tracking=none")
    samples = draw_samples(tmp_path / "images", per_cell=2)
    write_run(composed("method=base", *demo), samples, lambda i, s: reply(s.answer))

    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    monkeypatch.setattr(report.table, "show_rows", stop)
    config = composed("action=report", *demo)
    with pytest.raises(StoppedError):
        report.run(config)
    assert (config.folder / "reports/demo/index.html").stat().st_size
    assert (config.folder / "reports/demo/tables/comparisons.csv").exists()


def test_lost_tracking_server_costs_the_view_alone(
    composed: Compose,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    samples = draw_samples(tmp_path / "images", per_cell=2)
    write_run(composed("method=base"), samples, lambda i, s: reply("A"))
    report.run(composed("action=report", "tracking=server", "tracking.uri=http://127.0.0.1:9"))
    printed = capsys.readouterr()
    assert "MLflow at http://127.0.0.1:9 not reached" in printed.err
    assert "the tracking server shows parameters" in printed.out
    assert (tmp_path / "outputs" / "reports" / "runs" / "index.html").exists()


def test_resync_brings_run_folders_and_the_report_into_mlflow(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    config = composed("method=base", "sweep=demo", "modality=ct")
    folder = write_run(config, samples, lambda i, s: reply("A"))
    report.run(replace(config, tracking=replace(config.tracking, resync=True)))
    pages = f"`python -m medreason.tracking.pages {config.outputs}` shows parameters"
    assert pages in capsys.readouterr().out

    from mlflow import MlflowClient  # heavy

    client = MlflowClient(config.tracking.uri)
    state = folder.run.state()
    assert state.synced
    run = client.get_run(state.mlflow_runs["demo/evaluation0"])
    assert run.data.metrics["test/accuracy"] == 0.5
    # A start model is no model of the cell whose job happened to run it.
    assert run.data.tags["medreason.modality"] == run.data.tags["medreason.task"] == "none"
    parent = run.data.tags["mlflow.parentRunId"]
    names = {item.path for item in client.list_artifacts(parent)}
    assert {"index.html", "table.csv", "accuracy-base.png"} <= names
