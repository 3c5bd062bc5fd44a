"""What a reply's reasoning says of its own answer: a score that needs no reference and no judge."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medreason.replies import Reply
from medreason.rewards.words import overlap, words
from medreason.samples import LETTERS, Sample, lettered

_LETTER = re.compile(
    rf"\((?P<a>[{LETTERS}])\)|(?<!\w)(?P<b>[{LETTERS}])\)"
    rf"|\b(?:option|choice|answer)(?: is)?:? (?P<c>[{LETTERS}])(?!\w)"
    rf"|(?<!\w)(?P<d>[{LETTERS}]) is (?:the )?(?:correct|right|best)"
)
_MARK = "optionletter"


def consistency(reply: Reply, sample: Sample) -> float:
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
    for letter, option in lettered(options):
        for name in (" ".join(words(option)), f"{_MARK}{letter.lower()}"):
            if name and (start := said.rfind(f" {name} ")) >= 0:
                end = start + len(name)
                places.setdefault((end, end - start), set()).add(letter)
    if not places:
        return None
    named = places[max(places)]
    return named.pop() if len(named) == 1 else None


def reasoning_similarity(reply: Reply, sample: Sample) -> float:
    """Word overlap (F1) of the reasoning with the reference explanation, 0 to 1.

    Source: PAPERS section 2 "Rewards", `reasoning` without a judge. Raises ValueError where the
    sample has no explanation.
    """
    return overlap(reply.reasoning or "", explanation_of(sample))


def explanation_of(sample: Sample) -> str:
    """The reference explanation. Raises ValueError where there is none."""
    if sample.explanation is None:
        raise ValueError(
            f"sample {sample.id} of {sample.source} has no explanation to compare the reasoning"
            " with; drop the score from `reward` or use a data set with explanations"
        )
    return sample.explanation


def hollow_reasoning(reply: Reply, sample: Sample, *, new_words: int) -> float:
    """-1 if the reasoning has fewer than `new_words` words that are not of the question.

    An empty think block and one that only repeats question, options or answer are hollow.
    Source: the penalties of `rarl_safe`, PAPERS section 2 "Rewards" [ours].
    """
    if new_words < 1:
        raise ValueError(f"new_words={new_words}; give at least 1, or remove the score")
    given = set(words(f"{sample.problem} {sample.answer_text}"))
    own = set(words(reply.reasoning or "")) - given
    return -float(len(own) < new_words)
