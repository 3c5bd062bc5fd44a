"""A small real HTTP server with OpenAI's chat protocol, which replies as a test says."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any

from json_server import JsonHandler, JsonServer, running
from PIL import Image

from medreason.generation.served_model import PROBE_PROMPT

Given = dict[str, Any] | int | str
"""A reply (content and what else a message has), a status, `cut` or `silent`."""
Answer = Callable[[str, Image.Image | None], Given]
Places = list[dict[str, dict[str, float]] | None]
"""vLLM's log-probabilities of a prompt: of each place id -> `logprob`, of the first none."""
Scored = Callable[[str, Image.Image | None, str], Places | int]
"""Of a prompt whose reply begins with a text."""


def says(content: str | None, *, tokens: tuple[int, int] = (9, 5), **others: Any) -> dict[str, Any]:
    return {"content": content, "tokens": tokens, "finish_reason": "stop", **others}


class ChatServer(JsonServer):
    """`calls` counts the requests by prompt, without those of the probe."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(_Handler)
        self.answer = answer
        self.probed: Answer = self.answer_probe
        self.models: list[str] | None = ["m"]
        self.key: str | None = None
        self.bodies: list[dict[str, Any]] = []
        self.scored: Scored = lambda *_: []

    @staticmethod
    def answer_probe(_: str, image: Image.Image | None) -> Given:
        return says("A gradient.", tokens=(9 + (16 if image else 0), 3))


class _Handler(JsonHandler, BaseHTTPRequestHandler):
    server: ChatServer

    def do_GET(self) -> None:
        if self.server.models is None:
            return self.send(404, {"error": {"message": "no list"}})
        return self.send(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = self.read()
        if self.server.key and self.key != self.server.key:
            return self.send(401, {"error": {"message": f"Incorrect API key: {self.key}"}})
        if body.get("prompt_logprobs") == 0:
            return self._score(body)
        prompt, image = _read(body["messages"])
        if prompt == PROBE_PROMPT:
            return self._reply(self.server.probed(prompt, image))
        with self.server.lock:
            self.server.calls[prompt] += 1
            self.server.bodies.append(body)
        return self._reply(self.server.answer(prompt, image))

    def _score(self, body: dict[str, Any]) -> None:
        assert body["continue_final_message"]
        assert not body["add_generation_prompt"]
        *question, beginning = body["messages"]
        assert beginning["role"] == "assistant"
        prompt, image = _read(question)
        with self.server.lock:
            self.server.calls[prompt] += 1
        places = self.server.scored(prompt, image, beginning["content"])
        if isinstance(places, int):
            return self._reply(places)
        choice = {"index": 0, "finish_reason": "length", "message": {"content": "x"}}
        return self.send(200, {"id": "1", "choices": [choice], "prompt_logprobs": places})

    def _reply(self, reply: Given) -> None:
        if isinstance(reply, int):
            return self.send(reply, {"error": {"message": f"no, {self.key}"}})
        if reply == "silent":
            time.sleep(1.5)
            return None
        if reply == "cut":
            return self.cut_off()
        assert isinstance(reply, dict)
        reply = {**reply}
        asked, replied = reply.pop("tokens")
        usage = {"prompt_tokens": asked, "completion_tokens": replied, "total_tokens": 0}
        choice = {"index": 0, "finish_reason": reply.pop("finish_reason"), "message": reply}
        return self.send(200, {"id": "1", "model": "m", "usage": usage, "choices": [choice]})


def _read(messages: list[dict[str, Any]]) -> tuple[str, Image.Image | None]:
    (message,) = messages
    assert message["role"] == "user"
    if isinstance(message["content"], str):
        return message["content"], None
    first, second = message["content"]
    kind, _, data = first["image_url"]["url"].partition(",")
    assert (kind, second["type"]) == ("data:image/png;base64", "text")
    return second["text"], Image.open(BytesIO(base64.b64decode(data)))


def serving(answer: Answer) -> AbstractContextManager[ChatServer]:
    return running(ChatServer(answer))
