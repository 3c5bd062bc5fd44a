"""The worker process seen from outside: its progress, whether it hangs, why it died."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from medreason.execution.fork_server import ForkedWorker

_POLL_SECONDS = 0.1
_STACK_SECONDS = 2.0  # the ranks need to write their stacks
_RANK_SECONDS = 0.3  # from one rank to the next, or their lines would mix
_LAST_LINES = 15
_WORKER, _LAUNCHER = "medreason.execution.worker", "torch.distributed.run"


class HungError(RuntimeError):
    """No progress for longer than `hardware.hang_timeout_minutes`."""


def wait(
    process: subprocess.Popen[bytes] | ForkedWorker,
    progress: Path,
    minutes: float,
    on_poll: Callable[[], None] = lambda: None,
) -> None:
    """Wait until the worker ends.

    Raises:
        HungError: `progress`, which the worker writes at each step, did not change for so many
            minutes. By then the stacks of all ranks are in the log.
    """
    last_written, since = None, time.monotonic()
    while process.poll() is None:
        on_poll()
        written = progress.stat().st_mtime_ns if progress.exists() else None
        if written != last_written:
            last_written, since = written, time.monotonic()
        if time.monotonic() - since > 60 * minutes:
            dump_stacks(process.pid)
            raise HungError(
                f"no step for {minutes:g} minutes (hardware.hang_timeout_minutes); the stacks of "
                "all ranks are in the log; re-run the same command to resume from the last "
                "checkpoint"
            )
        time.sleep(_POLL_SECONDS)


def dump_stacks(pid: int) -> None:
    """Make every rank, one behind the other, write the stacks of its threads to the log (see
    `worker.main`)."""
    for rank in ranks(pid):
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGUSR1)
        time.sleep(_RANK_SECONDS)
    time.sleep(_STACK_SECONDS)


def ranks(pid: int) -> list[psutil.Process]:
    """The worker processes: `pid`, or what it started where it is torchrun."""
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
        commands = [(process, process.cmdline()) for process in processes]
    except psutil.NoSuchProcess:
        return []
    return [
        process
        for process, command in commands
        if _LAUNCHER not in command and (process == root or _WORKER in command)
    ]


def how_it_died(returncode: int, output: str) -> str:
    """The rank that failed and how, from what worker and torchrun wrote since their start."""
    for rank, code in _failures(output):
        if code < 0 and -code != signal.SIGTERM:  # SIGTERM is torchrun's, to the other ranks
            return f"rank {rank} {_describe_exit(code)}"
    return f"the worker {_describe_exit(returncode)}"


def was_killed(output: str) -> bool:
    """Whether a signal ended a rank, of which the errors of the others are the consequence."""
    return any(code < 0 and -code != signal.SIGTERM for _, code in _failures(output))


def _failures(output: str) -> list[tuple[int, int]]:
    """(rank, exit code) in torchrun's report."""
    pattern = r"^\s*rank\s*:\s*(\d+).*\n\s*exitcode\s*:\s*(-?\d+)"
    return [(int(rank), int(code)) for rank, code in re.findall(pattern, output, re.MULTILINE)]


def _describe_exit(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL); out of memory is the usual cause"
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def last_lines(output: str) -> str:
    """The end of what the worker wrote, without torchrun's report."""
    report = re.compile(r"^[EW]\d{4} .*torch/distributed/elastic", re.MULTILINE)
    lines = [line for line in report.split(output, maxsplit=1)[0].splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:])
