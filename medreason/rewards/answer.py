"""Scores of one reply to one sample. Rewards weight them, evaluation averages them."""

from __future__ import annotations

from medreason.replies import Reply, published_answer
from medreason.rewards.words import overlap, words
from medreason.samples import Sample


def correct(reply: Reply, sample: Sample) -> float:
    """1 for the right letter; for an open question, for the same words as the reference."""
    if reply.answer is None:
        return 0.0
    if sample.options:
        return float(reply.answer == sample.answer)
    return float(words(reply.answer) == words(sample.answer))


def answer(reply: Reply, sample: Sample) -> float:
    """1 for the right letter of a closed question; token F1 for an open one.

    Source: PAPERS section 2 "Rewards", `answer` of RARL without a judge.
    """
    return correct(reply, sample) if sample.options else token_f1(reply, sample)


def token_f1(reply: Reply, sample: Sample) -> float:
    """Word overlap with the reference answer, 0 to 1; of a closed question, with the option's text.

    Source: SQuAD, arXiv:1606.05250, section 6.1.
    """
    if reply.answer is None:
        return 0.0
    return overlap(sample.text_of(reply.answer), sample.answer_text)


def med_r1_accuracy(reply: Reply, sample: Sample) -> float:
    """`accuracy` of Med-R1 with its holes: `c`, `C.` and `C) CT` score 0, of two tags the first.

    Source: PAPERS section 1 "Rewards" [code]. For parity only; else `correct`.
    """
    return float(published_answer(reply.text) == sample.answer)
