"""Scores of one reply to one sample. Rewards weight them, evaluation averages them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from medreason.replies import Reply, check_style, follows, published_answer
from medreason.samples import LETTERS, Sample


def correct(reply: Reply, sample: Sample) -> float:
    """1 for the right letter; for an open question, for the same words as the reference."""
    if reply.answer is None:
        return 0.0
    if sample.options:
        return float(reply.answer == sample.answer)
    return float(words(reply.answer) == words(sample.answer))


def follows_format(reply: Reply, sample: Sample, *, style: str) -> float:
    """1 if the reply has the form of a style of `replies.STYLES`."""
    return float(follows(reply.text, style))


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
    if sample.options:
        chosen = dict(zip(LETTERS, sample.options, strict=False)).get(reply.answer, "")
        return _overlap(chosen, sample.answer_text)
    return _overlap(reply.answer, sample.answer)


def reasoning_similarity(reply: Reply, sample: Sample) -> float:
    """Word overlap (F1) of the reasoning with the reference explanation, 0 to 1.

    Source: PAPERS section 2 "Rewards", `reasoning` without a judge. Raises ValueError where the
    sample has no explanation.
    """
    return _overlap(reply.reasoning or "", explanation_of(sample))


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


def overlong(reply: Reply, sample: Sample, *, free: int, limit: int) -> float:
    """0 up to `free` characters, then linearly down to -1 at `limit` characters.

    Source: DAPO, arXiv:2503.14476, eq. 13, with characters in place of tokens.
    """
    if not 0 <= free < limit:
        raise ValueError(f"free={free}, limit={limit}; needs 0 <= free < limit")
    excess = (len(reply.text) - free) / (limit - free)
    return -min(max(excess, 0.0), 1.0)


def med_r1_accuracy(reply: Reply, sample: Sample) -> float:
    """`accuracy` of Med-R1 with its holes: `c`, `C.` and `C) CT` score 0, of two tags the first.

    Source: PAPERS section 1 "Rewards" [code]. For parity only; else `correct`.
    """
    return float(published_answer(reply.text) == sample.answer)


def med_r1_format(reply: Reply, sample: Sample, *, style: str) -> float:
    """`format` of Med-R1 with its holes: an empty think block passes, a leading space fails.

    Source: PAPERS section 1 "Rewards" [code], `think_after` [infer]. For parity only; else
    `follows_format`.
    """
    return float(follows(reply.text, check_style(style), strict=True))


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles; the articles stay if nothing else does."""
    text = unicodedata.normalize("NFKC", text).casefold()
    found = re.findall(r"\d+(?:\.\d+)+|[^\W_]+", text)
    return [word for word in found if word not in ("a", "an", "the")] or found


def _overlap(text: str, reference: str) -> float:
    found, wanted = Counter(words(text)), Counter(words(reference))
    shared = (found & wanted).total()
    return 2 * shared / (found.total() + wanted.total()) if shared else 0.0
