"""Trainings in processes of their own, so that a test can kill one or run several ranks of one.

A test says in overrides what differs from `SMALL`, and compares run folders. Processes are forked
from a server that has imported torch and trl once, which spares each the seconds of the imports.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

import drawn_phantoms
import psutil
import pytest
import torch
from commands import SERVER, start_as_python
from hydra import compose, initialize_config_dir

from medreason import config as configuration
from medreason import data
from medreason.config import CONF, Config
from medreason.data import validation
from medreason.execution import worker
from medreason.runs.interrupts import EXIT_CODE
from medreason.runs.run_folder import RunFolder
from medreason.training import run as training

SMALL = (
    *("modality=ct", "data.train_images=8", "data.test_images=1", "method.prompts_per_step=4"),
    *("hardware.per_device_prompts=1", "hardware.threads=1", "method.trl.learning_rate=1e-3"),
)

DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


@dataclass(frozen=True)
class Job:
    """A training as each of its ranks gets it."""

    path: Path
    """Its run folder; `output.txt` holds what all ranks printed."""
    overrides: Sequence[str]
    dies_at: int | tuple[int, str] | None
    dies_of: signal.Signals
    limit_mib: int | None
    phantoms: Path | None

    @property
    def output(self) -> Path:
        return self.path / "output.txt"

    @property
    def config(self) -> Config:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            overrides = [f"outputs={self.path.parent}", *SMALL, *self.overrides]
            return configuration.load(compose("config", overrides=overrides))


def trained(
    folder: Path,
    name: str,
    *overrides: str,
    dies_at: int | tuple[int, str] | None = None,
    dies_of: signal.Signals = signal.SIGKILL,
    limit_mib: int | None = None,
) -> RunFolder:
    """The run folder `folder / name` of a training as the worker runs it; called again, it resumes.

    `dies_at` sends `dies_of` to the first rank as soon as it has reported that optimizer step, or
    as soon as it reports that phase after it: `(step, "validating")`.
    `limit_mib` lets it allocate only so much more than its process holds at the start, and expects
    it to fail.
    """
    job = Job(folder / name, overrides, dies_at, dies_of, limit_mib, drawn_phantoms.folder)
    job.path.mkdir(exist_ok=True)
    processes = job.config.hardware.processes
    killed = dies_at is not None and dies_of == signal.SIGKILL
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = [
        SERVER.Process(target=_train, args=(job, rank, processes, port))
        for rank in range(processes)
    ]
    for rank in ranks:
        rank.start()
    while running := [rank.sentinel for rank in ranks if rank.exitcode is None]:
        connection.wait(running)
        if any(rank.exitcode for rank in ranks):  # the others may wait for it for ever
            for rank in ranks:
                rank.join(timeout=0 if killed else 60)
                rank.kill()
    ended = -signal.SIGKILL if killed else EXIT_CODE
    expected = 1 if limit_mib else 0 if dies_at is None else ended
    codes = [rank.exitcode for rank in ranks]
    if killed:  # a rank may fail because another was killed, before it is killed too
        codes = [code and expected for code in codes]
    assert codes == [expected] * processes, job.output.read_text()
    return RunFolder(job.path)


def _train(job: Job, rank: int, processes: int, port: int) -> None:
    """Train as rank `rank` of `processes`, in the process this is called in."""
    output = os.open(job.output, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if processes > 1:  # what torchrun sets
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ |= {name: str(number) for name, number in numbers.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(processes)}
    start_as_python()
    torch.set_num_threads(1)
    drawn_phantoms.share(job.phantoms)
    config = job.config
    state = worker.processes(config)
    samples = data.samples_of(config)
    if job.limit_mib:
        most = psutil.Process().memory_info().vms + job.limit_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    training.train(
        *(config, data.trained_on(config, samples), RunFolder(job.path)),
        listener(job.dies_at, lambda: os.kill(os.getpid(), job.dies_of)),
        questions=validation.questions(config, samples),
    )
    state.destroy_process_group()


def listener(dies_at: int | tuple[int, str] | None, die: Callable[[], None]) -> Callable[..., None]:
    """A listener to progress that calls `die` at step `dies_at`, or in a phase after it."""
    step, place = dies_at if isinstance(dies_at, tuple) else (dies_at, "training")
    reached: set[int] = set()

    def progress(phase: str, done: int, total: int, note: str = "") -> None:
        if phase == "training":
            reached.add(done)
        if phase == place and step in reached:
            die()

    return progress
