"""The worker as the launcher runs it: its command and environment, its end, why it failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from medreason.config import Config
from medreason.execution import contention, fork_server, gpu_slots, supervision
from medreason.execution.fork_server import ForkedWorker
from medreason.execution.gpu_slots import GpuSlots
from medreason.execution.request import RunRequest
from medreason.execution.slurm import Rendezvous
from medreason.runs import interrupts, status
from medreason.runs.interrupts import InterruptedRunError
from medreason.runs.progress import Display, duration
from medreason.runs.run_folder import RunFolder


def run(
    config: Config,
    request: RunRequest,
    display: Display,
    slots: GpuSlots,
    rendezvous: Rendezvous | None,
    *descriptors: int,
) -> None:
    """Start the worker and show its progress until it ends.

    `descriptors` are those of the locks it holds with this process, beside the GPU slots'.

    Raises:
        RuntimeError: it failed, and why.
        InterruptedRunError: a signal ended it, but none that came to this process.
    """
    interrupts.raise_if_asked()
    folder = request.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.progress.unlink(missing_ok=True)  # that of a worker that was killed
    with folder.log.open("a") as log:
        start = log.tell()
        # Run and GPUs stay held until the worker is gone, even if its parent is killed.
        held = (*descriptors, *slots.descriptors)
        process = _start(config, request, rendezvous, slots, log.fileno(), held)
        try:
            _wait(process, config, folder, display)
        finally:
            display.clear()
            if process.poll() is None:  # interrupted: Ctrl-C, a signal, an error of our own
                _stop(process)
    output = _tail(folder.log, start) if process.returncode else ""
    if supervision.was_interrupted(process.returncode, output):
        raise InterruptedRunError("a signal ended its worker")
    folder.progress.unlink(missing_ok=True)  # that of an interrupted run stays, for tables
    if process.returncode:
        # A rank that was killed wrote no error, and those of the others are its echo.
        error = None if supervision.was_killed(output) else folder.state().error
        raise RuntimeError(error or supervision.how_it_died(process.returncode, output))


def _wait(
    process: subprocess.Popen[bytes] | ForkedWorker,
    config: Config,
    folder: RunFolder,
    display: Display,
) -> None:
    """Wait until it ends. A signal lets a training end its update and write a checkpoint."""
    on_cpu = config.hardware.accelerator == "cpu"
    slowed = contention.Contention(_threads(config)) if on_cpu else None

    def show() -> None:
        display.show(folder.progress)
        if slowed and slowed.is_due and status.is_training(folder):
            line = slowed.line(supervision.ranks(process.pid))
            if line:
                display.line(line)

    def show_unless_asked() -> None:
        interrupts.raise_if_asked()
        show()

    minutes = config.hardware.hang_timeout_minutes
    try:
        supervision.wait(process, folder.progress, minutes, show_unless_asked)
    except supervision.HungError:
        raise
    # A signal; before the time of a job is over, submitit exits or raises a RuntimeError.
    except (KeyboardInterrupt, SystemExit, RuntimeError):
        seconds = config.runs.grace_seconds
        if seconds and status.is_training(folder):
            display.line(
                f"ends {_under_way(config)} and writes a checkpoint, within {duration(seconds)}; a "
                "second Ctrl-C stops it at once"
            )
            supervision.finish(process, seconds, show)
        raise


def _under_way(config: Config) -> str:
    """What a training ends first. Not its number: the worker may have ended it since it last said
    how far it is, and then ends the next one."""
    each = config.updates_per_rollout
    return f"the {each} updates on its completions" if each > 1 else "the update that is under way"


def _start(
    config: Config,
    request: RunRequest,
    rendezvous: Rendezvous | None,
    slots: GpuSlots,
    log: int,
    held: tuple[int, ...],
) -> subprocess.Popen[bytes] | ForkedWorker:
    """Start the worker, or torchrun with one for each rank; it inherits the descriptors `held`."""
    environment = _environment(config, slots)
    alone = config.hardware.accelerator == "cpu" and config.hardware.processes == 1
    if alone and sys.platform == "linux":
        return fork_server.start(
            request.folder.path, request.evaluation_key, environment, log, held
        )
    return subprocess.Popen(
        _command(config, request, rendezvous),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        pass_fds=held,
    )


def _command(config: Config, request: RunRequest, rendezvous: Rendezvous | None) -> list[str]:
    worker = ["-m", "medreason.execution.worker", str(request.folder.path), request.evaluation_key]
    if config.hardware.processes == 1:
        return [sys.executable, *worker]
    meeting = ["--standalone"]  # a free port of this machine
    if rendezvous:
        meeting = [
            *(f"--nnodes={config.hardware.nodes}", f"--node-rank={rendezvous.node}"),
            *(f"--master-addr={rendezvous.address}", f"--master-port={rendezvous.port}"),
        ]
    return [
        *(sys.executable, "-m", "torch.distributed.run", *meeting, "--no-python"),
        f"--nproc-per-node={config.hardware.devices}",
        *(sys.executable, *worker),
    ]


def _environment(config: Config, slots: GpuSlots) -> dict[str, str]:
    cuda = gpu_slots.cuda_environment(slots.devices, expandable=config.rollout.name != "vllm")
    return {
        "GOMP_SPINCOUNT": _SPINS,
        **os.environ,
        **cuda,
        "OMP_NUM_THREADS": str(_threads(config)),
        "TOKENIZERS_PARALLELISM": "false",
        "MEDREASON_PARENT": str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }


_SPINS = "10000"
"""Turns of a loop that an OpenMP thread waits for the others before it sleeps: of 300,000, the
default, a step of two threads takes five times as long beside other programs, and no less alone; of
1,000 a sixth longer alone."""


def _threads(config: Config) -> int:
    """Of each rank: `hardware.threads`, else `OMP_NUM_THREADS`, else its part of the cores."""
    of_user = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    asked = config.hardware.threads or (int(of_user) if of_user.isdecimal() else 0)
    return asked or max(contention.cores() // config.hardware.devices, 1)


def _stop(process: subprocess.Popen[bytes] | ForkedWorker) -> None:
    """End the worker and all its ranks at once."""
    for stop_signal in (signal.SIGHUP, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop_signal)
            process.wait(timeout=10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def last_lines(log: Path, start: int) -> str:
    """The end of what was written to the log behind `start`, for an error message."""
    return supervision.last_lines(_tail(log, start))


def _tail(log: Path, start: int) -> str:
    """The last megabyte of what was written to the log behind `start`."""
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - 2**20))
        return stream.read().decode(errors="replace")
