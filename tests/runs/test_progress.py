"""The lines of a run where there is no terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from medreason.runs.files import write_json
from medreason.runs.progress import Display, Waiting, duration


def test_last_line_of_a_run_has_its_place_and_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "metrics.json", {"overall": {"accuracy": 0.4812, "n": 320}})
    Display("[17/121] sft-tiny").done(tmp_path)
    assert capsys.readouterr().err == "[17/121] sft-tiny  done in 0 s: 48.1 % of 320 right\n"


def test_line_that_would_say_the_same_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 11))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    display, progress = Display("sft"), tmp_path / "progress.json"
    for done in (0, 0, 0, 1, 1, 2):
        step = {"phase": "training", "done": done, "total": 4, "left_seconds": None, "note": ""}
        write_json(progress, step)
        display.show(progress)
    assert capsys.readouterr().err == "".join(f"sft  training {i}/4\n" for i in range(3))
    for _ in range(30):  # a sign of life, now and then
        display.show(progress)
    assert capsys.readouterr().err == "sft  training 2/4\n"


@pytest.mark.parametrize(
    ("terminal", "lines"),
    [
        (False, ["a  waits for b\n", "a  waits for b  5 min 0 s\n", "a  waits for c\n"]),
        (
            True,
            [
                f"\r\033[Ka  waits for {text}"
                for text in ("b", *(f"b  {duration(100 * i)}" for i in range(1, 5)), "c")
            ]
            + ["\r\033[K"],
        ),
    ],
)
def test_what_is_waited_for_is_shown_with_the_time(
    terminal: bool,
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 1000, 100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    waiting = Waiting("a  ")
    for _ in range(5):
        waiting.show("waits for b")
    waiting.show("waits for c")
    waiting.clear()
    assert capsys.readouterr().err == "".join(lines)


def test_durations_name_their_units() -> None:
    assert [duration(s) for s in (45, 65, 7800)] == ["45 s", "1 min 5 s", "2 h 10 min"]


def test_a_line_that_jobs_of_a_sweep_share_is_shown_by_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for job in ("[1/2] sft", "[2/2] sft"):
        for text in ("columns that are not used: a", f"of {job}"):
            Display("sft-tiny", job, tmp_path / "said").line_once(text)
    for _ in range(2):
        Display("sft-tiny").line_once("of a run alone")
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] sft  columns that are not used: a",
        "[1/2] sft  of [1/2] sft",
        "[2/2] sft  of [2/2] sft",
        *["sft-tiny  of a run alone"] * 2,
    ]
