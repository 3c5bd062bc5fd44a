"""Judging by real models: behind `transformers serve`, which is not ours, and loaded here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medreason.config.judge import Judge
from medreason.judging.grade import grade
from medreason.judging.rubric import Item
from medreason.models.model_folder import EMBEDDED

pytestmark = pytest.mark.slow  # trains a model and starts a server

VERDICT = '{"evaluation": "fine", "score": 2}'
INSTRUCTIONS = "Reply with JSON alone: evaluation and score."


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, taught to give one and the same verdict whatever it is asked."""
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(EMBEDDED)
    processor: Any = AutoProcessor.from_pretrained(EMBEDDED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    target = processor.tokenizer(VERDICT + "<|im_end|>").input_ids
    for step in range(150):
        turns = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": f"Explanation to be graded: text {step % 10}"},
        ]
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompt = processor.tokenizer(text).input_ids
        ids, labels = prompt + target, [-100] * len(prompt) + target
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("strict")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a running server, which loads the model that a call names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    program = Path(sys.executable).parent / "transformers"
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as stream:
        server = subprocess.Popen(
            [program, "serve", *arguments], env=os.environ, stdout=stream, stderr=stream
        )
    try:
        until = time.monotonic() + 300
        while not _up(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def _up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def items(count: int) -> list[Item]:
    return [Item(INSTRUCTIONS, f"Explanation to be graded: text {i}", 3) for i in range(count)]


def judge(url: str, model: Path) -> Judge:
    return Judge(
        name="openai",
        kind="openai",
        model=str(model),
        base_url=url,
        attempts=1,
        timeout_s=300.0,
        max_tokens=40,
    )


def test_verdicts_of_a_served_model_are_read_with_their_tokens(
    url: str, strict: Path, tmp_path: Path
) -> None:
    graded = grade(judge(url, strict), items(6), tmp_path)
    assert [(v.score, v.evaluation) for v in graded.verdicts if v] == [(2, "fine")] * 6
    assert graded.prompt_tokens > graded.completion_tokens > 6 * 10
    assert grade(judge(url, strict), items(6), tmp_path).calls == 0


def test_verdicts_of_a_model_loaded_here_are_the_same(strict: Path, tmp_path: Path) -> None:
    graded = grade(
        Judge(name="local", kind="local", model=str(strict), max_tokens=40), items(3), tmp_path
    )
    assert [(v.score, v.evaluation) for v in graded.verdicts if v] == [(2, "fine")] * 3
    lax = grade(
        Judge(name="local", kind="local", model=str(EMBEDDED), max_tokens=40), items(1), tmp_path
    )
    assert dict(lax.failures) == {"no verdict in the reply": 1}


def test_a_served_model_without_verdicts_is_counted_and_left_out(url: str, tmp_path: Path) -> None:
    graded = grade(judge(url, EMBEDDED), items(3), tmp_path)
    assert graded.verdicts == [None] * 3
    assert dict(graded.failures) == {"no verdict in the reply": 3}
    assert not list(tmp_path.glob("*.json"))


def test_a_model_the_server_cannot_load_is_counted(url: str, tmp_path: Path) -> None:
    graded = grade(judge(url, tmp_path / "gone"), items(1), tmp_path)
    assert dict(graded.failures) == {"status 500": 1}  # where an endpoint of OpenAI says 404
