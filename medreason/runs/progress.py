"""Progress of a worker: it writes one small file, the launcher shows it as a redrawn line or lines.

Neither tqdm nor rich: what is drawn comes from another process, and logs need whole lines.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

from medreason.console import notice
from medreason.metrics import Metric
from medreason.runs.files import read_json, write_json

_LINE_SECONDS = 10.0
_UNCHANGED_SECONDS = 300.0
_REDRAW_SECONDS = 0.2
_ERASE_LINE = "\r\033[K"
_STARTING = {"phase": "starting", "done": 0, "total": 0, "left_seconds": None, "note": ""}


class Reporter:
    """The worker's side: at most a few writes a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = 0.0
        self._phase, self._began, self._first = "", 0.0, 0

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of a phase; `note` is a metric to show beside it."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._began, self._first, self._written = phase, now, done, 0.0
        if now - self._written < _REDRAW_SECONDS and done < total:
            return
        self._written = now
        left = _seconds_left(now - self._began, done - self._first, total - done)
        write_json(
            self._path,
            {"phase": phase, "done": done, "total": total, "left_seconds": left, "note": note},
        )


class Display:
    """The launcher's side."""

    def __init__(self, folder: str, label: str = "", said: Path | None = None) -> None:
        """`label` stands in each line in place of the run folder's name, which the last one has.
        `said` is a folder in which jobs of a sweep note the lines that one of them has shown."""
        self._folder, self._label, self._said = folder, label or folder, said
        self._terminal = sys.stderr.isatty()
        self._phase, self._shown, self._began = "", 0.0, time.monotonic()
        self._done = -1
        self._waiting = Waiting(f"{self._label}  ")

    def line(self, text: str) -> None:
        self.clear()
        notice(f"{self._label}  {text}")

    def line_once(self, text: str) -> None:
        """A line that jobs of a sweep share: the first of them shows it, in whatever process."""
        if self._said:
            self._said.mkdir(parents=True, exist_ok=True)
            try:
                (self._said / hashlib.sha256(text.encode()).hexdigest()[:20]).touch(exist_ok=False)
            except FileExistsError:
                return
        self.line(text)

    def wait(self, awaited: str) -> None:
        """Call this again and again while nothing else can be shown. See `Waiting`."""
        self._waiting.show(f"waits for {awaited}")

    def end(self, text: str) -> None:
        """The last line; it names the run folder."""
        self.line(text if self._label == self._folder else f"{text}, {self._folder}")

    def done(self, evaluation: Path) -> None:
        """The last line: how long it took, and the accuracy."""
        overall = read_json(evaluation / "metrics.json")["overall"]
        took, n = duration(time.monotonic() - self._began), overall[Metric.N]
        self.end(f"done in {took}: {100 * overall[Metric.ACCURACY]:.1f} % of {n:,} right")

    def show(self, path: Path) -> None:
        """Show the worker's file: redrawn on a terminal, elsewhere a line every 10 s that brought
        a step, and one every 5 minutes that did not."""
        now = time.monotonic()
        if not self._terminal and now - self._shown < _LINE_SECONDS and self._phase:
            return
        try:
            progress = read_json(path)
        except (FileNotFoundError, ValueError):
            progress = _STARTING
        phase, done = progress["phase"], progress["done"]
        unchanged = (phase, done) == (self._phase, self._done)
        if not self._terminal and unchanged and now - self._shown < _UNCHANGED_SECONDS:
            return
        self._phase, self._done, self._shown = phase, done, now
        _draw(f"{self._label}  {_text(progress, now - self._began)}", terminal=self._terminal)

    def clear(self) -> None:
        if self._terminal:
            notice(_ERASE_LINE, end="")


class Waiting:
    """What is waited for and for how long: redrawn on a terminal, elsewhere a line at first and
    every 5 minutes."""

    def __init__(self, label: str = "") -> None:
        """`label` stands ahead of each line."""
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._text, self._began, self._shown = "", 0.0, 0.0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if text != self._text:
            self._text, self._began = text, now
        elif not self._terminal and now - self._shown < _UNCHANGED_SECONDS:
            return
        self._shown = now
        waited = f"  {duration(now - self._began)}" if now > self._began else ""
        _draw(f"{self._label}{text}{waited}", terminal=self._terminal)

    def clear(self) -> None:
        if self._terminal and self._text:
            notice(_ERASE_LINE, end="")


class Bar:
    """Progress of work in this process: redrawn on a terminal, elsewhere a line every 10 s."""

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._terminal = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:  # what was done before says nothing about the throughput
            self._first, self._began = done - 1, now
        last = self._terminal and done == total
        if now - self._shown < (_REDRAW_SECONDS if self._terminal else _LINE_SECONDS) and not last:
            return
        self._shown = now
        left = _seconds_left(now - self._began, done - self._first, total - done)
        progress = {"phase": self._phase, "done": done, "total": total, "left_seconds": left}
        _draw(_text(progress | {"note": ""}, 0), terminal=self._terminal)
        if last:
            notice("")


def _seconds_left(seconds: float, done: int, ahead: int) -> float | None:
    """At the throughput so far; None where nothing was done yet."""
    return seconds / done * ahead if done > 0 else None


def _draw(text: str, *, terminal: bool) -> None:
    if terminal:
        notice(f"{_ERASE_LINE}{text}", end="")
    else:
        notice(text)


def _text(progress: dict[str, Any], elapsed: float) -> str:
    if not progress["total"]:
        return f"{progress['phase']} {elapsed:.0f} s"
    left = progress["left_seconds"] if progress["done"] < progress["total"] else None
    ahead = "" if left is None else f"  {duration(left)} left"
    note = f"  {progress['note']}" if progress["note"] else ""
    return f"{progress['phase']} {progress['done']}/{progress['total']}{ahead}{note}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
