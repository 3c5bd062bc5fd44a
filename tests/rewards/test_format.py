"""Penalties as tables of reply and value."""

from __future__ import annotations

from pathlib import Path

import pytest

from medreason.replies import parse
from medreason.rewards import format
from medreason.rewards.length import repetition
from medreason.samples import Sample

SAMPLE = Sample(
    "s", Path("a.png"), "Which?", ("MRI", "CT"), "B", None, "ct", "disease", "t", None, "train"
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>Bright bone.</think><answer>B</answer>", 0.0),
        ("<answer>B</answer><think>Bright bone.</think>", -1.0),
        ("<answer>B</answer><think>Bright", -1.0),
        ("<answer>B</answer>", 0.0),
        ("B", 0.0),
        ("", 0.0),
    ],
)
def test_answer_before_its_reasoning_is_penalised(text: str, value: float) -> None:
    assert format.answer_first(parse(text), SAMPLE) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>Bright bone.</think>\n<answer>B</answer>\n", 0.0),
        ("Sure. <think>Bright bone.</think><answer>B</answer>", 0.0),
        ("It is bright. <think>Bone.</think><answer>B</answer>", -1.0),
        ("<think>Bone.</think><answer>B</answer> because it is bright", -1.0),
    ],
)
def test_text_outside_the_tags_is_penalised_beyond_what_is_free(text: str, value: float) -> None:
    assert format.stray_text(parse(text), SAMPLE, free=1) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("one two three four five", 0.0),
        ("one two one two one two", -3 / 5),
        ("word", 0.0),
        ("", 0.0),
        ("no " * 101, -99 / 100),
    ],
)
def test_repeated_runs_of_words_are_penalised_by_their_share(text: str, value: float) -> None:
    assert repetition(parse(text), SAMPLE, size=2) == pytest.approx(value)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="free=-1"):
        format.stray_text(parse(""), SAMPLE, free=-1)
    with pytest.raises(ValueError, match="size=0"):
        repetition(parse(""), SAMPLE, size=0)
