"""Scores of the reasoning: its consistency with the answer, its overlap with a reference."""

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
    """0 to 1: whether the reasoning concludes with the reply's own answer, right or wrong.

    For a closed question 1 or 0, for an open one the share of the answer's words that occur in the
    reasoning. 0 where reasoning or answer is missing, or no option is named. Never raises. Source:
    CAPO, arXiv:2506.12849, which asks a judge; by words [ours].
    """
    if reply.reasoning is None or reply.answer is None:
        return 0.0
    if sample.options:
        return float(conclusion(reply.reasoning, sample.options) == reply.answer)
    answer = set(words(reply.answer))
    return len(answer & set(words(reply.reasoning))) / len(answer) if answer else 0.0


def conclusion(reasoning: str, options: Sequence[str]) -> str | None:
    """The letter of the option that the reasoning names last, by text or as `(B)`, `option B`.

    Where one option's text is part of another's the longer one counts. None where no option is
    named or two have the same words. Negation (`not CT`) is not understood.
    """
    marked = _LETTER.sub(lambda match: f" {_MARK}{match[match.lastgroup or 0]} ", reasoning)
    text = f" {' '.join(words(marked))} "
    places: dict[tuple[int, int], set[str]] = {}  # (end, length) of an option's last occurrence
    for letter, option in lettered(options):
        for name in (" ".join(words(option)), f"{_MARK}{letter.lower()}"):
            if name and (start := text.rfind(f" {name} ")) >= 0:
                end = start + len(name)
                places.setdefault((end, end - start), set()).add(letter)
    if not places:
        return None
    named = places[max(places)]
    return named.pop() if len(named) == 1 else None


def reasoning_similarity(reply: Reply, sample: Sample) -> float:
    """0 to 1: F1 of the words of the reasoning and the reference explanation.

    Raises ValueError where the sample has no explanation. Source: experiments/rarl/README.md,
    "Rewards": `reasoning` without a judge.
    """
    return overlap(reply.reasoning or "", explanation_of(sample))


def explanation_of(sample: Sample) -> str:
    """The reference explanation. Raises ValueError where there is none."""
    if sample.explanation is None:
        raise ValueError(
            f"sample {sample.id} has no explanation to compare the reasoning with; drop "
            "the score from `reward` or use a data set with explanations"
        )
    return sample.explanation


def hollow_reasoning(reply: Reply, sample: Sample, *, new_words: int) -> float:
    """-1 if the reasoning has fewer than `new_words` words of its own, else 0.

    Words of the question, its options and its answer are not its own, so an empty think block and
    one that copies the question are hollow. Raises ValueError for `new_words` below 1.
    Source: experiments/rarl/README.md, "Rewards": the penalties of `rarl_safe` [ours].
    """
    if new_words < 1:
        raise ValueError(f"new_words={new_words}; give at least 1, or remove the score")
    copied = set(words(f"{sample.problem} {' '.join(sample.references)}"))
    own = set(words(reply.reasoning or "")) - copied
    return -float(len(own) < new_words)
