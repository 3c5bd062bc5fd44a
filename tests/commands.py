"""`python -m medreason ...` in a process forked from one that has imported it, seconds cheaper.

What such a process does at its start and end is what Python does, but for the imports. Its workers
compute in one thread, as every process of pytest: two that share a core wait for each other in
loops, which takes more than twice the time. Tests that kill processes, or are about imports and
environment variables that C libraries read at their start, start a real one.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.popen_fork import Popen
from pathlib import Path
from typing import Any

import drawn_phantoms

SERVER = multiprocessing.get_context("forkserver")
"""One a process of pytest. It has no threads, which a fork of pytest's own process would lack."""
# Not this module: before Python 3.12 the server does not know the path of the tests.
SERVER.set_forkserver_preload(
    [
        *("medreason.cli", "medreason.execution.worker", "medreason.actions.report"),
        *("medreason.report.heatmap", "mlflow.store.tracking.sqlalchemy_store"),
    ]
)
_AT_START = dict(os.environ)
_STARTING = threading.Lock()


def medreason(
    *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, "-m", "medreason", *words])` gives, as text."""
    environment = dict(os.environ if env is None else env)
    arguments = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / "stdout", Path(folder) / "stderr"]
        process = SERVER.Process(
            target=_end_as_python,
            args=(
                *(_command, arguments, str(cwd or Path.cwd()), environment, _AT_START, outputs),
                drawn_phantoms.folder,
            ),
        )
        with _STARTING:
            process.start()
            # The next start, in another thread, would else read the exit status that this one
            # waits for, and leave 255 for it.
            multiprocessing.process._children.discard(process)  # pyright: ignore
        process.join()
        stdout, stderr = (output.read_text() for output in outputs)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def start_as_python() -> None:
    """For a process of `SERVER`: what a new one has, and memory that no collection copies."""
    # Python's own default; else a pool of processes would start a server that imports all again.
    multiprocessing.set_start_method(None, force=True)
    gc.freeze()


def _command(
    words: list[str],
    folder: str,
    environment: dict[str, str],
    at_start: dict[str, str],
    outputs: list[Path],
    phantoms: Path | None,
) -> None:
    import empty_databases

    from medreason import cli
    from medreason.execution import fork_server

    for output, descriptor in zip(outputs, (1, 2), strict=True):
        file = os.open(output, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(folder)
    for name in at_start.keys() - environment.keys():  # what imports have set stays
        os.environ.pop(name, None)
    os.environ.update(environment)
    paths = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [folder, *paths]
    sys.argv = [str(Path(cli.__file__).with_name("__main__.py")), *words]
    fork_server._start_process = _fork_server_of_workers
    drawn_phantoms.share(phantoms)
    empty_databases.share(phantoms)
    cli.main()


def _fork_server_of_workers(
    of_server: socket.socket, environment: Mapping[str, str], log: int
) -> Popen:
    """In place of a new process that would import for ten seconds what this one has."""
    context = multiprocessing.get_context("fork")
    process: Any = context.Process(
        target=_end_as_python, args=(_serve, of_server, environment, log)
    )
    process.start()
    return process._popen  # with `poll` and `wait` as `subprocess.Popen` has them


def _serve(of_server: socket.socket, environment: Mapping[str, str], log: int) -> None:
    from medreason.execution import fork_server

    os.setsid()
    atexit._clear()  # the command does that at its own end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for descriptor in map(int, os.listdir("/proc/self/fd")):  # locks of the command
        if descriptor not in (0, 1, 2, of_server.fileno()):
            with suppress(OSError):  # the one of the folder that is listed
                os.close(descriptor)
    os.environ.update(environment)
    fork_server.serve(of_server)


def _end_as_python(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function and end this process as Python does after its main module."""
    start_as_python()
    try:
        function(*arguments)
    finally:
        error, code = sys.exc_info()[1], 0
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                sys.stderr.write(f"{error.code}\n")
        elif error is not None:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
