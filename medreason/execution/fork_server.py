"""Workers of CPU runs, forked from a process that has imported what a worker needs.

The imports of a worker (torch, transformers, TRL, MLflow) take longer than many a run of a sweep.
So a launcher starts one server, `python -m medreason.execution.fork_server DESCRIPTOR`, which
imports once and forks a worker for each run, one at a time. A worker is still a process of its own,
with the environment, the random state and the exit code of one that was started anew. Workers of
GPU runs and of several ranks are started anew: nothing of CUDA may come before a fork.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from medreason.runs import interrupts, parent_watch

_WORKER = "medreason.execution.worker"
_COMMAND = (sys.executable, "-m", __name__)
_NUMBER = struct.Struct("q")
_MOST_DESCRIPTORS = 253  # what Linux passes with one message


class Server:
    """The process that imports and forks, with the socket on which it hears of runs."""

    def __init__(self, environment: Mapping[str, str], log: int) -> None:
        """Start it; what it writes while it imports goes to the descriptor `log`."""
        self._environment = environment
        self.socket, of_server = socket.socketpair()
        with of_server:
            self.process = _start_process(of_server, environment, log)

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether it can fork a worker with this environment; libraries read it at their import."""
        return self.process.poll() is None and self._environment == environment

    def close(self) -> None:
        """End it, with no worker left."""
        self.socket.close()
        self.process.wait()


def _start_process(
    of_server: socket.socket, environment: Mapping[str, str], log: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_COMMAND, str(of_server.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
        pass_fds=(of_server.fileno(),),
    )


_idle: list[Server] = []
"""Servers of this process without a worker: one, unless its threads launch several runs at once."""


@atexit.register
def _close_idle() -> None:
    while _idle:
        _idle.pop().close()


class ForkedWorker:
    """A worker of a server, with what `supervision` uses of `subprocess.Popen`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pid: int | None = None
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """The server's, until it has imported and forked the worker."""
        return self._server.process.pid if self._pid is None else self._pid

    def poll(self) -> int | None:
        """The exit code, None before the end."""
        while self.returncode is None and select.select([self._server.socket], [], [], 0)[0]:
            self._receive()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, after waiting for the end.

        Raises:
            subprocess.TimeoutExpired: nothing was heard for `timeout` seconds.
        """
        while self.returncode is None:
            if not select.select([self._server.socket], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(_WORKER, timeout or 0)
            self._receive()
        return self.returncode

    def _receive(self) -> None:
        """Take the next message: the worker's process id, then its exit code."""
        try:
            message = self._server.socket.recv(_NUMBER.size, socket.MSG_WAITALL)
        except ConnectionResetError:  # it ended before it read of the run
            message = b""
        if len(message) < _NUMBER.size:  # an import failed, or the server was killed
            self.returncode = self._server.process.wait() or 1
        elif self._pid is None:
            (self._pid,) = _NUMBER.unpack(message)
        else:
            (self.returncode,) = _NUMBER.unpack(message)
            _idle.append(self._server)


def start(
    folder: Path,
    evaluation_key: str,
    environment: Mapping[str, str],
    log: int,
    descriptors: Sequence[int],
) -> ForkedWorker:
    """Fork a worker of a run folder, which writes to the descriptor `log`.

    It holds `descriptors` until its end; the server keeps none of them.
    """
    server = _idle.pop() if _idle else None
    if server and not server.serves(environment):
        server.close()
        server = None
    server = server or Server(environment, log)
    request = json.dumps([str(folder), evaluation_key, os.getcwd()]).encode()
    message = _NUMBER.pack(len(request)) + request
    with suppress(ConnectionError):  # the server has ended, which the worker's exit code will say
        socket.send_fds(server.socket, [message], [log, *descriptors])
    return ForkedWorker(server)


def serve(launcher: socket.socket) -> None:
    """Import what a worker needs, and fork workers until the launcher is gone.

    This returns in a worker at the end of its run, so that Python ends it as any process.
    """
    faulthandler.register(signal.SIGUSR1)  # the launcher sends it where an import hangs
    worker = importlib.import_module(_WORKER)
    server = os.getpid()
    gc.freeze()  # a collection in a worker would else copy all the memory that it shares
    while run := _next_run(launcher):
        folder, evaluation_key, working_directory, descriptors = run
        # Slurm sends it to all processes of a job; the worker, which ends with this one, may need
        # it to write a checkpoint.
        _handle(signal.SIG_IGN)
        pid = os.fork()
        if pid == 0:
            _handle(signal.SIG_DFL)
            launcher.close()
            parent_watch.end_with(server)
            os.chdir(working_directory)
            sys.argv = [str(worker.__file__), folder, evaluation_key]
            worker.main(Path(folder), evaluation_key)
            return
        os.setpgid(pid, pid)  # a group to signal, before the launcher hears of it
        for descriptor in descriptors:
            os.close(descriptor)
        try:
            launcher.sendall(_NUMBER.pack(pid))
            _, status = os.waitpid(pid, 0)
            _handle(signal.SIG_DFL)
            launcher.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
        except ConnectionError:  # the launcher was killed, and the worker has noticed
            break
    os._exit(0)  # the workers did what is to be done at exit


def _handle(handler: signal.Handlers) -> None:
    for number in interrupts.OF_WORKERS:
        signal.signal(number, handler)


def _next_run(launcher: socket.socket) -> tuple[str, str, str, list[int]] | None:
    """Wait for a run, whose log becomes this process's output; None when the launcher is gone.

    Gives the run folder, the evaluation key, the working directory and what the worker holds.
    """
    header, descriptors, _, _ = socket.recv_fds(launcher, _NUMBER.size, _MOST_DESCRIPTORS)
    if not header:
        return None
    (size,) = _NUMBER.unpack(header)
    folder, evaluation_key, working_directory = json.loads(launcher.recv(size, socket.MSG_WAITALL))
    log, *held = descriptors
    for output in (sys.stdout, sys.stderr):
        os.dup2(log, output.fileno())
    os.close(log)
    return folder, evaluation_key, working_directory, held


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
