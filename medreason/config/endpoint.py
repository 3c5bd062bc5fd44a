"""Schema of a server with OpenAI's chat protocol: a judge, or a served model that is evaluated."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from medreason.config.rules import positive

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_FIXED = ("model", "messages", "stream", "n")
"""Fields of a request that `request` may not set."""


@dataclass
class Endpoint:
    """Which model of which server is asked, and how. The API key comes from the environment, never
    from here."""

    model: str = ""
    """The server's name for the model."""
    base_url: str = ""
    """Address of the server; it usually ends with `/v1`."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the API key; a server on one's own machine needs
    none."""
    concurrency: int = 16
    """Requests at the same time."""
    attempts: int = 5
    """Requests for one item before it counts as failed; a failed item is left out of the scores."""
    timeout_s: float = 60.0
    """Seconds for one request."""
    price_in: float | None = None
    """US dollars for a million prompt tokens; without prices no cost is reported."""
    price_out: float | None = None
    """US dollars for a million completion tokens."""

    def check(self, group: str) -> None:
        """Refuse values that no request can be made with; `group` is where they are set.

        Raises:
            ValueError: with key, value and remedy; a value that may be a key is not repeated.
        """
        for key in ("concurrency", "attempts"):
            positive(f"{group}.{key}", getattr(self, key))
        if not self.timeout_s > 0:
            raise ValueError(f"{group}.timeout_s={self.timeout_s}; give seconds, more than 0")
        address = urllib.parse.urlsplit(self.base_url)
        if address.password or address.username or address.query:
            raise ValueError(
                f"{group}.base_url holds a user name, a password or a query (?...), which would be "
                "written to every run folder; give the address alone, and put the key into the "
                f"variable that {group}.api_key_env names"
            )
        if not _VARIABLE.fullmatch(self.api_key_env):
            raise ValueError(
                f"{group}.api_key_env holds no name of an environment variable in capitals, and "
                "would be written to every run folder if it were the key itself; put the key into "
                f"a variable and its name here, such as {group}.api_key_env=OPENAI_API_KEY"
            )
        for key in ("price_in", "price_out"):
            if (price := getattr(self, key)) is not None and not price >= 0:
                raise ValueError(f"{group}.{key}={price}; give US dollars, 0 or more, or null")

    def check_address(self, group: str) -> None:
        """Refuse an endpoint without an address or a model.

        Raises:
            ValueError: with key, value and remedy.
        """
        if urllib.parse.urlsplit(self.base_url).scheme not in ("http", "https"):
            raise ValueError(
                f"{group}.base_url={self.base_url!r}; give an address such as "
                "http://127.0.0.1:8000/v1"
            )
        if not self.model:
            raise ValueError(
                f"{group}.model has no value; set {group}.model=... on the command line"
            )

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """US dollars for so many tokens; None where no price is known."""
        if not (self.price_in or self.price_out):
            return None
        prices = self.price_in or 0.0, self.price_out or 0.0
        return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6


@dataclass
class ServedModel(Endpoint):
    """A model that a server answers for; see `conf/model/endpoint.yaml`."""

    timeout_s: float = 120.0
    """Seconds for one request."""
    listed: bool = True
    """The server's list of models (`/models`) names those it answers for, so the model has to be in
    it; false where it lists others."""
    request: dict[str, Any] = field(default_factory=dict)
    """Fields added to every request, such as chat_template_kwargs; null takes one out that is sent
    otherwise."""

    def __post_init__(self) -> None:
        self.check("model.endpoint")
        if self.base_url:
            self.check_address("model.endpoint")
        for name in _FIXED:
            if name in self.request:
                raise ValueError(
                    f"model.endpoint.request.{name}={self.request[name]!r}: evaluation sets that "
                    "field itself; leave it out"
                )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its replies; the key and the number of requests at once do not."""
        return {"base_url": self.base_url, "model": self.model, "request": self.request}

    def fields(self, max_tokens: int) -> dict[str, Any]:
        """The settings of a request: greedy decoding of at most so many tokens."""
        settings = {"temperature": 0.0, "max_tokens": max_tokens} | self.request
        return {name: value for name, value in settings.items() if value is not None}
