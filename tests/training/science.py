"""One training in a process of its own, or in several that work together, for the tests beside it.

Processes are forked from a server that has imported torch and trl once.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from hydra import compose, initialize_config_dir

import medreason.cli  # noqa: F401
from medreason import config as configuration
from medreason import data
from medreason.config import CONF, Config
from medreason.execution import worker
from medreason.runs.run_folder import RunFolder
from medreason.training import run as training

_SERVER = multiprocessing.get_context("forkserver")
# Not this module: before Python 3.12 the server does not know the path of the tests.
_SERVER.set_forkserver_preload(["medreason.cli", "medreason.execution.worker"])

SMALL = (
    *("modality=ct", "data.train_images=8", "data.test_images=1", "method.prompts_per_step=4"),
    *("hardware.per_device_prompts=1", "hardware.threads=1", "method.trl.learning_rate=1e-3"),
)


def composed(folder: Path, overrides: Sequence[str]) -> Config:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        given = [f"outputs={folder}", *SMALL, *overrides]
        return configuration.load(compose("config", overrides=given))


def trained(
    folder: Path,
    name: str,
    *overrides: str,
    dies_at: int | None = None,
    limit_mib: int | None = None,
) -> RunFolder:
    """Train as the worker does, into `folder / name`; SIGKILL ends it behind step `dies_at`.

    With `limit_mib`, so much beside what the process holds before it trains, it is to fail.
    """
    processes = composed(folder, overrides).hardware.processes
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = (folder, name, overrides)
    ranks = [
        _SERVER.Process(target=_rank, args=(*given, rank, processes, port, dies_at, limit_mib))
        for rank in range(processes)
    ]
    for rank in ranks:
        rank.start()
    ranks[0].join()
    for rank in ranks[1:]:
        if dies_at is not None:
            rank.kill()
        rank.join(timeout=60)
    expected = 1 if limit_mib else 0 if dies_at is None else -signal.SIGKILL
    codes = [rank.exitcode for rank in ranks]
    if dies_at is not None:  # the others may notice, and end of that, before they are killed
        codes = [code and expected for code in codes]
    assert codes == [expected] * processes, (folder / name / "said").read_text()
    return RunFolder(folder / name)


def _rank(
    folder: Path,
    name: str,
    overrides: Sequence[str],
    rank: int,
    processes: int,
    port: int,
    dies_at: int | None,
    limit_mib: int | None,
) -> None:
    run = RunFolder(folder / name)
    run.path.mkdir(exist_ok=True)
    said = os.open(run.path / "said", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if processes > 1:
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ |= {k: str(v) for k, v in given.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(processes)}
    torch.set_num_threads(1)
    config = composed(folder, overrides)
    state = worker.processes(config)
    samples = data.trained_on(config, data.load(config.data, folder / "cache"))
    if limit_mib:
        most = psutil.Process().memory_info().vms + limit_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    training.train(config, samples, run, _progress(dies_at))
    state.destroy_process_group()


def _progress(dies_at: int | None) -> Callable[..., None]:
    def progress(phase: str, done: int, total: int, note: str = "") -> None:
        if done == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress
