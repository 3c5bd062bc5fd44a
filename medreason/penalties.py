"""Scores from -1 to 0 for habits that earn rewards without deserving them; see also `scores`."""

from __future__ import annotations

from medreason.replies import Reply, layout
from medreason.samples import Sample
from medreason.scores import words


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


def repetition(reply: Reply, sample: Sample, *, size: int) -> float:
    """Minus the share of runs of `size` words that occurred before in the reply, -1 to 0.

    Source: the n-gram penalty of arXiv:2502.03373, over words in place of tokens.
    """
    if size < 1:
        raise ValueError(f"size={size}; give the number of words in a run, 1 or more")
    said = words(reply.text)
    runs = [tuple(said[i : i + size]) for i in range(len(said) - size + 1)]
    return len(set(runs)) / len(runs) - 1 if runs else 0.0
