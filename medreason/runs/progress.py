"""How far a worker is: it writes one small file, the parent shows it as a bar or as lines."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from medreason.runs.files import read_json, write_json

_LINE_SECONDS = 10.0


class Reporter:
    """The worker's side: at most a few writes a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = 0.0
        self._phase, self._began, self._first = "", 0.0, 0

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of a phase; `note` is a figure to show beside it."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._began, self._first, self._written = phase, now, done, 0.0
        if now - self._written < 0.2 and done < total:
            return
        self._written = now
        pace = (now - self._began) / (done - self._first) if done > self._first else None
        left = pace * (total - done) if pace is not None else None
        write_json(
            self._path,
            {"phase": phase, "done": done, "total": total, "left_seconds": left, "note": note},
        )


class Display:
    """The parent's side."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar = sys.stderr.isatty()
        self._phase, self._shown, self._began = "", 0.0, time.monotonic()

    def line(self, text: str) -> None:
        self.clear()
        print(f"{self._name}  {text}", file=sys.stderr, flush=True)  # noqa: T201

    def done(self, evaluation: Path) -> None:
        """The last line: how long it took, and what came out."""
        found = read_json(evaluation / "metrics.json")["overall"]
        took = duration(time.monotonic() - self._began)
        self.line(f"done in {took}: {100 * found['accuracy']:.1f} % of {found['n']} right")

    def show(self, path: Path) -> None:
        """What the file says: redrawn on a terminal, elsewhere a line every 10 s."""
        now = time.monotonic()
        if not self._bar and now - self._shown < _LINE_SECONDS and self._phase:
            return
        try:
            state = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            state = {"phase": "starting", "done": 0, "total": 0, "left_seconds": None, "note": ""}
        if not self._bar and state["phase"] == self._phase == "starting":
            return
        self._phase, self._shown = state["phase"], now
        text = _text(state, now - self._began)
        if self._bar:
            print(f"\r\033[K{self._name}  {text}", end="", file=sys.stderr, flush=True)  # noqa: T201
        else:
            print(f"{self._name}  {text}", file=sys.stderr, flush=True)  # noqa: T201

    def clear(self) -> None:
        if self._bar:
            print("\r\033[K", end="", file=sys.stderr, flush=True)  # noqa: T201


class Bar:
    """Progress of work in this process: redrawn on a terminal, elsewhere a line every 10 s."""

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._terminal = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:  # what was done before says nothing about the pace
            self._first, self._began = done - 1, now
        last = self._terminal and done == total
        if now - self._shown < (0.2 if self._terminal else _LINE_SECONDS) and not last:
            return
        self._shown = now
        left = (now - self._began) / (done - self._first) * (total - done)
        state = {"phase": self._phase, "done": done, "total": total, "note": ""}
        line = _text(state | {"left_seconds": left}, 0)
        start, end = ("\r\033[K", "\n" if last else "") if self._terminal else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)  # noqa: T201


def _text(state: dict, elapsed: float) -> str:
    if not state["total"]:
        return f"{state['phase']} {elapsed:.0f} s"
    left = state["left_seconds"]
    ahead = (
        f"  {duration(left)} left" if left is not None and state["done"] < state["total"] else ""
    )
    note = f"  {state['note']}" if state["note"] else ""
    return f"{state['phase']} {state['done']}/{state['total']}{ahead}{note}"


def duration(seconds: float) -> str:
    """`45 s`, `3:05 min`, `2:10 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
