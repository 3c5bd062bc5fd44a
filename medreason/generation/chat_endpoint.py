"""One request to a server with OpenAI's chat protocol; the openai client repeats what fails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessage

from medreason.config.endpoint import Endpoint
from medreason.generation.parallel_requests import FailedError

_WORDS = 300
"""Characters of a server's error that are shown."""


class UnknownModelError(ValueError):
    """The server answers, and not for this model."""


def api_key(endpoint: Endpoint) -> str:
    """The key in the environment; endpoints on one's own machine take none, but the client wants
    one."""
    return os.environ.get(endpoint.api_key_env, "").strip() or "none"


def client_of(endpoint: Endpoint) -> openai.OpenAI:
    """A thread-safe client, which repeats a request after 429, 5xx, a timeout or a lost connection:
    after the server's Retry-After (a failure beyond 2 minutes), else after 0.5 s, doubled each time
    up to 8 s."""
    return openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=api_key(endpoint),
        timeout=endpoint.timeout_s,
        max_retries=endpoint.attempts - 1,
    )


def request(
    client: openai.OpenAI,
    endpoint: Endpoint,
    group: str,
    messages: Sequence[Any],
    settings: dict[str, Any],
) -> tuple[ChatCompletion | None, int]:
    """The completion, None where the body is not whole JSON, and how many requests it took.

    `group` is the configuration's, for errors; `settings` are fields of the request's body.

    Raises:
        ValueError: no request can succeed: key refused, model unknown.
        FailedError: this one failed, after all its attempts.
    """
    where = f"{group}.base_url={endpoint.base_url}"
    try:
        response = client.chat.completions.with_raw_response.create(
            model=endpoint.model, messages=[*messages], extra_body=settings
        )
    # The server's words are left out: some repeat the key they refuse.
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise ValueError(
            f"{where} refuses the key (status {error.status_code}); put a valid one into "
            f"the environment variable {endpoint.api_key_env}"
        ) from None
    except openai.NotFoundError:
        raise UnknownModelError(
            f"{where} knows no model {endpoint.model!r}, or is no chat endpoint; "
            f"set {group}.model=... or {group}.base_url=.../v1"
        ) from None
    except openai.APIStatusError as error:
        status, words = error.status_code, _without_key(error.message, endpoint)
        raise FailedError(f"status {status}", status=status, words=words) from None
    except openai.APITimeoutError:
        raise FailedError(f"no answer in {endpoint.timeout_s:g} s", lost=True) from None
    except openai.APIConnectionError:
        raise FailedError("connection lost", lost=True) from None
    requests = response.retries_taken + 1
    try:
        return response.parse(), requests
    except ValueError:  # of the JSON decoder
        return None, requests


def message_of(completion: ChatCompletion | None) -> ChatCompletionMessage:
    """The message of the completion's first choice.

    Raises:
        FailedError: the reply is none of a chat endpoint.
    """
    if completion is None:
        raise FailedError("the reply is not whole JSON")
    # The client checks no types, so an endpoint of another kind may lack any of these.
    choices = getattr(completion, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    if message is None:
        raise FailedError("the reply is no chat completion", lost=True)
    return message


def listed_models(client: openai.OpenAI) -> list[str] | None:
    """The names in the server's list of models; None where it has no such list."""
    try:
        listing: Any = client.get("/models", cast_to=object)
    except (openai.OpenAIError, ValueError):  # no list, or no JSON; a request says what is wrong
        return None
    rows = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(rows, list):
        return None
    return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]


def _without_key(words: str, endpoint: Endpoint) -> str:
    """A server's error, shortened, without the key that it may repeat."""
    plain = " ".join(words.replace(api_key(endpoint), "***").split())
    return plain if len(plain) <= _WORDS else f"{plain[:_WORDS]}..."
