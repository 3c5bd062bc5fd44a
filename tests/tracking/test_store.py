"""MLflow behind run folders: many writers, another version, a run for each sweep."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import empty_databases
import pytest
from commands import SERVER
from mlflow.exceptions import MlflowException
from run_folders import draw_samples, reply, write_run

from medreason import tracking
from medreason.config import Config, Tracking
from medreason.tracking import pages, store

Compose = Callable[..., Config]
PROCESSES, METRICS = 4, 20


def local(folder: Path) -> Tracking:
    return Tracking(name="local", uri=f"sqlite:///{folder}/mlflow.db")


def write_many(folder: Path, sweep: str) -> None:
    """What a job does: make what is not there yet, then send metrics."""
    settings = local(folder)
    client = store.connect(settings, folder)
    experiment = store.experiment(client, settings, folder)
    parent = store.parent(client, experiment, folder, sweep)
    with store.writing(settings, folder):
        run = client.create_run(experiment, tags={"mlflow.parentRunId": parent})
    for step in range(METRICS):
        with store.writing(settings, folder):
            client.log_metric(run.info.run_id, "loss", 1.0 / (step + 1), step=step)
    with store.writing(settings, folder):
        client.set_terminated(run.info.run_id)


def test_four_processes_make_and_fill_one_database_at_once(tmp_path: Path) -> None:
    """Without the lock around its making the tables exist twice or half; see `store.connect`."""
    jobs = [SERVER.Process(target=write_many, args=(tmp_path, "s")) for _ in range(PROCESSES)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * PROCESSES
    client = store.connect(local(tmp_path), tmp_path)
    experiment = client.get_experiment_by_name("medreason")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("medreason.kind") == "sweep"]
    children = [run for run in runs if run is not parent]
    assert len(children) == PROCESSES
    for run in children:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "loss")) == METRICS


@pytest.mark.slow  # MLflow's own patience, 20 s, has to run out
@pytest.mark.parametrize("careful", [True, False])
def test_writer_waits_for_another_that_takes_longer_than_mlflow_would(
    tmp_path: Path, careful: bool
) -> None:
    """The second case is MLflow without the precaution: the same write is lost."""
    settings = local(tmp_path)
    tracking.prepare(settings, tmp_path, "s")
    client = store.connect(settings, tmp_path)
    run = client.create_run(store.experiment(client, settings, tmp_path)).info.run_id
    began = threading.Event()

    def other_job() -> None:
        with store.writing(settings, tmp_path):
            database = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
            database.execute("BEGIN EXCLUSIVE")
            began.set()
            time.sleep(25)
            database.execute("COMMIT")
            database.close()

    other = threading.Thread(target=other_job)
    other.start()
    began.wait()
    if careful:
        with store.writing(settings, tmp_path):
            client.log_metric(run, "loss", 1.0)
        assert len(client.get_metric_history(run, "loss")) == 1
    else:
        with pytest.raises(MlflowException, match="database is locked"):
            client.log_metric(run, "loss", 1.0)
    other.join()


@pytest.mark.parametrize(
    ("revision", "remedy"),
    [
        ("451aebb31d03", r"an older MLflow.*mlflow db upgrade sqlite:.*tracking\.resync"),
        ("ffffffffffff", r"a newer MLflow.*Install the newer MLflow.*tracking\.resync"),
    ],
)
def test_database_of_another_version_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str, remedy: str
) -> None:
    settings = local(tmp_path)
    tracking.prepare(settings, tmp_path, "s")
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE alembic_version SET version_num = '{revision}'")
        database.execute("DROP TABLE spans")  # one that the older version has not got
    database.close()
    before = path.read_bytes()
    with pytest.raises(store.UnusableStoreError, match=remedy):
        store.connect(settings, tmp_path)
    monkeypatch.setattr("sys.argv", ["pages", str(tmp_path)])
    with pytest.raises(SystemExit, match=remedy):
        pages.main()
    assert path.read_bytes() == before


def test_deleted_run_is_made_anew_and_a_deleted_parent_too(
    composed: Compose, tmp_path: Path
) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    config = composed("method=base", "sweep=one")
    evaluations = [
        write_run(config, samples, lambda i, s: reply("A"), evaluation_key=f"evaluation{i}")
        for i in range(2)
    ]
    send = config.tracking, config.folder, "one", evaluations
    assert tracking.catch_up(*send)
    client = store.connect(config.tracking, config.folder)
    experiment = store.experiment(client, config.tracking, config.folder)
    first = evaluations[0].run.state().mlflow_runs["one/evaluation0"]
    client.delete_run(first)
    client.delete_run(store.parent(client, experiment, config.folder, "one"))
    assert tracking.catch_up(*send, all_=True)
    children = store.find_runs(client, experiment, {"medreason.kind": "run"})
    assert len(children) == 2
    assert first not in {run.info.run_id for run in children}
    parent = store.parent(client, experiment, config.folder, "one")
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent}


def test_deleted_experiment_is_named_with_the_remedy(tmp_path: Path) -> None:
    settings = local(tmp_path)
    tracking.prepare(settings, tmp_path, "s")
    client = store.connect(settings, tmp_path)
    client.delete_experiment(store.experiment(client, settings, tmp_path))
    with pytest.raises(
        store.UnusableStoreError, match="was deleted in MLflow; restore it"
    ) as error:
        tracking.prepare(settings, tmp_path, "s")
    command = str(error.value).split("`")[1].split()
    assert command[1:5] == ["mlflow", "experiments", "restore", "--experiment-id"]
    client.restore_experiment(command[5])
    tracking.prepare(settings, tmp_path, "s")


def test_names_that_mlflow_refuses_are_replaced_and_stay_different(
    composed: Compose, tmp_path: Path
) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    config = composed("method=grpo", 'sweep="it\'s"')
    odd = {"grade (ISUP)": config.reward["format"], "grade [ISUP]": config.reward["format"]}
    config = replace(config, reward=config.reward | odd)
    logs = [{"step": 1, "rewards/grade (ISUP)/mean": 0.5, "rewards/grade [ISUP]/mean": 0.25}]
    evaluation = write_run(config, samples, lambda i, s: reply("A"), logs=logs)
    assert tracking.catch_up(config.tracking, config.folder, "it's", [evaluation])
    client = store.connect(config.tracking, config.folder)
    experiment = store.experiment(client, config.tracking, config.folder)
    (run,) = store.find_runs(
        client, experiment, {"medreason.sweep": "it's", "medreason.kind": "run"}
    )
    assert run.info.status == "FINISHED"
    rewards = {name: value for name, value in run.data.metrics.items() if "ISUP" in name}
    assert sorted(rewards.values()) == [0.25, 0.5]
    assert all(name.startswith("curves/rewards/grade _ISUP_/mean.") for name in rewards)
    assert len([name for name in run.data.params if "ISUP" in name]) > 1


@pytest.mark.parametrize("name", ["a?b", "a%20b #;"])
def test_outputs_may_have_any_name_that_a_folder_has(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = Path(name) / "outputs"
    settings = Tracking(name="local", uri=f"sqlite:///{outputs}/mlflow.db")
    Path("audit.json").write_text("{}")
    tracking.show_audit(settings, outputs, "data", Path("audit.json"), "0")
    assert {path.name for path in tmp_path.iterdir()} == {name, "audit.json"}
    assert store._database(store.escaped(settings.uri, outputs)) == outputs / "mlflow.db"
    assert len(list((outputs / "mlartifacts").rglob("audit.json"))) == 1
    client = store.connect(settings, outputs)
    assert client.get_experiment_by_name("medreason") is None  # audits are apart
    assert client.get_experiment_by_name("medreason-audits")


def test_a_run_shows_its_validations_and_the_chosen_step(composed: Compose, tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    config = composed("method=sft", "sweep=one")
    logs = [{"step": 1, "loss": 1.0, "validation/accuracy": 0.5, "transfer/parsed": 1.0}]
    chosen = {"chosen_step": 1, "chosen_because": "best of 1 validations (step 1: 50.0 %)"}
    evaluation = write_run(config, samples, lambda i, s: reply("A"), logs=logs, **chosen)
    assert tracking.catch_up(config.tracking, config.folder, "one", [evaluation])
    (run_id,) = evaluation.run.state().mlflow_runs.values()
    run = store.connect(config.tracking, config.folder).get_run(run_id)
    shown = {
        name: run.data.metrics[f"curves/{name}"]
        for name in ("validation/accuracy", "transfer/parsed")
    }
    assert run.data.metrics["validation/accuracy"] == 0.5  # of the weights that were kept
    assert (shown, run.data.metrics["curves/loss"]) == (
        {"validation/accuracy": 0.5, "transfer/parsed": 1.0}, 1.0,
    )  # fmt: skip
    for name, value in chosen.items():
        assert run.data.tags[f"medreason.{name}"] == str(value)


def test_folder_of_two_sweeps_is_a_run_in_each_with_the_evaluation_it_asked_for(
    composed: Compose, tmp_path: Path
) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    config = composed("method=base", "sweep=one")
    one = write_run(config, samples, lambda i, s: reply("A"))
    second = composed("method=base", "sweep=two")
    two = write_run(second, samples, lambda i, s: reply(s.answer), evaluation_key="evaluation1")
    for sweep, evaluation in (("one", one), ("two", two), ("one", one)):
        assert tracking.catch_up(config.tracking, config.folder, sweep, [evaluation])

    client = store.connect(config.tracking, config.folder)
    experiment = client.get_experiment_by_name("medreason")
    assert experiment
    runs = client.search_runs([experiment.experiment_id], "tags.`medreason.kind` = 'run'")
    accuracy = {run.data.tags["medreason.sweep"]: run.data.metrics["test/accuracy"] for run in runs}
    assert len(runs) == 2
    assert accuracy == {"one": 0.5, "two": 1.0}
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs}
    names = {client.get_run(parent).info.run_name for parent in parents}
    assert names == {"one", "two"}

    page = urlsplit(pages.address(client, experiment.experiment_id).replace("/#", ""))
    query = dict(parse_qsl(page.query))
    assert query["workflowType"] == "machine_learning"
    tags = client.get_experiment(experiment.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{query['viewStateShareKey']}"])
    key, best = view["orderByKey"], view["searchFilter"]
    [shown] = client.search_runs([experiment.experiment_id], best, order_by=[f"{key} DESC"])
    assert shown.data.tags["medreason.sweep"] == "two"  # it began last
    for column in view["selectedColumns"]:
        kind, name = column.rstrip("`").split(".`")
        assert name in getattr(shown.data, kind), column


def test_runs_of_a_sweep_are_named_as_in_its_tables(composed: Compose, tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    words = [("method=base",), *(("method=sft", f"seed={seed}") for seed in (1, 2, 3, 4))]
    evaluations = [
        write_run(composed("sweep=one", *typed), samples, lambda i, s: reply("A"), key=f"{i}" * 12)
        for i, typed in enumerate(words)
    ]
    config = composed("sweep=one")
    assert tracking.catch_up(config.tracking, config.folder, "one", evaluations)
    client = store.connect(config.tracking, config.folder)
    ids = [run_id for e in evaluations for run_id in e.run.state().mlflow_runs.values()]
    client.delete_run(ids[3])
    evaluations[4].config.write_text("broken: [")
    tracking.name_runs(config.tracking, config.folder, "one", evaluations)
    names = [client.get_run(run_id).info.run_name for run_id in ids]
    assert names[:3] == ["base", "sft seed 1", "sft seed 2"]
    assert names[3:] == [evaluation.name for evaluation in evaluations[3:]]  # as they were


def test_no_interval_of_too_few_clusters_is_sent(composed: Compose, tmp_path: Path) -> None:
    samples = draw_samples(tmp_path / "images")[:2]
    config = composed("method=base", "sweep=one")
    folder = write_run(config, samples, lambda i, s: reply("A"))
    tracking.catch_up(config.tracking, config.folder, "one", [folder])
    (run_id,) = folder.run.state().mlflow_runs.values()
    metrics = store.connect(config.tracking, config.folder).get_run(run_id).data.metrics
    assert metrics["test/clusters"] == 2
    assert not [name for name in metrics if "ci_" in name]


@pytest.mark.parametrize("average", ["questions", "cells"])
def test_metrics_are_averaged_as_the_configuration_says(
    composed: Compose, tmp_path: Path, average: str
) -> None:
    samples = draw_samples(tmp_path / "images")[:27]  # 12, 12 and 3 of a cell
    config = composed("method=base", "sweep=one", f"statistics.average={average}")
    folder = write_run(
        config, samples, lambda i, s: reply(s.answer if s.modality == "mri" else "?")
    )
    tracking.catch_up(config.tracking, config.folder, "one", [folder])
    (run_id,) = folder.run.state().mlflow_runs.values()
    run = store.connect(config.tracking, config.folder).get_run(run_id)
    metrics = run.data.metrics
    assert metrics["test/accuracy_over_questions"] == pytest.approx(3 / 27)
    assert metrics["test/accuracy_over_cells"] == pytest.approx(1 / 3)
    assert metrics["test/accuracy"] == metrics[f"test/accuracy_over_{average}"]
    assert metrics["test/ci_low"] < metrics["test/accuracy"] < metrics["test/ci_high"]
    assert (metrics["test/n"], metrics["test/clusters"]) == (27, 15)
    assert run.data.params["medreason.statistics.average"] == average


def test_run_left_running_by_a_kill_is_found_again_and_ended(
    composed: Compose, tmp_path: Path
) -> None:
    samples = draw_samples(tmp_path / "images", per_cell=2)
    config = composed("method=base", "sweep=one")
    folder = write_run(config, samples, lambda i, s: reply("A"))
    tracking.catch_up(config.tracking, config.folder, "one", [folder])
    client = store.connect(config.tracking, config.folder)
    (run_id,) = folder.run.state().mlflow_runs.values()
    client.update_run(run_id, status="RUNNING")
    folder.run.update(mlflow_runs={}, synced=[])  # killed before it was remembered
    tracking.catch_up(config.tracking, config.folder, "one", [folder])
    assert list(folder.run.state().mlflow_runs.values()) == [run_id]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_database_whose_making_was_killed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")

    def killed(_: Path, part: Path) -> None:
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", killed)
        with pytest.raises(KeyboardInterrupt):
            empty_databases.connect(tracking, tmp_path)
    assert not (tmp_path / "mlflow.db").exists()
    client = empty_databases.connect(tracking, tmp_path)
    artifacts = (tmp_path / "mlartifacts").as_uri()
    assert client.get_experiment("0").artifact_location == f"{artifacts}/0"
