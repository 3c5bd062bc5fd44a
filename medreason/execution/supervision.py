"""The worker process seen from outside: how far it is, whether it hangs, why it died."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

_POLL_SECONDS = 0.1
_STACK_SECONDS = 2.0  # in which a rank writes its stacks
_LAST_LINES = 15
_WORKER, _LAUNCHER = "medreason.execution.worker", "torch.distributed.run"


class HungError(RuntimeError):
    """No step for too long."""


def wait(
    process: subprocess.Popen[bytes],
    progress: Path,
    minutes: float,
    on_poll: Callable[[], None] = lambda: None,
) -> None:
    """Until the worker ends.

    Raises:
        HungError: `progress`, which the worker writes at each step, did not change for so many
            minutes. By then the stacks of all ranks are in the log.
    """
    seen, since = None, time.monotonic()
    while process.poll() is None:
        on_poll()
        written = progress.stat().st_mtime_ns if progress.exists() else None
        if written != seen:
            seen, since = written, time.monotonic()
        if time.monotonic() - since > 60 * minutes:
            dump_stacks(process.pid)
            raise HungError(
                f"no step for {minutes:g} minutes (hardware.hang_timeout_minutes); the stacks of "
                "all ranks are in the log, and the same command goes on from the last checkpoint"
            )
        time.sleep(_POLL_SECONDS)


def dump_stacks(pid: int) -> None:
    """Every rank writes what its threads are at to the log (see `worker.main`)."""
    for rank in ranks(pid):
        rank.send_signal(signal.SIGUSR1)
    time.sleep(_STACK_SECONDS)


def ranks(pid: int) -> list[psutil.Process]:
    """The worker processes at or below `pid`; torchrun, which starts them, is none."""
    try:
        root = psutil.Process(pid)
        below = [root, *root.children(recursive=True)]
        commands = [(process, process.cmdline()) for process in below]
    except psutil.NoSuchProcess:
        return []
    return [p for p, command in commands if _WORKER in command and _LAUNCHER not in command]


def how_it_died(returncode: int, said: str) -> str:
    """`said` is what worker and torchrun wrote to the log since they were started."""
    for rank, code in _failures(said):
        if code < 0 and -code != signal.SIGTERM:  # SIGTERM is torchrun's, to the other ranks
            return f"rank {rank} {_ended(code)}"
    return f"the worker {_ended(returncode)}"


def was_killed(said: str) -> bool:
    """Whether a rank fell to a signal, of which the errors of the others are the echo."""
    return any(code < 0 and -code != signal.SIGTERM for _, code in _failures(said))


def _failures(said: str) -> list[tuple[int, int]]:
    """(rank, exit code) in torchrun's report."""
    found = re.findall(r"^\s*rank\s*:\s*(\d+).*\n\s*exitcode\s*:\s*(-?\d+)", said, re.MULTILINE)
    return [(int(rank), int(code)) for rank, code in found]


def _ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL); out of memory is the usual cause"
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def last_lines(said: str) -> str:
    """What a reader wants of the log: its end, without torchrun's report."""
    mine = re.split(
        r"^[EW]\d{4} .*torch/distributed/elastic", said, maxsplit=1, flags=re.MULTILINE
    )[0]
    lines = [line for line in mine.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:])
