"""A small real HTTP server that judges, badly where the question asks for it."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler

from json_server import JsonHandler, JsonServer, running

Misdeed = str | None


class Server(JsonServer):
    """`calls` counts the questions that came in, by their text."""

    def __init__(self, delay_s: float = 0.0, key: str | None = None) -> None:
        super().__init__(_Handler)
        self.delay_s, self.key = delay_s, key
        self.together: threading.Barrier | None = None
        """Questions that begin with `together` are answered when so many are in at once."""


class _Handler(JsonHandler, BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        question = self.read()["messages"][-1]["content"]
        with self.server.lock:
            self.server.calls[question] += 1
            first = self.server.calls[question] == 1
        time.sleep(self.server.delay_s)
        if self.server.key and self.key != self.server.key:
            return self.send(401, {"error": {"message": f"Incorrect API key: {self.key}"}})
        word = question.split()[0]
        if word == "together" and self.server.together:
            self.server.together.wait(timeout=100)
        if word in ("429", "500") and first:
            return self.send(int(word), {"error": {"message": "later"}})
        if word == "wait" and first:
            return self.send(429, {"error": {"message": "later"}}, Retry_After="1.5")
        if word == "mixed" and first:
            return self.send(500, {"error": {"message": "later"}})
        if word == "404":
            return self.send(404, {"error": {"message": "no such model"}})
        if word == "400":
            return self.send(400, {"error": {"message": "no"}})
        if word == "silent":
            time.sleep(1.5)
            return None
        if word == "cut":
            return self.cut_off()
        if word == "shape":
            return self.send(200, {"answer": 42})
        if word == "bare":
            return self.send(200, {"choices": [{"text": "2"}]})
        contents = {
            "text": "I would say two.",
            "mixed": "I would say two.",
            "half": '{"evaluation": "It is fi',
            "seven": '{"evaluation": "x", "score": 7}',
            "minus": '{"evaluation": "x", "score": -1}',
            "nan": '{"evaluation": "x", "score": NaN}',
        }
        content = contents.get(word, 'Sure: {"evaluation": "fine", "score": 2}')
        message = {"role": "assistant", "content": content}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return self.send(
            200,
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": usage,
             "choices": [{"index": 0, "finish_reason": "stop", "message": message}]},
        )  # fmt: skip


def serving(delay_s: float = 0.0, key: str | None = None) -> AbstractContextManager[Server]:
    return running(Server(delay_s, key))
