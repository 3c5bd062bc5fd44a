"""Replies of a served model on disk, so that the same question is sent once.

    cache/replies/<digest of server and model>.jsonl    a line for each reply, as soon as it is here

A reply is kept under what was asked, whatever evaluation asks it and however often that is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from medreason.config import Model
from medreason.console import notice
from medreason.generation.parallel_requests import FailedError
from medreason.generation.rows import Completion, EvaluationRow
from medreason.generation.served_model import PROBE_TOKENS, Ask, Probe, Score

_BUSY = 429


def reply_to(
    model: Model, replies: KeptReplies, ask: Ask, row: EvaluationRow, max_tokens: int
) -> Completion:
    """The kept reply to a row, or the server's, which is kept; thread-safe.

    Raises:
        FailedError: the server gave none.
    """
    image = row.image_of(row.sample)
    key = _key(model, row.prompt, image, max_tokens)
    with replies.one_at_a_time(key):  # two rows may ask the same
        if kept := replies.get(key):
            return kept
        with _counting_losses():
            completion = ask(row.prompt, image, max_tokens)
        replies.add(key, completion)
    return completion


def scores_of(
    model: Model, replies: KeptReplies, score: Score, row: EvaluationRow, texts: Sequence[str]
) -> list[float]:
    """The kept log-probabilities of the texts behind a row's prompt, or the server's, which are
    kept; thread-safe.

    Raises:
        FailedError: the server gave none.
    """
    image = row.image_of(row.sample)
    key = f"scores {_key(model, row.prompt, image, 1)} {json.dumps(texts)}"
    with replies.one_at_a_time(key):
        if kept := replies.scores.get(key):
            return kept
        with _counting_losses():
            scores = score(row.prompt, image, texts)
        replies.add_scores(key, scores)
    return scores


@contextmanager
def _counting_losses() -> Iterator[None]:
    """Where all requests end so, the server is as good as lost: without quota, or crashed."""
    try:
        yield
    except FailedError as error:
        status = error.status or 0
        error.lost |= status == _BUSY or status >= 500
        raise


def _key(model: Model, prompt: str, image: Image.Image | None, max_tokens: int) -> str:
    """The same for the same request to the same model."""
    pixels = image and [image.size, hashlib.sha256(image.tobytes()).hexdigest()]
    fields = model.endpoint.fields(max_tokens)
    request = json.dumps([model.endpoint.identity, fields, prompt, pixels], sort_keys=True)
    return hashlib.sha256(request.encode()).hexdigest()[:32]


class KeptReplies:
    """An append-only file of replies, a line of JSON each. A kill or another process leaves at most
    a line that is cut off, which is passed over."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._replies: dict[str, Completion] = {}
        self.scores: dict[str, list[float]] = {}
        self._requests: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        for line in content.split(b"\n"):
            self._read(line)
        self._append_to = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        if content and not content.endswith(b"\n"):
            self._write(b"\n")

    def _read(self, line: bytes) -> None:
        try:
            values = json.loads(line)
        except ValueError:  # cut off, or the empty end of the file
            return
        key = values.pop("key")
        if "scores" in values:
            self.scores[key] = values["scores"]
        else:
            self._replies[key] = Completion(**values)

    def one_at_a_time(self, key: str) -> threading.Lock:
        """Held by whoever asks for this reply."""
        with self._lock:
            return self._requests[key]

    def get(self, key: str) -> Completion | None:
        return self._replies.get(key)

    def add(self, key: str, completion: Completion) -> None:
        self._write(json.dumps({"key": key, **asdict(completion)}).encode() + b"\n")
        self._replies[key] = completion

    def add_scores(self, key: str, scores: list[float]) -> None:
        self._write(json.dumps({"key": key, "scores": scores}).encode() + b"\n")
        self.scores[key] = scores

    def refuse_other_server(self, probe: Probe, model: Model) -> None:
        """Compare the probe with the one of the kept replies; the first one is kept with them.

        Raises:
            ValueError: the server counts other tokens of the same prompt.
        """
        for image, now in ((None, probe.text), (probe.shown, probe.image)):
            key = f"probe {_key(model, now.prompt, image, PROBE_TOKENS)}"
            before = self.get(key)
            if before is None:
                self.add(key, now)
            elif before.prompt_tokens != now.prompt_tokens:
                raise ValueError(
                    f"model.endpoint.model={model.endpoint.model!r}: the server counts "
                    f"{now.prompt_tokens} tokens of a prompt of which it counted "
                    f"{before.prompt_tokens} when the replies in {self._path} were made: another "
                    "model, chat template or pixel limit under the same name; serve that one "
                    "again, or delete the file to ask everything anew"
                )
            elif before.text != now.text:
                notice(
                    f"{model.endpoint.model} says {now.text!r} to a prompt to which it said "
                    f"{before.text!r} when the replies in {self._path} were made; if it is another "
                    "model under the same name, delete that file"
                )

    def _write(self, line: bytes) -> None:
        with self._lock:  # one call: lines of several processes do not mix
            if os.write(self._append_to, line) != len(line):
                raise OSError(f"{self._path}: the disk is full; free some space")
