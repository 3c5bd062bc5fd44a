"""Judging against a real server: what goes wrong is tried again, then counted, never a 0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from medreason.config.judge import Judge
from medreason.judging.grade import grade
from medreason.judging.rubric import Item, NoVerdictError, read
from medreason.models.model_folder import EMBEDDED

sys.path.insert(0, str(Path(__file__).parent))
from server import Server, serving


def judge(server: Server | str, **settings: object) -> Judge:
    url = server if isinstance(server, str) else server.url
    fast = {"attempts": 3, "timeout_s": 0.5, "concurrency": 4}
    return Judge(name="openai", kind="openai", model="m", base_url=url, **(fast | settings))  # pyright: ignore


def items(*questions: str) -> list[Item]:
    return [Item("Reply with JSON: evaluation, score", question, 3) for question in questions]


def test_verdicts_come_in_order_and_equal_questions_are_asked_once(tmp_path: Path) -> None:
    with serving() as server:
        graded = grade(judge(server, price_in=10.0), items("a", "b", "a"), tmp_path)
        assert [v.score for v in graded.verdicts if v] == [2, 2, 2]
        assert (graded.calls, graded.prompt_tokens, graded.completion_tokens) == (2, 200, 20)
        assert graded.cost(judge(server, price_in=10.0)) == pytest.approx(0.002)
        assert max(server.calls.values()) == 1
        again = grade(judge(server), items("b", "a", "c"), tmp_path)
        assert again.calls == 1
        assert max(server.calls.values()) == 1


@pytest.mark.parametrize("trouble", ["429 later", "500 later"])
def test_passing_trouble_is_tried_again(tmp_path: Path, trouble: str) -> None:
    with serving() as server:
        graded = grade(judge(server), items("good", trouble), tmp_path)
        assert [v.score for v in graded.verdicts if v] == [2, 2]
        assert server.calls[trouble] == 2


def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    with serving() as server:
        began = time.monotonic()
        graded = grade(judge(server, timeout_s=5.0), items("wait"), tmp_path)
        assert time.monotonic() - began > 1.5  # by itself the client waits 0.5 s
        assert [v.score for v in graded.verdicts if v] == [2]


def test_attempts_are_counted_over_all_kinds_of_failure(tmp_path: Path) -> None:
    with serving() as server:
        graded = grade(judge(server, attempts=3, timeout_s=5.0), items("mixed"), tmp_path)
        assert dict(graded.failures) == {"no verdict in the reply": 1}
        assert server.calls["mixed"] == 3


@pytest.mark.parametrize(
    ("trouble", "reason", "calls"),
    [
        ("silent", "no answer in 0.3 s", 2),
        ("cut", "connection lost", 2),
        ("shape", "the reply is no chat completion", 2),
        ("bare", "the reply is no chat completion", 2),
        ("text", "no verdict in the reply", 2),
        ("half", "no verdict in the reply", 2),
        ("seven", "no verdict in the reply", 2),
        ("minus", "no verdict in the reply", 2),
        ("nan", "no verdict in the reply", 2),
        ("400", "status 400", 1),
    ],
)
def test_lasting_trouble_is_counted_and_left_out(
    tmp_path: Path, trouble: str, reason: str, calls: int
) -> None:
    with serving() as server:
        settings = {"attempts": 2, "timeout_s": 0.3 if trouble == "silent" else 5.0}
        graded = grade(judge(server, **settings), items("good", trouble), tmp_path)
        assert graded.verdicts[0]
        assert graded.verdicts[1] is None
        assert dict(graded.failures) == {reason: 1}
        assert server.calls[trouble] == calls


def test_refused_key_stops_at_the_first_call_and_is_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-wrong-and-secret")
    with serving(key="right") as server:
        mine = judge(server, api_key_env="MY_KEY", timeout_s=5.0)
        with pytest.raises(ValueError, match=r"refuses the key .*MY_KEY") as caught:
            grade(mine, items(*"abcdef"), tmp_path)
        assert sum(server.calls.values()) == 1
        shown = capsys.readouterr()
        for text in (str(caught.value), repr(caught.value.__context__), shown.out, shown.err):
            if "sk-wrong" in text:
                assert text == repr(caught.value.__context__)  # chained, but suppressed
        assert caught.value.__suppress_context__
        assert not any("sk-wrong" in path.read_text() for path in tmp_path.rglob("*.json"))


def test_unreachable_judge_and_unknown_model_are_named_before_work_is_spent(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        ValueError, match=r"judge\.base_url=http://127\.0\.0\.1:9/v1 is not reached"
    ):
        grade(judge("http://127.0.0.1:9/v1"), items("a", "b"), tmp_path)
    with serving() as server, pytest.raises(ValueError, match="knows no model 'm'"):
        grade(judge(server, timeout_s=5.0), items("404", "b"), tmp_path)
    with serving() as server, pytest.raises(ValueError, match=r"no chat completion.*base_url="):
        grade(judge(server, timeout_s=5.0), items("shape", "b"), tmp_path)
    assert server.calls["b"] == 0


def test_calls_run_at_once(tmp_path: Path) -> None:
    with serving() as server:
        server.together = threading.Barrier(16)  # not by the clock, which a busy machine would fail
        questions = ["alone", *(f"together {i}" for i in range(32))]
        mine = judge(server, concurrency=16, timeout_s=120.0, attempts=1)
        assert all(grade(mine, items(*questions), tmp_path).verdicts)


def judging(server: Server, count: int, concurrency: int, cache: Path) -> subprocess.Popen:
    """A process of its own that has `count` items judged."""
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    program = f"""
import sys; sys.path[:0] = {folders}
from pathlib import Path
from test_grade import grade, items, judge
asked = items(*[f"q{{i}}" for i in range({count})])
grade(judge({server.url!r}, concurrency={concurrency}, timeout_s=60.0), asked, Path({str(cache)!r}))
"""
    return subprocess.Popen([sys.executable, "-c", program])


def kill_at(process: subprocess.Popen, kept: int, cache: Path) -> None:
    """SIGKILL once so many verdicts are on disk."""
    while len(list(cache.glob("*.json"))) < kept and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_judging_goes_on_without_an_answered_call_repeated(tmp_path: Path) -> None:
    with serving(delay_s=0.05) as server:
        kill_at(judging(server, 60, 4, tmp_path), 20, tmp_path)
        assert 20 <= len(list(tmp_path.glob("*.json"))) < 60
        assert judging(server, 60, 4, tmp_path).wait() == 0
        assert len(list(tmp_path.glob("*.json"))) == 60
        twice = sum(count - 1 for count in server.calls.values())
        assert twice <= 4  # those on their way when the process died


@pytest.mark.slow  # by the clock: for a machine that does nothing else
def test_a_thousand_items_at_a_tenth_of_a_second_take_less_than_fifteen(tmp_path: Path) -> None:
    with serving(delay_s=0.1) as server:
        began = time.monotonic()
        assert judging(server, 1000, 16, tmp_path / "whole").wait() == 0
        assert time.monotonic() - began < 15
        assert set(server.calls.values()) == {1}
        server.calls.clear()
        kill_at(judging(server, 1000, 16, tmp_path / "killed"), 500, tmp_path / "killed")
        assert judging(server, 1000, 16, tmp_path / "killed").wait() == 0
        assert len(server.calls) == 1000
        assert sum(server.calls.values()) <= 1000 + 16  # those on their way when the process died


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"grade": 1}', '{"score": true}', '{"score": "2"}', '{"score": 1.5}']
)
def test_reply_without_a_score_of_the_scale_is_no_verdict(text: str) -> None:
    with pytest.raises(NoVerdictError):
        read(text, 3)


def test_first_json_object_of_a_reply_counts() -> None:
    assert read('```json\n{"evaluation": "ok", "score": 3.0}\n```', 3) == (3, "ok")


def test_what_a_local_judge_cannot_hold_is_counted_and_left_out(tmp_path: Path) -> None:
    local = Judge(name="local", kind="local", model=str(EMBEDDED), max_tokens=2)
    long = items(*(" ".join(f"word{i}" for i in range(count)) for count in (3, 4000, 5000)))
    graded = grade(local, long, tmp_path)
    assert graded.verdicts == [None] * 3
    assert dict(graded.failures) == {
        "no verdict in the reply": 1,
        "longer than the judge's context of 4,096 tokens with judge.max_tokens=2": 2,
    }
