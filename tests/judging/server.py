"""A small real HTTP server that judges, badly where the question asks for it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Misdeed = str | None


class Server(ThreadingHTTPServer):
    """`calls` counts the questions that came in, by their text."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, delay_s: float = 0.0, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.delay_s, self.key = delay_s, key
        self.calls: Counter[str] = Counter()
        self.together: threading.Barrier | None = None
        """Questions that begin with `together` are answered when so many are in at once."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.calls[question] += 1
            first = self.server.calls[question] == 1
        time.sleep(self.server.delay_s)
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.server.key and given != self.server.key:
            return self._send(401, {"error": {"message": f"Incorrect API key: {given}"}})
        word = question.split()[0]
        if word == "together" and self.server.together:
            self.server.together.wait(timeout=100)
        if word in ("429", "500") and first:
            return self._send(int(word), {"error": {"message": "later"}})
        if word == "wait" and first:
            return self._send(429, {"error": {"message": "later"}}, Retry_After="1.5")
        if word == "mixed" and first:
            return self._send(500, {"error": {"message": "later"}})
        if word == "404":
            return self._send(404, {"error": {"message": "no such model"}})
        if word == "400":
            return self._send(400, {"error": {"message": "no"}})
        if word == "silent":
            time.sleep(1.5)
            return None
        if word == "cut":  # fewer bytes than promised, then the end
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"mess')
            self.close_connection = True
            return None
        if word == "shape":
            return self._send(200, {"answer": 42})
        if word == "bare":
            return self._send(200, {"choices": [{"text": "2"}]})
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
        return self._send(
            200,
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": usage,
             "choices": [{"index": 0, "finish_reason": "stop", "message": message}]},
        )  # fmt: skip

    def _send(self, status: int, body: dict[str, Any], **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(delay_s: float = 0.0, key: str | None = None) -> Iterator[Server]:
    server = Server(delay_s, key)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
