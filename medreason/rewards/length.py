"""Scores from -1 to 0 of replies that are too long or repeat themselves."""

from __future__ import annotations

from medreason.replies import Reply
from medreason.rewards.words import words
from medreason.samples import Sample


def overlong(reply: Reply, sample: Sample, *, free: int, limit: int) -> float:
    """0 up to `free` characters, then linearly down to -1 at `limit` characters.

    Raises ValueError unless 0 <= free < limit. Source: DAPO, arXiv:2503.14476, eq. 13, with
    characters in place of tokens.
    """
    if not 0 <= free < limit:
        raise ValueError(f"free={free}, limit={limit}; needs 0 <= free < limit")
    excess = (len(reply.text) - free) / (limit - free)
    return -min(max(excess, 0.0), 1.0)


def repetition(reply: Reply, sample: Sample, *, size: int) -> float:
    """-1 to 0: minus the share of n-grams of `size` words that occur earlier in the reply.

    Raises ValueError for a `size` below 1. Source: the n-gram penalty of arXiv:2502.03373, over
    words in place of tokens.
    """
    if size < 1:
        raise ValueError(f"size={size}; give the number of words of an n-gram, 1 or more")
    text = words(reply.text)
    ngrams = [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
    return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0
