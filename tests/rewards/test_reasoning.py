"""What reasoning comes to, as tables of text and value."""

from __future__ import annotations

from pathlib import Path

import pytest

from medreason.replies import parse
from medreason.rewards.reasoning import conclusion, consistency
from medreason.samples import Sample

OPTIONS = ("MRI", "PET scan", "CT", "CT angiography")


@pytest.mark.parametrize(
    ("reasoning", "letter"),
    [
        ("The bone is bright, so this is CT.", "C"),
        ("It could be an MRI, but the bone is bright: a PET scan.", "B"),
        ("ct angiography, since the vessels are bright", "D"),
        ("Bright vessels (D).", "D"),
        ("Bright vessels, so option A", "A"),
        ("I would say b) MRI or rather C) CT", "C"),
        ("The answer is B", "B"),
        ("A is the correct one.", "A"),
        ("The bone is bright.", None),
        ("A grey shape in a dark field", None),
        ("", None),
    ],
)
def test_reasoning_concludes_with_the_option_named_last(reasoning: str, letter: str | None) -> None:
    assert conclusion(reasoning, OPTIONS) == letter


def test_options_written_alike_are_not_told_apart_by_text() -> None:
    assert conclusion("It is CT", ("CT", "ct.")) is None
    assert conclusion("It is option B", ("CT", "ct.")) == "B"


@pytest.mark.parametrize(
    ("text", "options", "value"),
    [
        ("<think>Bright bone, so CT.</think><answer>C</answer>", OPTIONS, 1.0),
        ("<think>Bright bone, so CT.</think><answer>B</answer>", OPTIONS, 0.0),
        ("<think>Bright bone.</think><answer>C</answer>", OPTIONS, 0.0),
        ("<think>Bright bone, so CT.</think>", OPTIONS, 0.0),
        ("<answer>C</answer>", OPTIONS, 0.0),
        ("<think>The left lung is dark.</think><answer>left lung</answer>", (), 1.0),
        ("<think>The left side is dark.</think><answer>left lung</answer>", (), 0.5),
    ],
)
def test_consistency_needs_no_right_answer(
    text: str, options: tuple[str, ...], value: float
) -> None:
    sample = Sample(
        "s", Path("a.png"), "Which?", options, "A" if options else "liver", None, "ct", "disease",
        "test", None, "train",
    )  # fmt: skip
    assert consistency(parse(text, options), sample) == value
