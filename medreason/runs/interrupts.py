"""What Ctrl-C, SIGTERM and SIGHUP (a closed terminal) do to the processes of a command.

command     the first raises KeyboardInterrupt: a worker that trains then has
            `runs.grace_seconds` to end its update and write a checkpoint; a second one ends it,
            but for SIGHUP, which a shell and the kernel both send. Under nohup SIGHUP does nothing
job         of joblib: Ctrl-C is left to the command, which sends SIGTERM on
worker      `OF_WORKERS` end a training after its update, all else at once; SIGHUP, which the
            command sends where nobody waits any longer, ends both at once
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from medreason import console
from medreason.runs import parent_watch

OF_WORKERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What lets a worker end. Slurm sends the last ahead of a job's time limit, as submitit asks it."""
EXIT_CODE = 128 + signal.SIGTERM
"""Of a worker that a signal has ended."""

_ONE_SIGNAL_SECONDS = 1.0


class InterruptedRunError(RuntimeError):
    """A signal has ended the worker, and not by way of this process: Slurm's, or somebody's."""


class _Command:
    """The handler of a command."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.before_end: Callable[[], None] = lambda: None
        self._last = 0.0

    def receive(self, number: int, _: object) -> None:
        since, self._last = time.monotonic() - self._last, time.monotonic()
        if self.first is None:
            self.first = number
            console.end_without_readers()
            self.before_end()
        elif number == signal.SIGHUP:
            return  # who stops a run and then closes the terminal still wants the checkpoint
        elif number == signal.SIGTERM and since < _ONE_SIGNAL_SECONDS:
            return  # `timeout` sends it to its command, and again to the group
        else:
            _handle(signal.SIG_DFL)  # a third one ends it without a word
        raise KeyboardInterrupt


_command = _Command()
_asked = False


def _handle(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def listen() -> None:
    """Raise KeyboardInterrupt at Ctrl-C, SIGTERM and SIGHUP, in a command."""
    global _command
    _command = _Command()
    _handle(_command.receive)
    parent_watch.on_hang_up(_command.receive)


def before_end(function: Callable[[], None]) -> None:
    """Call this at the first signal, before KeyboardInterrupt is raised."""
    _command.before_end = function


def first() -> int:
    """The signal that came first."""
    return _command.first or signal.SIGINT


def interrupted() -> bool:
    """Whether a signal has ended this command, which says then how to go on."""
    return _command.first is not None


def leave() -> None:
    """While the command ends, a further Ctrl-C does not wait for that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def start_job_process() -> None:
    """For a process in which joblib runs jobs. SIGTERM and SIGHUP are noted for `raise_if_asked`:
    an exception outside a job would end those of the other processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ask)
    parent_watch.on_hang_up(_ask)
    parent_watch.end_with_launcher()


def _ask(*_: object) -> None:
    global _asked
    _asked = True
    console.end_without_readers()


def raise_if_asked() -> None:
    """Raise KeyboardInterrupt in a job whose launcher has asked it to end."""
    if _asked:
        raise KeyboardInterrupt


def end_worker(*_: object) -> NoReturn:
    """The worker's handler where there is nothing to finish."""
    sys.exit(EXIT_CODE)
