"""Schema of `judge` and `rubric`: which model grades replies, and by what scale."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field

from medreason.config.rules import one_of, positive

KINDS = ("none", "openai", "local")
ASPECTS = ("reasoning", "answer")


@dataclass
class Judge:
    """A model that grades replies. Its API key comes from the environment, never from here."""

    name: str = "none"
    kind: str = "none"
    """none, openai (any endpoint with OpenAI's chat protocol) or local (a model loaded here)."""
    model: str = ""
    """The endpoint's name for the model; for a local judge a hub id or a folder."""
    base_url: str = ""
    """Address of the endpoint; it usually ends with `/v1`."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the API key."""
    temperature: float = 0.0
    max_tokens: int = 256
    concurrency: int = 16
    """Requests at the same time."""
    attempts: int = 5
    """Requests for one item before it counts as failed; a failed item is left out of the scores."""
    timeout_s: float = 60.0
    """Seconds for one request."""
    price_in: float = 0.0
    """US dollars for a million prompt tokens; with both prices 0 no cost is reported."""
    price_out: float = 0.0
    """US dollars for a million completion tokens."""
    allow_reward_judge: bool = False
    """Let the judge whose grades a run was trained on grade its replies too."""

    def __post_init__(self) -> None:
        one_of("judge.kind", self.kind, KINDS)
        for key in ("max_tokens", "concurrency", "attempts"):
            positive(f"judge.{key}", getattr(self, key))
        if not self.timeout_s > 0:
            raise ValueError(f"judge.timeout_s={self.timeout_s}; give seconds, more than 0")
        address = urllib.parse.urlsplit(self.base_url)
        if address.password or address.username:
            raise ValueError(
                "judge.base_url holds a user name or a password, which would be written to every "
                "run folder; put the key into the variable that judge.api_key_env names"
            )
        if self.kind != "none" and not self.model:
            raise ValueError("judge.model has no value; set judge.model=... on the command line")
        if self.kind == "openai" and address.scheme not in ("http", "https"):
            raise ValueError(
                f"judge.base_url={self.base_url!r}; give an address such as http://127.0.0.1:8000/v1"
            )

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
