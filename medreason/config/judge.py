"""The part of the schema that judging, predicting and exporting read; see `config`."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field

KINDS = ("none", "openai", "local")
ASPECTS = ("reasoning", "answer")


@dataclass
class Judge:
    """A model that grades replies. Its key comes from the environment, never from here."""

    name: str = "none"
    kind: str = "none"
    """none, openai (any endpoint that speaks its chat protocol) or local (loaded here)."""
    model: str = ""
    """The endpoint's name of the model; of a local judge a hub id or a folder."""
    base_url: str = ""
    """Of the endpoint, usually with `/v1`."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    temperature: float = 0.0
    max_tokens: int = 256
    concurrency: int = 16
    """Calls at once."""
    attempts: int = 5
    """Requests for one item, whatever fails; then it is counted as failed and left out."""
    timeout_s: float = 60.0
    """Of one request."""
    price_in: float = 0.0
    """US dollars a million prompt tokens; 0 where it is not known."""
    price_out: float = 0.0
    allow_reward_judge: bool = False
    """Allow the judge that gave the training reward to judge the evaluation."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            known = ", ".join(map(repr, KINDS))
            raise ValueError(f"judge.kind={self.kind!r}; known: {known}")
        for key in ("max_tokens", "concurrency", "attempts"):
            if getattr(self, key) < 1:
                raise ValueError(f"judge.{key}={getattr(self, key)}; it must be at least 1")
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
        """Which judge it is, whatever it is asked."""
        return self.kind, self.base_url, self.model


@dataclass
class Scale:
    """How one aspect of a reply is graded."""

    top: int = 3
    """The best score; 0 is the worst."""
    instructions: str = ""
    """What the judge is told of its task and of each score."""
    question: str = ""
    """What it is asked: `{question}`, the references `{answer}`, `{explanation}`, and `{given}`."""


@dataclass
class Rubric:
    name: str = "none"
    reasoning: Scale = field(default_factory=Scale)
    answer: Scale = field(default_factory=Scale)

    def check(self, aspect: str) -> Scale:
        """The scale of an aspect. Raises ValueError where it lacks what a judge needs."""
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
