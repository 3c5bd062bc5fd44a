"""What a judge is asked, and how its reply is read."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

from medreason.config.judge import Judge, Scale
from medreason.samples import Sample


class NoVerdictError(ValueError):
    """The judge's reply has no score that its scale knows."""


@dataclass(frozen=True)
class Item:
    """One thing to be graded: what the judge is told and asked."""

    instructions: str
    question: str
    top: int

    def key(self, judge: Judge) -> str:
        """The same for the same question to the same judge: its verdict is asked for once."""
        asked = [*judge.identity, judge.temperature, judge.max_tokens]
        text = json.dumps([*asked, self.instructions, self.question, self.top])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Verdict:
    score: int
    """0 to the top of the scale."""
    evaluation: str
    """The judge's one sentence."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


def item(scale: Scale, sample: Sample, given: str) -> Item:
    """The question whether `given`, a reply's reasoning or answer, holds for a sample."""
    text = scale.question
    for name, value in {
        "{question}": sample.problem,
        "{answer}": sample.answer_text,
        "{explanation}": sample.explanation or "none is known",
        "{given}": given,  # last: what a model wrote is not searched for fields
    }.items():
        text = text.replace(name, value)
    return Item(scale.instructions, text, scale.top)


def read(text: str, top: int) -> tuple[int, str]:
    """(score, evaluation) of the first JSON object in a judge's reply.

    Raises:
        NoVerdictError: there is none, it is cut off, or its score is no whole number of the scale.
    """
    start = text.find("{")
    try:
        found = json.JSONDecoder().raw_decode(text[start:])[0] if start >= 0 else None
    except (json.JSONDecodeError, RecursionError):
        found = None
    if not isinstance(found, dict) or "score" not in found:
        raise NoVerdictError(f"no JSON with a score in {text[:80]!r}")
    score = found["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise NoVerdictError(f"score {score!r} is no number")
    if score != int(score) or not 0 <= score <= top:
        raise NoVerdictError(f"score {score!r} is no whole number from 0 to {top}")
    return int(score), str(found.get("evaluation", ""))
