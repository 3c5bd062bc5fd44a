"""From a configuration to a finished run folder: skip, resume or start the worker process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from medreason import config as configuration
from medreason import data
from medreason.config import Config, machine
from medreason.data import audit
from medreason.execution import gpu_slots, slurm, supervision
from medreason.execution.gpu_slots import GpuSlots
from medreason.execution.request import RunRequest, run_request
from medreason.execution.slurm import Rendezvous
from medreason.judging import grade
from medreason.models import model_folder
from medreason.runs import integrity
from medreason.runs.files import atomic, remove_unfinished, write_json
from medreason.runs.outcomes import BusyError
from medreason.runs.progress import Display
from medreason.runs.run_folder import RunFolder, State


def run(config: Config, place: str = "") -> tuple[RunRequest, bool]:
    """Do what is not done yet of the configured work; the truth says whether there was any.

    `place` stands in front of what is said on the way: which job of how many.

    Raises:
        NoDataError: the cell has no data.
        BusyError: another process is at it.
        ValueError: bad input, refused before any training.
        RuntimeError: the worker process failed; the first line of its error and its log are named.
    """
    asked = run_request(config)
    display = Display(f"{place}{asked.folder.path.name}")
    if asked.folder.state().state == "done" and _finished(config, asked):
        _join_sweep(config, asked)
        display.line("done before; shown from its folder")
        return asked, False
    meeting = slurm.rendezvous(config.hardware)
    if meeting and meeting.node:
        _join_node(config, asked, display, meeting)
        return asked, True
    with asked.folder.locked() as descriptor:
        _join_sweep(config, asked)
        if descriptor is None:
            raise BusyError(asked.folder.path)
        if _finished(config, asked):  # by the process that held it, or killed on its last line
            asked.folder.update(state="done", error=None)
            return asked, False
        state = asked.folder.state()
        if state.state == "failed" and not config.runs.retry_failed:
            raise ValueError(
                f"{asked.folder.path} failed before ({state.error}); "
                "runs.retry_failed=true tries again"
            )
        machine.check(config)
        _refuse_full_disk(config)
        if not state.trained:
            _try_judge(config)
        if state.attempts and not state.trained:
            again = any(asked.folder.checkpoints.glob("*"))
            display.line("resumed" if again else "started again")
        with gpu_slots.taken(config.hardware, lambda: display.line("waits for a GPU")) as devices:
            _begin(config, asked, state)
            log = asked.folder.log
            began = log.stat().st_size if log.exists() else 0
            try:
                _work(config, asked, display, devices, meeting, descriptor)
            except RuntimeError as error:
                asked.folder.update(state="failed", error=_first_line(error))
                raise RuntimeError(
                    f"{asked.folder.path.name}: {error} (see {log})"
                    f"\n{supervision.last_lines(_tail(log, began))}"
                ) from error
        display.done(asked.folder.evaluation(asked.evaluation_key))
    return asked, True


def _try_judge(config: Config) -> None:
    """An endpoint that a reward asks is tried here, and not behind a loaded model in step 1."""
    asked = next((reward.judge for reward in config.reward.values() if reward.judge), None)
    if asked and config.method.algorithm == "grpo" and config.judge.kind == "openai":
        cache = config.folder / "cache" / "verdicts"
        grade.try_out(config.judge, config.rubric.check(asked), cache)


def _join_node(config: Config, asked: RunRequest, display: Display, meeting: Rendezvous) -> None:
    """A further node of a job: its ranks join those of the first node, which owns the folder."""
    machine.check(config)
    deadline = time.monotonic() + 60 * config.hardware.hang_timeout_minutes
    while asked.folder.state().state != "running":
        display.line("waits for the first node")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{asked.folder.path.name}: the first node did not start")
        time.sleep(5)
    with gpu_slots.taken(config.hardware, lambda: display.line("waits for a GPU")) as devices:
        _work(config, asked, display, devices, meeting)


def _finished(config: Config, asked: RunRequest) -> bool:
    """Done and whole. An evaluation that was damaged is done again, the weights are kept.

    Raises:
        ValueError: the folder was edited since.
    """
    state = asked.folder.state()
    if not state.trained:
        return False
    if asked.folder.config.exists():
        integrity.refuse_other_config(asked.folder, asked.parts)
    if asked.evaluation_key not in state.evaluations:
        return False
    if not integrity.is_whole(asked.folder, asked.evaluation_key):
        print(  # noqa: T201
            f"{asked.folder.evaluation(asked.evaluation_key)}: changed or cut off since it was "
            "finished; evaluated again",
            file=sys.stderr,
        )
        kept = [found for found in state.evaluations if found != asked.evaluation_key]
        asked.folder.update(evaluations=kept)
        return False
    return True


def _join_sweep(config: Config, asked: RunRequest) -> None:
    """A folder says which sweeps it belongs to, and which of its evaluations each asked for."""
    sweeps = asked.folder.state().sweeps
    if sweeps.get(config.sweep) != asked.evaluation_key:
        asked.folder.update(sweeps=sweeps | {config.sweep: asked.evaluation_key})


def _begin(config: Config, asked: RunRequest, state: State) -> None:
    remove_unfinished(asked.folder.path)
    with atomic(asked.folder.config) as unfinished:
        configuration.write(config, unfinished)
    _write_data(config, asked.folder)
    asked.folder.update(
        state="running",
        train_key=asked.train_key,
        train_parts=asked.parts,
        attempts=state.attempts + 1,
        error=None,
    )


def _write_data(config: Config, folder: RunFolder) -> None:
    """What the run trains and tests on, with the audit's warnings, for its table and MLflow."""
    samples = data.load(config.data, config.folder / "cache")
    train, test = data.trained_on(config, samples), data.tested_on(config, samples)
    write_json(folder.data, audit.of_run(train, test))


def _work(
    config: Config,
    asked: RunRequest,
    display: Display,
    devices: GpuSlots,
    meeting: Rendezvous | None,
    *held: int,
) -> None:
    """Start the worker and show its progress until it ends.

    Raises:
        RuntimeError: it failed, and why.
    """
    folder = asked.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.log.open("a") as log:
        began = log.tell()
        process = subprocess.Popen(
            _command(config, asked, meeting),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(config, devices),
            start_new_session=True,
            # Run and devices stay held until the worker is gone, though its parent be killed.
            pass_fds=(*held, *devices.descriptors),
        )
        try:
            supervision.wait(
                process,
                folder.progress,
                config.hardware.hang_timeout_minutes,
                lambda: display.show(folder.progress),
            )
        finally:
            if process.poll() is None:  # interrupted: Ctrl-C, a signal, an error of our own
                _stop(process)
                folder.update(error="interrupted")
            display.clear()
            folder.progress.unlink(missing_ok=True)
    if process.returncode:
        said = _tail(folder.log, began)
        told = None if supervision.was_killed(said) else folder.state().error
        raise RuntimeError(told or supervision.how_it_died(process.returncode, said))


def _tail(log: Path, began: int = 0) -> str:
    """The last megabyte of what was written to the log since then."""
    with log.open("rb") as stream:
        stream.seek(max(began, log.stat().st_size - 2**20))
        return stream.read().decode(errors="replace")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _command(config: Config, asked: RunRequest, meeting: Rendezvous | None) -> list[str]:
    worker = ["-m", "medreason.execution.worker", str(asked.folder.path), asked.evaluation_key]
    if config.hardware.processes == 1:
        return [sys.executable, *worker]
    where = ["--standalone"]  # a free port of this machine
    if meeting:
        where = [
            *(f"--nnodes={config.hardware.nodes}", f"--node-rank={meeting.node}"),
            *(f"--master-addr={meeting.address}", f"--master-port={meeting.port}"),
        ]
    return [
        *(sys.executable, "-m", "torch.distributed.run", *where, "--no-python"),
        f"--nproc-per-node={config.hardware.devices}",
        *(sys.executable, *worker),
    ]


def _environment(config: Config, devices: GpuSlots) -> dict[str, str]:
    threads = config.hardware.threads or max((os.cpu_count() or 1) // config.hardware.devices, 1)
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "MEDREASON_PARENT": str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": ",".join(devices.devices),  # none on a CPU
    }


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the worker and all its ranks."""
    for deadly in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, deadly)
            process.wait(timeout=10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _refuse_full_disk(config: Config) -> None:
    """Weights, two checkpoints with optimizer states, and room for the rest."""
    if config.method.algorithm == "none":
        return
    needed = 100 * 2**20 + 8 * model_folder.size_on_disk(config.model.path)
    free = shutil.disk_usage(existing(config.folder)).free
    if free < needed:
        raise ValueError(
            f"outputs={config.outputs}: {free / 2**30:.1f} GiB free, about {needed / 2**30:.1f} "
            "GiB needed for checkpoints; free some space or set outputs=... to another disk"
        )


def existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.resolve()
    return path if path.exists() else existing(path.parent)
