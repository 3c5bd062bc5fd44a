"""What a reply's reasoning says of its own answer: a score that needs no reference and no judge."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medreason.replies import Reply
from medreason.samples import LETTERS, Sample
from medreason.scores import words

_LETTER = re.compile(
    r"\((?P<a>[A-H])\)|(?<!\w)(?P<b>[A-H])\)"
    r"|\b(?:option|choice|answer)(?: is)?:? (?P<c>[A-H])(?!\w)"
    r"|(?<!\w)(?P<d>[A-H]) is (?:the )?(?:correct|right|best)"
)
_MARK = "optionletter"


def consistent(reply: Reply, sample: Sample) -> float:
    """1 if the reasoning comes to the answer that is given; right or wrong does not matter.

    Of an open question the share of the answer's words that the reasoning has. 0 where reasoning or
    answer is missing, and where the reasoning names none of the options. Source: rewarding the
    consistency of reasoning and answer, arXiv:2506.12849; by words in place of a judge [ours].
    """
    if reply.reasoning is None or reply.answer is None:
        return 0.0
    if sample.options:
        return float(conclusion(reply.reasoning, sample.options) == reply.answer)
    said, wanted = set(words(reply.reasoning)), set(words(reply.answer))
    return len(said & wanted) / len(wanted) if wanted else 0.0


def conclusion(reasoning: str, options: Sequence[str]) -> str | None:
    """The letter of the option that the reasoning names last, by text or as `(B)`, `option B`.

    Where one option's text is part of another's the longer one counts. None where no option is
    named or two are written alike. A denial (`not CT`) is not understood.
    """
    marked = _LETTER.sub(lambda found: f" {_MARK}{found[found.lastgroup or 0]} ", reasoning)
    said = f" {' '.join(words(marked))} "
    places: dict[tuple[int, int], set[str]] = {}
    for letter, option in zip(LETTERS, options, strict=False):
        for name in (" ".join(words(option)), f"{_MARK}{letter.lower()}"):
            if name and (start := said.rfind(f" {name} ")) >= 0:
                end = start + len(name)
                places.setdefault((end, end - start), set()).add(letter)
    if not places:
        return None
    named = places[max(places)]
    return named.pop() if len(named) == 1 else None
