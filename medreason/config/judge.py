"""Schema of `judge` and `rubric`: which model grades replies, and by what scale."""

from __future__ import annotations

from dataclasses import dataclass, field

from medreason.config.endpoint import Endpoint
from medreason.config.rules import one_of, positive

KINDS = ("none", "openai", "local")
ASPECTS = ("reasoning", "answer")


@dataclass
class Judge(Endpoint):
    """A model that grades replies: of an endpoint, or loaded here, with `model` a hub id or a
    folder."""

    name: str = "none"
    kind: str = "none"
    """none, openai (any endpoint with OpenAI's chat protocol) or local (a model loaded here)."""
    temperature: float = 0.0
    """0 to 2; above 0 the cached grade of an item is one random sample."""
    max_tokens: int = 256
    allow_reward_judge: bool = False
    """Let the judge whose grades a run was trained on grade its replies too."""

    def __post_init__(self) -> None:
        one_of("judge.kind", self.kind, KINDS)
        positive("judge.max_tokens", self.max_tokens)
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"judge.temperature={self.temperature}; give a number from 0 to 2")
        self.check("judge")
        if self.kind != "none" and not self.model:
            raise ValueError("judge.model has no value; set judge.model=... on the command line")
        if self.kind == "openai":
            self.check_address("judge")

    @property
    def identity(self) -> tuple[str, str, str]:
        """What tells judges apart, whatever they grade."""
        return self.kind, self.base_url, self.model


@dataclass
class Scale:
    """How one aspect of a reply is graded."""

    top: int = 3
    """The best score; 0 is the worst."""
    instructions: str = ""
    """The system prompt: the judge's task and the meaning of each score."""
    question: str = ""
    """The user prompt, with `{question}`, the references `{answer}` and `{explanation}`, and
    `{given}`, the text to grade."""


@dataclass
class Rubric:
    name: str = "none"
    reasoning: Scale = field(default_factory=Scale)
    answer: Scale = field(default_factory=Scale)

    def check(self, aspect: str) -> Scale:
        """The scale of an aspect.

        Raises:
            ValueError: the scale lacks what a judge needs.
        """
        scale: Scale = getattr(self, aspect)
        needed = ("{given}", "{explanation}" if aspect == "reasoning" else "{answer}")
        for text in needed:
            if text not in scale.question:
                raise ValueError(
                    f"rubric.{aspect}.question has no {text}; rubric={self.name} cannot grade "
                    f"without it: add it, or choose rubric=reference"
                )
        if "score" not in scale.instructions or scale.top < 1:
            raise ValueError(
                f"rubric.{aspect}: needs instructions that ask for JSON with `score`, and a top of "
                f"at least 1; found top={scale.top}. rubric=reference shows how"
            )
        return scale
