"""The options-only baseline: answers of a frequency table of option strings; and guessing.

Both see neither image nor question, so a model has to beat them to show that it uses them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass

from medreason.samples import Sample, letter_at


@dataclass(frozen=True)
class OptionPrior:
    """How often each option string was right and how often offered in the training questions."""

    right: Counter[str]
    offered: Counter[str]

    def predict(self, options: Sequence[str]) -> str:
        """The letter of the option with the highest (c + 0.25) / (n + 1), the first on ties."""
        texts = [_option_string(text) for text in options]
        shares = [(self.right[text] + 0.25) / (self.offered[text] + 1) for text in texts]
        return letter_at(shares.index(max(shares)))

    def accuracy(self, test: Iterable[Sample]) -> float | None:
        """Accuracy over the closed samples, None where there is none."""
        hits = [s.is_right(self.predict(s.options)) for s in test if s.options]
        return sum(hits) / len(hits) if hits else None

    def accuracies(self, test: Iterable[Sample]) -> dict[tuple[str, str], float | None]:
        """`accuracy` in each cell."""
        cells: dict[tuple[str, str], list[Sample]] = {}
        for sample in test:
            cells.setdefault(sample.cell, []).append(sample)
        return {cell: self.accuracy(members) for cell, members in cells.items()}


def fit_option_prior(train: Iterable[Sample]) -> OptionPrior:
    """Count the option strings of the closed samples once, for any number of test sets."""
    right, offered = Counter[str](), Counter[str]()
    for sample in train:
        if sample.options:
            offered.update(_option_string(text) for text in sample.options)
            right[_option_string(sample.answer_text)] += 1
    return OptionPrior(right, offered)


def guessing(questions: Iterable[Sized]) -> float | None:
    """The share (0 to 1) of questions that guessing evenly between the options of each answers
    right, none of open ones, whose options are empty; None without questions."""
    chances = [1 / len(options) if len(options) else 0.0 for options in questions]
    return sum(chances) / len(chances) if chances else None


def _option_string(text: str) -> str:
    return text.lower().strip().removesuffix(".")
