"""The options of a question in another order, or with their typography normalised."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from medreason.samples import Sample


def normalised(sample: Sample) -> Sample:
    """Spaces, trailing period and the case of the first letter made the same in all options.

    Such typographic habits give answers away (`audit` counts how often). Options that would become
    equal keep their texts, since the right letter must name one of them.
    """
    tidy = tuple(_tidy(text) for text in sample.options)
    if len({text.lower() for text in tidy}) < len(tidy):
        return sample
    return replace(sample, options=tidy)


def shuffled(sample: Sample, seed: int, epoch: int = 0) -> Sample:
    """The sample with its options in an order that seed, epoch and id decide.

    The answer's letter follows its text, also in an explanation that names both: `the heart (B)`.
    """
    if not sample.options:
        return sample
    order = list(range(len(sample.options)))
    random.Random(f"{seed}/{epoch}/{sample.id}").shuffle(order)
    reordered = sample.reordered(order)
    before, after = (f"{s.answer_text} ({s.answer})" for s in (sample, reordered))
    explanation = sample.explanation and sample.explanation.replace(before, after)
    return replace(reordered, explanation=explanation)


def _tidy(text: str) -> str:
    """The first letter becomes a capital only before a lower-case one, so that `pH` stays."""
    plain = re.sub(r"\s+", " ", text).strip().removesuffix(".").rstrip()
    starts_a_word = plain[:1].islower() and not plain[1:2].isupper()
    return plain[:1].upper() + plain[1:] if starts_a_word else plain
