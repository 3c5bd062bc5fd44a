"""Scores of the form of a reply: its tags, their order, text outside them."""

from __future__ import annotations

from medreason.replies import Reply, check_style, follows, layout
from medreason.rewards.words import words
from medreason.samples import Sample


def follows_format(reply: Reply, sample: Sample, *, style: str) -> float:
    """1 if the reply has the form of a style of `replies.STYLES`, else 0.

    Raises ValueError where the style is unknown. Source: experiments/med_r1/README.md, "Rewards",
    without its holes [ours].
    """
    return float(follows(reply.text, style))


def med_r1_format(reply: Reply, sample: Sample, *, style: str) -> float:
    """0 or 1: `format` of Med-R1 to the letter; other recipes use `follows_format`.

    Its holes: an empty think block passes, a leading space fails. Raises ValueError where the style
    is unknown. Source: experiments/med_r1/README.md, "Rewards" [code], `think_after` [infer].
    """
    return float(follows(reply.text, check_style(style), strict=True))


def answer_first(reply: Reply, sample: Sample) -> float:
    """-1 if the answer comes before the reasoning, which then explains it afterwards; else 0.

    Not for prompt=think_after, which asks for that order. Never raises. Source: [ours].
    """
    order = layout(reply.text)[0]
    leads = {"think", "answer"} <= {*order} and order.index("answer") < order.index("think")
    return -float(leads)


def stray_text(reply: Reply, sample: Sample, *, free: int) -> float:
    """-1 if more than `free` words are outside the tags, where no score looks at them; else 0.

    Raises ValueError for a negative `free`. Source: [ours].
    """
    if free < 0:
        raise ValueError(f"free={free}; give the number of words allowed, 0 or more")
    return -float(len(words(layout(reply.text)[1])) > free)
