"""The wording of a question: the only place that makes a prompt from a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medreason.samples import Sample


class TrainingPrompt(NamedTuple):
    """A training prompt and the family of wordings it comes from."""

    family: str
    text: str


def training_prompt(
    sample: Sample,
    families: Mapping[str, Sequence[str]],
    *,
    seed: int,
    epoch: int = 0,
    open_template: str = "",
) -> TrainingPrompt:
    """The text asked in training: seed, epoch and sample id draw a family, then a paraphrase.

    `open_template` is asked in place of a drawn one where the sample has no options; empty draws.
    """
    family = sorted(families)[_draw(len(families), seed, epoch, sample.id, "family")]
    wordings = families[family]
    if open_template and not sample.options:
        return TrainingPrompt("open", fill(open_template, sample))
    return TrainingPrompt(
        family, fill(wordings[_draw(len(wordings), seed, epoch, sample.id, family)], sample)
    )


def evaluation_prompt(sample: Sample, template: str, *, open_template: str = "") -> str:
    """The text asked in evaluation, by the template of open questions where one is given."""
    return fill(open_template if open_template and not sample.options else template, sample)


def fill(template: str, sample: Sample) -> str:
    """The template with the problem (question and options on one line) in place of `{question}`."""
    return template.replace("{question}", sample.problem)


def conversation(text: str) -> list[dict[str, str]]:
    """One user turn in the form TRL takes: it puts the image before the text."""
    return [{"role": "user", "content": text}]


def turn(reply: str) -> list[dict[str, str]]:
    """The assistant's turn that answers a conversation."""
    return [{"role": "assistant", "content": reply}]


def _draw(count: int, *parts: object) -> int:
    """A number below `count` that depends on the parts alone."""
    drawn = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(drawn[:8]) % count
