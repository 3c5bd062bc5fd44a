"""The text sent to a judge, and the verdict parsed from its reply."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from medreason.config.judge import Judge, Scale
from medreason.generation.parallel_requests import FailedError
from medreason.samples import Sample


class NoVerdictError(FailedError):
    """The judge's reply has no score of its scale."""

    def __init__(self) -> None:
        super().__init__("no verdict in the reply")


@dataclass(frozen=True)
class Item:
    """One reasoning or answer to grade, as the judge gets it."""

    instructions: str
    """The system prompt."""
    question: str
    """The user's turn, with the text to grade."""
    top: int
    """The best score."""

    def key(self, judge: Judge) -> str:
        """The name of its verdict in the cache: equal for an equal item and judge."""
        settings = [*judge.identity, judge.temperature, judge.max_tokens]
        text = json.dumps([*settings, self.instructions, self.question, self.top])
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
    """The item that grades `given`, the reasoning or answer of a reply to the sample."""
    text = scale.question
    for name, value in {
        "{question}": sample.problem,
        "{answer}": " or ".join(sample.references),
        "{explanation}": sample.explanation or "none is known",
        "{given}": given,  # last, so that fields in a model's text stay text
    }.items():
        text = text.replace(name, value)
    return Item(scale.instructions, text, scale.top)


def read(text: str, top: int) -> tuple[int, str]:
    """(score, evaluation) of the first JSON object in a judge's reply.

    Raises:
        NoVerdictError: no object, one that is cut off, or a score that is no integer of the scale.
    """
    _, brace, rest = text.partition("{")
    try:
        verdict, _ = json.JSONDecoder().raw_decode(brace + rest)
    except (json.JSONDecodeError, RecursionError):
        raise NoVerdictError from None
    score = verdict.get("score")
    if isinstance(score, bool) or score not in range(top + 1):
        raise NoVerdictError
    return int(score), str(verdict.get("evaluation", ""))
