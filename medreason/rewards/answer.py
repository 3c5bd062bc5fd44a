"""Scores of the answer. Rewards weight them, evaluation averages them."""

from __future__ import annotations

from medreason.replies import Reply, published_answer
from medreason.rewards.words import overlap, words
from medreason.samples import Sample


def correct(reply: Reply, sample: Sample) -> float:
    """1 for the right option, or for a question without any the words of a reference; else 0.

    Options of one text are one answer. Case, punctuation and articles of an open answer do not
    matter. Never raises. Source: accuracy of Med-R1 without its holes
    (experiments/med_r1/README.md, "Rewards"); for open questions exact match of SQuAD,
    arXiv:1606.05250, section 6.1.
    """
    if reply.answer is None:
        return 0.0
    if sample.options:
        return float(sample.is_right(reply.answer))
    return float(any(words(reply.answer) == words(text) for text in sample.references))


def answer(reply: Reply, sample: Sample) -> float:
    """0 to 1: `correct` for a closed question, `token_f1` for an open one. Never raises.

    Source: experiments/rarl/README.md, "Rewards": `answer` without a judge.
    """
    return correct(reply, sample) if sample.options else token_f1(reply, sample)


def token_f1(reply: Reply, sample: Sample) -> float:
    """0 to 1: F1 of the words of answer and reference, of a closed question of the options' texts.

    That of the nearest reference where there are several, 0 where the reply has no answer. Never
    raises. Source: SQuAD, arXiv:1606.05250, section 6.1.
    """
    if reply.answer is None:
        return 0.0
    answer = sample.text_of(reply.answer)
    return max(overlap(answer, reference) for reference in sample.references)


def med_r1_accuracy(reply: Reply, sample: Sample) -> float:
    """0 or 1: `accuracy` of Med-R1 to the letter; other recipes use `correct`.

    Its holes: `c`, `C.` and `C) CT` in the tag score 0; of two tags the first counts. Never raises.
    Source: experiments/med_r1/README.md, "Rewards" [code].
    """
    return float(published_answer(reply.text) in (sample.answer, *sample.alternatives))
