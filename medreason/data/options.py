"""The options of a question as they are shown: as published, in another order, or tidied."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from medreason.samples import Sample


def normalised(sample: Sample) -> Sample:
    """Spaces, trailing period and the case of the first letter made the same in all options.

    These habits give answers away (`audit` says how often). Options that would become equal keep
    their texts, since the letter must go on to mean one of them.
    """
    tidy = tuple(_tidy(text) for text in sample.options)
    if len({text.lower() for text in tidy}) < len(tidy):
        return sample
    return replace(sample, options=tidy)


def shuffled(sample: Sample, seed: int, epoch: int = 0) -> Sample:
    """The options in an order drawn by seed, epoch and sample; the letter follows its text.

    So does the letter behind that text in an explanation: `the heart (B)`.
    """
    if not sample.options:
        return sample
    order = list(range(len(sample.options)))
    random.Random(f"{seed}/{epoch}/{sample.id}").shuffle(order)
    drawn = sample.reordered(order)
    before, after = (f"{s.answer_text} ({s.answer})" for s in (sample, drawn))
    explanation = sample.explanation and sample.explanation.replace(before, after)
    return replace(drawn, explanation=explanation)


def _tidy(text: str) -> str:
    """A first letter is raised only in front of a small one, so that `pH` and `T2` stay."""
    plain = re.sub(r"\s+", " ", text).strip().removesuffix(".").rstrip()
    starts_a_word = plain[:1].islower() and not plain[1:2].isupper()
    return plain[:1].upper() + plain[1:] if starts_a_word else plain
