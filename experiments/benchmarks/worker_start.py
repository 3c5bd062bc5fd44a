"""CPU seconds until a worker reads its run: started anew, and forked from a server.

    python experiments/benchmarks/worker_start.py

Both are given a run folder without a configuration, so that each ends where its work would begin.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from medreason.console import show
from medreason.execution import fork_server

ANEW, FORKED = 5, 20


def main() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEDREASON_PARENT": str(os.getpid())}
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("w+") as log:
        command = [sys.executable, "-m", fork_server._WORKER, name, "key"]
        anew, wall = [], []
        for _ in range(ANEW):
            before, start = children(os.getpid()), time.perf_counter()
            subprocess.run(command, env=environment, stdout=log, stderr=log)
            anew.append(children(os.getpid()) - before)
            wall.append(time.perf_counter() - start)
        report("anew", anew, wall)
        worker = fork_server.start(Path(name), "key", environment, log.fileno(), ())
        worker.wait()  # the server has imported now
        server = worker._server.process.pid
        imports = psutil.Process(server).cpu_times()
        show(f"server: {imports.user + imports.system:.2f} CPU s, once")
        forked, wall = [], []
        for _ in range(FORKED):
            before, start = busy(server), time.perf_counter()
            fork_server.start(Path(name), "key", environment, log.fileno(), ()).wait()
            forked.append(busy(server) - before)
            wall.append(time.perf_counter() - start)
        report("forked", forked, wall)
        show(f"anew / forked: {statistics.mean(anew) / statistics.mean(forked):.1f}")
        log.seek(0)
        ends = [line for line in log if line.startswith("FileNotFoundError")]
        assert len(ends) == ANEW + 1 + FORKED, ends


def children(process: int) -> float:
    """CPU seconds of its children that have ended."""
    times = psutil.Process(process).cpu_times()
    return times.children_user + times.children_system


def busy(process: int) -> float:
    times = psutil.Process(process).cpu_times()
    return children(process) + times.user + times.system


def report(what: str, seconds: list[float], wall: list[float]) -> None:
    # The kernel counts in hundredths of a second, hence the mean.
    show(
        f"{what}: {statistics.mean(seconds):.3f} CPU s (of {len(seconds)}: "
        f"{min(seconds):.2f} to {max(seconds):.2f}), {statistics.mean(wall):.3f} s"
    )


if __name__ == "__main__":
    main()
