"""`make ui`: MLflow's pages, with the address that shows the newest sweep's runs.

python -m medreason.tracking.pages [OUTPUTS] [--port 5000] [--sweep NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlencode

from mlflow import MlflowClient

from medreason.config import Tracking
from medreason.console import command, notice, outputs_word, show, work_without_readers
from medreason.runs import parent_watch
from medreason.tracking import store
from medreason.training import selection

_HOST, _PORT = "127.0.0.1", 5000
_PORTS = 20  # tried from the first; macOS itself listens on 5000
_START_SECONDS, _END_SECONDS = 180.0, 5.0
_BEST = "metrics.`test/accuracy`"
_VALIDATION = f"metrics.`{selection.SCORE}`"  # of the weights that were kept
_COLUMNS = (
    *(_BEST, "metrics.`test/above_prior`", "metrics.`test/blank_image`"),
    *(f"tags.`{store.PREFIX}{facet}`" for facet in ("modality", "task", "prompt", "seed")),
)
_VIEW = "medreason"


def address(
    client: MlflowClient,
    experiment: str,
    port: int = _PORT,
    *,
    read_only: bool = False,
    sweep: str | None = None,
) -> str:
    """The page with the runs of a sweep, the most accurate first, the trials of a search by their
    validation; where none is named, of the one with results that began last.

    MLflow 3.17 opens on a page for language-model traces unless `workflowType` says otherwise,
    folds children behind their parent unless a search leaves the parent out, and shows neither
    metrics nor tags unless a view names them: one that is kept as its "Share" button keeps one, in
    a tag of the experiment, and holds search and order too. Of a database that is `read_only` the
    address has search and order, and the pages none of these columns.
    """
    search = f"tags.`{store.PREFIX}kind` = 'run'"
    name = sweep or _newest(client, experiment)
    if name and not {*name} & {*"'\"\\"}:  # MLflow's filters take no quotes
        search += f" and tags.`{store.PREFIX}sweep` = '{name}'"
    tested, validated = (
        len(store.find_runs(client, experiment, {}, f"{search} and {metric} >= 0"))
        for metric in (_BEST, _VALIDATION)
    )
    order = _VALIDATION if validated > tested else _BEST
    view = {"searchFilter": search, "orderByKey": order, "orderByAsc": False}
    columns = (*([_VALIDATION] if validated else []), *_COLUMNS)
    kept = json.dumps(view | {"selectedColumns": columns})
    tag = f"mlflow.sharedViewState.{_VIEW}"
    is_kept = client.get_experiment(experiment).tags.get(tag) == kept
    if not is_kept and not read_only:
        client.set_experiment_tag(experiment, tag, kept)
    shown = {"viewStateShareKey": _VIEW}
    if read_only and not is_kept:
        notice("the database is read-only: its pages show no columns of metrics and tags")
        shown = view | {"orderByAsc": "false"}
    query = urlencode({"workflowType": "machine_learning"} | shown)
    return f"http://{_HOST}:{port}/#/experiments/{experiment}/runs?{query}"


def _newest(client: MlflowClient, experiment: str) -> str:
    """The sweep with results that began last; the last one where none has any, empty without."""
    kind, tag = f"{store.PREFIX}kind", f"{store.PREFIX}sweep"
    names = sweeps(client, experiment)
    for name in reversed(names):
        if store.find_runs(client, experiment, {kind: "run", tag: name}, f"{_BEST} >= 0"):
            return name
    return names[-1] if names else ""


def sweeps(client: MlflowClient, experiment: str) -> list[str]:
    """The names of all sweeps, that which began first before the others."""
    found = store.find_runs(client, experiment, {f"{store.PREFIX}kind": "sweep"})
    return list(dict.fromkeys(run.data.tags[f"{store.PREFIX}sweep"] for run in found))


def _shown_sweep(client: MlflowClient, experiment: str, typed: str | None) -> tuple[str, str]:
    """(name, what it is called where its address is printed) of the sweep that was asked for, else
    of the newest. Ends the program where there is none of that name."""
    if typed:
        if typed not in (known := sweeps(client, experiment)):
            sys.exit(
                f"sweep {typed!r} is not in these outputs; there are: {', '.join(known) or 'none'}"
            )
        return typed, f"sweep {typed}"
    name = _newest(client, experiment)
    return name, f"the newest sweep, {name}" if name else "the newest sweep: none yet"


def main() -> None:
    """Serve the pages until Ctrl-C or SIGTERM, the ordinary end, with status 0; print the address,
    and open it where there is a display."""
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    work_without_readers()
    parent_watch.on_hang_up(lambda *_: sys.exit(129))
    parser = argparse.ArgumentParser(prog="medreason.tracking.pages", description=__doc__)
    parser.add_argument("outputs", nargs="?", type=Path, default=Path("outputs"))
    parser.add_argument("--port", type=int, default=_PORT)
    parser.add_argument("--sweep", help="whose runs are shown; else the newest with results")
    typed = parser.parse_args()
    if not (typed.outputs / "mlflow.db").exists():
        first = command(["experiment=smoke/quick", *outputs_word(typed.outputs)])
        sys.exit(
            f"{typed.outputs}/mlflow.db is not there: name the outputs where they were moved "
            f"(`{command(['FOLDER'], 'medreason.tracking.pages')}`), or make a first sweep "
            f"(`{first}`); a server of tracking.uri has pages of its own"
        )
    uri = f"sqlite:///{typed.outputs}/mlflow.db"
    tracking = Tracking(name="local", uri=uri)
    port = _free_port(typed.port)
    if port != typed.port:
        notice(f"port {typed.port} is taken, so the pages are on port {port}")
    try:
        read_only = store.is_read_only(store.escaped(uri, typed.outputs))
        connect = store.connect_to_read if read_only else store.connect
        client = connect(tracking, typed.outputs)
        experiment = store.experiment(client, tracking, typed.outputs)
        sweep, name = _shown_sweep(client, experiment, typed.sweep)
        page = address(client, experiment, port, read_only=read_only, sweep=sweep)
    except store.UnusableStoreError as error:
        sys.exit(str(error))
    sys.exit(
        _serve(store.escaped(uri, typed.outputs), port, page, _of_another(typed.outputs), name)
    )


def _of_another(outputs: Path) -> str:
    """What to type to see another sweep of these outputs."""
    if str(outputs) == "outputs":
        return "make ui SWEEP=NAME"
    return command([str(outputs), "--sweep", "NAME"], "medreason.tracking.pages")


def _serve(uri: str, port: int, page: str, of_another: str, name: str) -> int:
    """The server's exit status, once it has ended; `name` is that of the page."""
    # MLflow would take the one for the other, and say so.
    arguments = ["ui", "--backend-store-uri", uri, "--registry-store-uri", uri, "--workers", "1"]
    arguments += ["--uvicorn-opts", "--log-level warning"]  # not a line a request
    serving = [sys.executable, "-m", "mlflow", *arguments, "--host", _HOST, "--port", str(port)]
    # Its jobs are of language-model traces, and each kind is a process more.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Of MLflow's own imports (3.17), nothing that a reader of its pages can mend.
    quiet = [os.environ.get("PYTHONWARNINGS"), "ignore:starlette.middleware.wsgi is deprecated"]
    environment["PYTHONWARNINGS"] = ",".join(filter(None, quiet))
    notice("MLflow starts; the address follows")
    # A group of its own: uvicorn ends without a traceback by SIGTERM alone, not by Ctrl-C.
    with subprocess.Popen(serving, env=environment, start_new_session=True) as server:
        try:
            if _answers(port, server):
                notice(f"another sweep is shown by: {of_another}")
                show(f"{name}: {page}")
                if _has_display():
                    webbrowser.open(page)
            return server.wait()
        finally:
            _end_group(server)


def _end(*_: object) -> NoReturn:
    notice("MLflow's pages are closed")
    sys.exit(0)


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """End MLflow with the server that it has started, whatever a browser still waits for."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(_END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def _free_port(first: int) -> int:
    for port in range(first, first + _PORTS):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((_HOST, port))
            except OSError:  # something listens there
                continue
        return port
    sys.exit(f"ports {first} to {first + _PORTS - 1} are in use; choose another with --port")


def _has_display() -> bool:
    """Whether this is somebody's desktop: a browser in a terminal would take that over."""
    if "SSH_CONNECTION" in os.environ:
        return False
    desktops = {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    return sys.platform in ("darwin", "win32") or bool(desktops)


def _answers(port: int, server: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        with socket.socket() as tried:
            if tried.connect_ex((_HOST, port)) == 0:
                return True
        time.sleep(0.2)
    return False


if __name__ == "__main__":
    main()
