"""A question's options, their letters, and the form in which both are written on one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medreason.samples import LETTERS, Sample, letter_at, split_problem

CLOSED = Sample(
    "a:0", Path("a.png"), "Which?", ("CT", "PET, with contrast", "MRI"), "B", None, "ct",
    "disease", "a", None, "test",
)  # fmt: skip
OPEN = replace(CLOSED, options=(), answer="left lung")


def test_letters_name_options_and_an_open_question_has_none() -> None:
    assert CLOSED.lettered == (("A", "CT"), ("B", "PET, with contrast"), ("C", "MRI"))
    assert (CLOSED.letters, CLOSED.answer_text, CLOSED.text_of("C")) == (
        "ABC", "PET, with contrast", "MRI",
    )  # fmt: skip
    assert (OPEN.letters, OPEN.answer_text, OPEN.text_of("liver")) == ("", "left lung", "liver")


def test_problem_is_split_into_the_question_and_options_it_is_made_of() -> None:
    assert CLOSED.problem == "Which? A)CT, B)PET, with contrast, C)MRI"
    assert split_problem(CLOSED.problem) == (CLOSED.question, CLOSED.options)
    assert split_problem(OPEN.problem) == (OPEN.question, ())


def test_letter_follows_its_text_into_another_order() -> None:
    turned = CLOSED.reordered([2, 0, 1])
    assert turned.options == ("MRI", "CT", "PET, with contrast")
    assert (turned.answer, turned.answer_text) == ("C", CLOSED.answer_text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "D"}, "answer 'D' is no letter of its 3 options; give A or B or C"),
        ({"answer": "CT"}, "answer 'CT' is no letter"),
        ({"options": ("x",) * (len(LETTERS) + 1)}, f"27 options; .* at most {len(LETTERS)}"),
    ],
)
def test_answer_beyond_the_options_and_options_beyond_the_letters_are_refused(
    changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CLOSED, **changes)
    with pytest.raises(ValueError, match=r"option 26; options are counted from 0 to 25"):
        letter_at(len(LETTERS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patient": ""}, "patient is ''; needs a text, or None where unknown"),
        ({"explanation": " "}, "explanation is ' '; needs a text, or None where unknown"),
        ({"source": ""}, "source is ''; needs a text$"),
    ],
)
def test_an_empty_text_is_refused_with_the_remedy(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CLOSED, **changes)
