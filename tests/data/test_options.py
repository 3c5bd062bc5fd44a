"""Another order or other letter case never changes what is right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from medreason.data.options import normalised, shuffled
from medreason.samples import Sample


def sample(*options: str, name: str = "f:0", answer: str = "B") -> Sample:
    return Sample(
        name, Path("a.png"), "?", options, answer, None, "ct", "disease", "s", None, "train"
    )


def test_the_letter_follows_its_text() -> None:
    question = sample("a", "b", "c", "d")
    orders = {shuffled(question, seed=0, epoch=epoch).options for epoch in range(50)}
    assert len(orders) > 10
    assert all(shuffled(question, seed=0, epoch=e).answer_text == "b" for e in range(50))
    assert shuffled(question, seed=0, epoch=3) == shuffled(question, seed=0, epoch=3)
    letters = Counter(shuffled(sample(*"abcd", name=f"f:{i}"), 0).answer for i in range(400))
    assert min(letters.values()) > 70
    assert shuffled(sample(answer="yes"), seed=0).answer == "yes"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("benign.", "Malignant"), ("Benign", "Malignant")),
        (("  left  lung ", "T2.", "pH"), ("Left lung", "T2", "pH")),
        (("No", "no.", "Yes"), ("No", "no.", "Yes")),
    ],
)
def test_typing_habits_are_made_the_same(
    options: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert normalised(sample(*options)).options == expected
