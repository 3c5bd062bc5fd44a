"""Penalties for replies that are too long or repeat themselves."""

from __future__ import annotations

from medreason.replies import Reply
from medreason.rewards.words import words
from medreason.samples import Sample


def overlong(reply: Reply, sample: Sample, *, free: int, limit: int) -> float:
    """0 up to `free` characters, then linearly down to -1 at `limit` characters.

    Source: DAPO, arXiv:2503.14476, eq. 13, with characters in place of tokens.
    """
    if not 0 <= free < limit:
        raise ValueError(f"free={free}, limit={limit}; needs 0 <= free < limit")
    excess = (len(reply.text) - free) / (limit - free)
    return -min(max(excess, 0.0), 1.0)


def repetition(reply: Reply, sample: Sample, *, size: int) -> float:
    """Minus the share of runs of `size` words that occurred before in the reply, -1 to 0.

    Source: the n-gram penalty of arXiv:2502.03373, over words in place of tokens.
    """
    if size < 1:
        raise ValueError(f"size={size}; give the number of words in a run, 1 or more")
    said = words(reply.text)
    runs = [tuple(said[i : i + size]) for i in range(len(said) - size + 1)]
    return len(set(runs)) / len(runs) - 1 if runs else 0.0
