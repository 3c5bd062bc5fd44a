"""Scores as tables of reply and value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medreason.option_prior import fit_option_prior
from medreason.replies import Reply, parse
from medreason.rewards import answer
from medreason.rewards.format import follows_format, med_r1_format
from medreason.rewards.length import overlong
from medreason.rewards.reasoning import hollow_reasoning, reasoning_similarity
from medreason.samples import Sample


def closed(explanation: str | None = "The bone is bright on computed tomography.") -> Sample:
    options = ("MRI", "PET scan", "CT scan")
    return Sample(
        "f.json:0", Path("a.png"), "Which?", options, "C", explanation, "ct", "disease",
        "test set", None, "train",
    )  # fmt: skip


def opened(answer: str) -> Sample:
    return Sample(
        "o", Path("a.png"), "Where?", (), answer, None, "ct", "anatomy", "s", None, "test"
    )  # fmt: skip


def read(text: str, sample: Sample) -> Reply:
    return parse(text, sample.options)


@pytest.mark.parametrize(
    ("text", "ours", "published"),
    [
        ("<think>a</think><answer>C</answer>", 1.0, 1.0),
        ("<think>a</think>\n<answer> C </answer>", 1.0, 1.0),
        ("<answer>C</answer>", 1.0, 1.0),
        ("C", 1.0, 1.0),
        (" C\n", 1.0, 1.0),
        ("<answer>B</answer>", 0.0, 0.0),
        ("<answer>E</answer>", 0.0, 0.0),
        ("It is C", 0.0, 0.0),
        ("", 0.0, 0.0),
        # The holes of Med-R1's rewards: our score differs on these alone.
        ("<answer>c</answer>", 1.0, 0.0),
        ("<answer>C.</answer>", 1.0, 0.0),
        ("<answer>C) CT scan</answer>", 1.0, 0.0),
        ("<answer>\nC</answer>", 1.0, 0.0),
        ("c", 1.0, 0.0),
        ("<answer>C</answer><answer>B</answer>", 0.0, 1.0),
    ],
)
def test_accuracy_differs_from_the_published_one_only_in_its_holes(
    text: str, ours: float, published: float
) -> None:
    reply = read(text, closed())
    assert answer.correct(reply, closed()) == ours
    assert answer.med_r1_accuracy(reply, closed()) == published


@pytest.mark.parametrize(
    ("style", "text", "ours", "published"),
    [
        ("think", "<think>a</think>\n<answer>C</answer>", 1.0, 1.0),
        ("think", "<think>a</think><answer>C) CT</answer>", 1.0, 1.0),
        ("think", "<answer>C</answer>", 0.0, 0.0),
        ("think", "<think>a</think><answer>C</answer> end", 0.0, 0.0),
        ("no_think", "<answer>C</answer>", 1.0, 1.0),
        ("no_think", " <answer>C</answer>", 1.0, 1.0),
        ("no_think", "C", 0.0, 0.0),
        ("think_after", "<answer>C</answer>\n<think>a</think>", 1.0, 1.0),
        # The holes.
        ("think", " <think>a</think><answer>C</answer>", 1.0, 0.0),
        ("think", "<think></think><answer>C</answer>", 0.0, 1.0),
        ("think", "<think>a</think><answer>C</answer><answer>B</answer>", 0.0, 1.0),
    ],
)
def test_format_differs_from_the_published_one_only_in_its_holes(
    style: str, text: str, ours: float, published: float
) -> None:
    reply = read(text, closed())
    assert follows_format(reply, closed(), style=style) == ours
    assert med_r1_format(reply, closed(), style=style) == published


def test_an_unknown_style_is_refused_by_name() -> None:
    reply = read("C", closed())
    for score in (follows_format, med_r1_format):
        with pytest.raises(ValueError, match="style='cot'; known: 'think'"):
            score(reply, closed(), style="cot")


@pytest.mark.parametrize(
    ("text", "reference", "exact", "f1"),
    [
        ("<answer>Left lung.</answer>", "left lung", 1.0, 1.0),
        ("<answer>the left lung</answer>", "left lung", 1.0, 1.0),
        ("<answer>left upper lung</answer>", "left lung", 0.0, 0.8),
        ("<answer>liver</answer>", "left lung", 0.0, 0.0),
        ("<answer>X-ray</answer>", "x ray", 1.0, 1.0),
        ("<answer>1.5 T</answer>", "15 T", 0.0, 0.5),
        ("<answer>A</answer>", "a", 1.0, 1.0),
        ("<answer></answer>", "left lung", 0.0, 0.0),
        ("<answer>...</answer>", "left lung", 0.0, 0.0),
    ],
)
def test_open_answers_are_compared_by_words(
    text: str, reference: str, exact: float, f1: float
) -> None:
    sample = opened(reference)
    reply = read(text, sample)
    assert answer.correct(reply, sample) == exact
    assert answer.token_f1(reply, sample) == pytest.approx(f1)
    assert answer.answer(reply, sample) == pytest.approx(f1)


def test_closed_answers_are_scored_by_letter_and_f1_by_option_text() -> None:
    wrong = read("<answer>PET scan</answer>", closed())
    assert answer.answer(wrong, closed()) == 0.0
    assert answer.token_f1(wrong, closed()) == pytest.approx(0.5)
    assert answer.answer(read("<answer>ct scan</answer>", closed()), closed()) == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>The bone is bright</think><answer>C</answer>", 2 / 3),
        ("<think>The bone is bright</think><answer>B</answer>", 2 / 3),
        ("<think>dark dark dark</think><answer>C</answer>", 0.0),
        ("<think></think><answer>C</answer>", 0.0),
        ("<answer>C</answer>", 0.0),
    ],
)
def test_reasoning_is_compared_with_the_explanation(text: str, value: float) -> None:
    score = reasoning_similarity(read(text, closed()), closed())
    assert score == pytest.approx(value)


def test_a_sample_without_explanation_is_named() -> None:
    sample = closed(explanation=None)
    with pytest.raises(ValueError, match=r"sample f\.json:0 .*no explanation.*drop the score"):
        reasoning_similarity(read("C", sample), sample)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>Cortical bone appears white</think><answer>C</answer>", 0.0),
        ("<think></think><answer>C</answer>", -1.0),
        ("<answer>C</answer>", -1.0),
        ("<think>Which? MRI, PET scan, CT scan</think><answer>C</answer>", -1.0),
    ],
)
def test_empty_and_copied_reasoning_is_hollow(text: str, value: float) -> None:
    assert hollow_reasoning(read(text, closed()), closed(), new_words=3) == value


@pytest.mark.parametrize(
    ("length", "value"), [(0, 0.0), (100, 0.0), (150, -0.5), (200, -1.0), (900, -1.0)]
)
def test_long_replies_lose_linearly(length: int, value: float) -> None:
    reply = parse("x" * length)
    assert overlong(reply, closed(), free=100, limit=200) == pytest.approx(value)


def test_settings_that_make_no_sense_are_refused() -> None:
    reply = read("C", closed())
    with pytest.raises(ValueError, match="free=200, limit=200"):
        overlong(reply, closed(), free=200, limit=200)
    with pytest.raises(ValueError, match="new_words=0"):
        hollow_reasoning(reply, closed(), new_words=0)


SEVERAL = replace(opened("(seronegative) heart"), alternatives=("heart", "left lung"))


@pytest.mark.parametrize(
    ("reply", "correct", "f1"),
    [
        ("seronegative heart", 1.0, 1.0),
        ("Heart.", 1.0, 1.0),
        ("the left lung", 1.0, 1.0),
        ("lung", 0.0, 2 / 3),
        ("liver", 0.0, 0.0),
    ],
)
def test_any_reference_is_right_for_every_score(reply: str, correct: float, f1: float) -> None:
    parsed = read(f"<answer>{reply}</answer>", SEVERAL)
    assert answer.correct(parsed, SEVERAL) == correct
    assert answer.token_f1(parsed, SEVERAL) == pytest.approx(f1)
    assert answer.answer(parsed, SEVERAL) == pytest.approx(f1)


def test_options_of_one_text_are_one_answer() -> None:
    sample = replace(closed(), options=("Normal", "Pneumonia", "Normal"), answer="C")
    for text, score in (("A", 1.0), ("C", 1.0), ("Normal", 1.0), ("A) Normal", 1.0), ("B", 0.0)):
        assert answer.correct(read(f"<answer>{text}</answer>", sample), sample) == score
    assert fit_option_prior([sample]).accuracy([sample]) == 1.0
