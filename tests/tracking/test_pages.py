"""The address of MLflow's pages: it writes what is new alone, and a read-only database is shown."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import socket
import sys
from pathlib import Path
from subprocess import PIPE, Popen, run
from urllib.parse import parse_qsl, urlsplit

import processes
import pytest
from mlflow import MlflowClient
from mounts import READ_ONLY, mounted

from medreason import tracking
from medreason.config import Tracking
from medreason.tracking import pages, store


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """With a database that holds one sweep."""
    outputs = tmp_path / "outputs"
    tracking.prepare(_settings(outputs), outputs, "demo")
    return outputs


def _settings(outputs: Path) -> Tracking:
    return Tracking(name="local", uri=f"sqlite:///{outputs}/mlflow.db")


def _client(outputs: Path) -> tuple[MlflowClient, str]:
    settings = _settings(outputs)
    client = store.connect(settings, outputs)
    return client, store.experiment(client, settings, outputs)


def _query(address: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(address.replace("/#", "")).query))


def test_a_second_start_writes_nothing(outputs: Path) -> None:
    first = pages.address(*_client(outputs))
    before = hashlib.sha256((outputs / "mlflow.db").read_bytes()).hexdigest()
    assert pages.address(*_client(outputs)) == first
    assert hashlib.sha256((outputs / "mlflow.db").read_bytes()).hexdigest() == before
    tracking.prepare(_settings(outputs), outputs, "later")
    pages.address(*_client(outputs))
    client, experiment = _client(outputs)
    (view,) = [v for k, v in client.get_experiment(experiment).tags.items() if "ViewState" in k]
    assert "'later'" in view


def test_newest_sweep_that_has_results_is_shown(outputs: Path) -> None:
    client, experiment = _client(outputs)
    tags = {f"{store.PREFIX}kind": "run", f"{store.PREFIX}sweep": "demo"}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    client.log_metric(run_id, "test/accuracy", 0.5)
    tracking.prepare(_settings(outputs), outputs, "interrupted")
    for sweep, shown in ((None, "'demo'"), ("interrupted", "'interrupted'")):
        pages.address(client, experiment, sweep=sweep)
        (view,) = [v for k, v in client.get_experiment(experiment).tags.items() if "ViewState" in k]
        assert shown in view


def test_trials_of_a_search_have_a_column_of_their_validation_and_are_sorted_by_it(
    outputs: Path,
) -> None:
    client, experiment = _client(outputs)
    tags = {f"{store.PREFIX}kind": "run", f"{store.PREFIX}sweep": "demo"}
    runs = [client.create_run(experiment, tags=tags).info.run_id for _ in range(2)]
    client.log_metric(runs[0], "test/accuracy", 0.5)

    def view() -> dict[str, object]:
        pages.address(client, experiment)
        return json.loads(
            client.get_experiment(experiment).tags["mlflow.sharedViewState.medreason"]
        )

    column = "metrics.`validation/accuracy`"
    assert column not in str(view())
    for run_id in runs:
        client.log_metric(run_id, "validation/accuracy", 0.5)
    assert column in str(view()["selectedColumns"])
    assert view()["orderByKey"] == column
    client.log_metric(runs[1], "test/accuracy", 0.5)  # all are tested, as in no search
    assert view()["orderByKey"] == "metrics.`test/accuracy`"
    assert column in str(view()["selectedColumns"])


@pytest.mark.parametrize("place", ["outputs", "outputs/mlflow.db"])
def test_pages_of_a_read_only_database_are_opened_with_one_line(outputs: Path, place: str) -> None:
    """Of a disk that is mounted so, and of another user's file in a folder that can be written."""
    script = (
        "import sys; from medreason.tracking import pages; "
        "pages._serve = lambda *given: pages.show(given[2]); sys.argv[1:] = ['outputs']; "
        "pages.main()"
    )
    command = mounted(READ_ONLY.format(place), [sys.executable, "-c", script])
    shown = run(command, cwd=outputs.parent, capture_output=True, text=True, check=True)
    assert shown.stderr.splitlines() == [
        "the database is read-only: its pages show no columns of metrics and tags"
    ]
    query = _query(shown.stdout)
    assert query["searchFilter"].endswith("tags.`medreason.sweep` = 'demo'")
    assert query["orderByKey"] == "metrics.`test/accuracy`"
    pages.address(*_client(outputs))  # as one who may write it
    shown = run(command, cwd=outputs.parent, capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    assert "viewStateShareKey=medreason" in shown.stdout


@pytest.mark.parametrize(
    ("typed", "name"), [([], "the newest sweep, demo"), (["--sweep", "older"], "sweep older")]
)
def test_the_address_is_printed_with_the_name_of_its_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], name: str
) -> None:
    for sweep in ("older", "demo"):
        tracking.prepare(_settings(tmp_path), tmp_path, sweep)
    served: list[object] = []
    monkeypatch.setattr(pages, "_serve", lambda *given: served.extend(given))
    monkeypatch.setattr(sys, "argv", ["pages", str(tmp_path), *typed])
    with pytest.raises(SystemExit):
        pages.main()
    assert served[-1] == name


def test_a_sweep_that_is_not_there_is_refused_with_those_that_are(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.prepare(_settings(outputs), outputs, "later")
    monkeypatch.setattr(sys, "argv", ["pages", str(outputs), "--sweep", "nope"])
    with pytest.raises(SystemExit, match=r"sweep 'nope' is not in .*; there are: demo, later"):
        pages.main()


def test_outputs_that_were_moved_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pages"])
    with pytest.raises(SystemExit, match=r"outputs/mlflow\.db is not .*tracking\.pages FOLDER"):
        pages.main()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_make_ui_without_an_error(outputs: Path, number: int) -> None:
    """Sent to the group, as a terminal does: to make, to the pages and to what they start."""
    port = pages._free_port(5700)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        words = [sys.executable, "-m", "medreason.tracking.pages", str(outputs), f"--port={port}"]
        rule = outputs.parent / "Makefile"
        rule.write_text(f"ui:\n\t@{shlex.join(words)}\n")
        of_an_outer_make = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        unset = ("DISPLAY", *of_an_outer_make)
        environment = {key: value for key, value in os.environ.items() if key not in unset}
        with Popen(
            ["make", "-f", str(rule), "ui"],
            **{"stdout": PIPE, "stderr": PIPE, "text": True, "start_new_session": True},
            cwd=outputs.parent,
            env=environment,
        ) as made:
            assert made.stdout
            assert f"http://127.0.0.1:{port + 1}/" in made.stdout.readline()
            os.killpg(made.pid, number)
            _, errors = made.communicate(timeout=30)
    processes.wait_until_gone(outputs.parent)
    lines = errors.splitlines()
    assert f"port {port} is taken, so the pages are on port {port + 1}" in lines
    assert "Traceback" not in errors
    after = lines[lines.index("MLflow starts; the address follows") + 1 :]
    of_the_start = ("Security middleware", "another sweep")
    ends = [line for line in after if not any(word in line for word in of_the_start)]
    assert ends == ["MLflow's pages are closed"]
    assert made.returncode in (0, -number)  # make itself may die of the signal


def test_the_server_keeps_a_warning_of_its_own_imports_to_itself(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    imported = "import warnings; warnings.warn('starlette.middleware.wsgi is deprecated and')"
    command = f"{imported}; warnings.warn('another')"
    popen = pages.subprocess.Popen
    monkeypatch.setattr(
        pages.subprocess, "Popen", lambda _, **more: popen([sys.executable, "-c", command], **more)
    )
    assert (
        pages._serve("sqlite:///none", pages._free_port(5600), "address", "command", "sweep a") == 0
    )
    shown = capfd.readouterr().err
    assert "another" in shown
    assert "starlette" not in shown.replace(command, "")
