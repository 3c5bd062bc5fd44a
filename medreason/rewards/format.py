"""Scores from -1 to 0 for habits that earn rewards without deserving them; see also `scores`."""

from __future__ import annotations

from medreason.replies import Reply, check_style, follows, layout
from medreason.rewards.words import words
from medreason.samples import Sample


def answer_first(reply: Reply, sample: Sample) -> float:
    """-1 if the answer stands before the reasoning, which then explains it afterwards.

    Not for prompt=think_after, which asks for just that. Source: [ours].
    """
    order = layout(reply.text)[0]
    leads = {"think", "answer"} <= {*order} and order.index("answer") < order.index("think")
    return -float(leads)


def stray_text(reply: Reply, sample: Sample, *, free: int) -> float:
    """-1 if more than `free` words stand outside the tags, where no score looks at them.

    Source: [ours].
    """
    if free < 0:
        raise ValueError(f"free={free}; give the number of words allowed, 0 or more")
    return -float(len(words(layout(reply.text)[1])) > free)


def follows_format(reply: Reply, sample: Sample, *, style: str) -> float:
    """1 if the reply has the form of a style of `replies.STYLES`."""
    return float(follows(reply.text, style))


def med_r1_format(reply: Reply, sample: Sample, *, style: str) -> float:
    """`format` of Med-R1 with its holes: an empty think block passes, a leading space fails.

    Source: PAPERS section 1 "Rewards" [code], `think_after` [infer]. For parity only; else
    `follows_format`.
    """
    return float(follows(reply.text, check_style(style), strict=True))
