"""The wording of a question: the only place that makes a prompt from a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from medreason.samples import Sample


def training_prompt(sample: Sample, templates: Sequence[str], *, seed: int) -> str:
    """The text asked in training; where there are several templates, seed and sample id choose."""
    drawn = hashlib.sha256(f"{seed}:{sample.id}".encode()).digest()
    return fill(templates[int.from_bytes(drawn[:8]) % len(templates)], sample)


def fill(template: str, sample: Sample) -> str:
    """The template with the problem (question and options on one line) in place of `{question}`."""
    return template.replace("{question}", sample.problem)


def conversation(text: str) -> list[dict[str, str]]:
    """One user turn in the form TRL takes: it puts the image before the text."""
    return [{"role": "user", "content": text}]


def turn(reply: str) -> list[dict[str, str]]:
    """The assistant's turn that answers a conversation."""
    return [{"role": "assistant", "content": reply}]
