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

from medreason.execution import fork_server
from medreason.execution.fork_server import ForkedWorker
from medreason.runs import interrupts

_POLL_SECONDS = 0.1
_STACK_SECONDS = 2.0  # the ranks need to write their stacks
_RANK_SECONDS = 0.3  # from one rank to the next, or their lines would mix
_LAST_LINES = 15
_TORCHRUN_SIGNALLED = re.compile(
    r"SignalException: Process \d+ got signal: (1|2|15)$", re.MULTILINE
)
_WORKER, _LAUNCHER = "medreason.execution.worker", "torch.distributed.run"
_SERVER = fork_server.__name__
_JOB_PROCESS = "joblib.externals.loky.backend.popen_loky_posix"


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


def finish(
    process: subprocess.Popen[bytes] | ForkedWorker, seconds: float, on_poll: Callable[[], None]
) -> None:
    """Ask every rank to end its training after this update, and wait for them that long."""
    # Not torchrun: it would wait for half a minute, and kill.
    for rank in ranks(process.pid):
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        on_poll()
        time.sleep(_POLL_SECONDS)


def finish_jobs(seconds: float) -> None:
    """Ask the jobs in joblib's processes to end as `worker_process.run` ends them, and wait for
    their workers that long: at the next exception of this process joblib kills all of them."""
    jobs = [p for p in psutil.Process().children() if _is_job(p)]
    workers = [p for job in jobs for p in job.children(recursive=True) if _is_worker(p)]
    for job in jobs:
        with suppress(psutil.NoSuchProcess):
            job.send_signal(signal.SIGTERM)
    psutil.wait_procs(workers, timeout=seconds)


def _is_job(process: psutil.Process) -> bool:
    """Not a child that the same signal has ended."""
    try:
        return _JOB_PROCESS in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def _is_worker(process: psutil.Process) -> bool:
    """Not the server that forks some of them."""
    try:
        command, parent = process.cmdline(), process.parent()
        return _WORKER in command or (
            _SERVER in command and parent is not None and _SERVER in parent.cmdline()
        )
    except psutil.NoSuchProcess:
        return False


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


def was_interrupted(returncode: int | None, output: str) -> bool:
    """Whether SIGTERM, SIGINT or SIGHUP has ended the worker, torchrun, or all ranks."""
    codes = {code for _, code in _failures(output)} or {returncode}
    return codes == {interrupts.EXIT_CODE} or bool(_TORCHRUN_SIGNALLED.search(output))


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


REFUSED = "medreason refuses: "
"""Start of a worker's last line where its error says what to do: its traceback is for the log."""


def last_lines(output: str) -> str:
    """The end of what the worker wrote, without torchrun's report; empty where its error says all
    that a user needs."""
    if re.search(rf"^{REFUSED}", output, re.MULTILINE):
        return ""
    report = re.compile(r"^[EW]\d{4} .*torch/distributed/elastic", re.MULTILINE)
    lines = [line for line in report.split(output, maxsplit=1)[0].splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:])
