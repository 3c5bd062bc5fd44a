"""The wording of a question: the only module that makes a prompt from a sample."""

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
    """A training prompt: seed, epoch and sample id choose a family, then one of its wordings.

    A sample without options gets `open_template` instead, unless that is empty.
    """
    if open_template and not sample.options:
        return TrainingPrompt("open", fill(open_template, sample))
    family = sorted(families)[_choose(len(families), seed, epoch, sample.id, "family")]
    wordings = families[family]
    template = wordings[_choose(len(wordings), seed, epoch, sample.id, family)]
    return TrainingPrompt(family, fill(template, sample))


def evaluation_prompt(sample: Sample, template: str, *, open_template: str = "") -> str:
    """The evaluation prompt; `open_template`, unless empty, is for samples without options."""
    return fill(open_template if open_template and not sample.options else template, sample)


def fill(template: str, sample: Sample) -> str:
    """The template with the problem (question and options on one line) in place of `{question}`."""
    return template.replace("{question}", sample.problem)


def conversation(text: str) -> list[dict[str, str]]:
    """One user turn in the form that TRL takes; TRL puts the image before the text."""
    return [{"role": "user", "content": text}]


def turn(reply: str) -> list[dict[str, str]]:
    """The assistant's turn that ends a conversation."""
    return [{"role": "assistant", "content": reply}]


def _choose(count: int, *parts: object) -> int:
    """A number below `count` that depends on the parts alone."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) % count
