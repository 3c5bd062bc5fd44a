"""A judge behind an OpenAI-compatible endpoint; the openai client repeats failed HTTP requests."""

from __future__ import annotations

import os
from collections.abc import Callable

import openai
from openai.types.chat import ChatCompletion

from medreason.config.judge import Judge
from medreason.judging.rubric import FailedError, Item, Verdict, read


def judge_of(judge: Judge) -> Callable[[Item], Verdict]:
    """A function that grades one item in at most `judge.attempts` requests; it is thread-safe.

    The client repeats a request after 429, 5xx, a timeout or a lost connection: after the server's
    Retry-After (a failure beyond 2 minutes), else after 0.5 s, doubled each time up to 8 s. A reply
    without a verdict is asked for again at once. The function raises FailedError for an item that
    it gives up, ValueError where no request can succeed (key refused, model unknown).
    """
    # Endpoints on one's own machine take no key, but the client wants one.
    key = os.environ.get(judge.api_key_env) or "none"
    client = openai.OpenAI(base_url=judge.base_url, api_key=key, timeout=judge.timeout_s)

    def grade(item: Item) -> Verdict:
        attempts = judge.attempts
        while True:
            retrying = client.with_options(max_retries=attempts - 1)
            completion, requests = _request(retrying, judge, item)
            attempts -= requests
            try:
                return _verdict(completion, item.top)
            except FailedError:
                if attempts < 1:
                    raise

    return grade


def _request(client: openai.OpenAI, judge: Judge, item: Item) -> tuple[ChatCompletion | None, int]:
    """The completion, None where the body is not whole JSON, and how many requests it took."""
    where = f"judge.base_url={judge.base_url}"
    try:
        response = client.chat.completions.with_raw_response.create(
            model=judge.model,
            messages=[
                {"role": "system", "content": item.instructions},
                {"role": "user", "content": item.question},
            ],
            temperature=judge.temperature,
            max_tokens=judge.max_tokens,
        )
    # The server's words are left out: some repeat the key they refuse.
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise ValueError(
            f"{where} refuses the key (status {error.status_code}); put a valid one into "
            f"the environment variable {judge.api_key_env}"
        ) from None
    except openai.NotFoundError:
        raise ValueError(
            f"{where} knows no model {judge.model!r}, or is no chat endpoint; "
            "set judge.model=... or judge.base_url=.../v1"
        ) from None
    except openai.APIStatusError as error:
        raise FailedError(f"status {error.status_code}") from None
    except openai.APITimeoutError:
        raise FailedError(f"no answer in {judge.timeout_s:g} s", lost=True) from None
    except openai.APIConnectionError:
        raise FailedError("connection lost", lost=True) from None
    requests = response.retries_taken + 1
    try:
        return response.parse(), requests
    except ValueError:  # of the JSON decoder
        return None, requests


def _verdict(completion: ChatCompletion | None, top: int) -> Verdict:
    if completion is None:
        raise FailedError("the reply is not whole JSON")
    # The client checks no types, so an endpoint of another kind may lack any of these.
    choices = getattr(completion, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    if message is None:
        raise FailedError("the reply is no chat completion", lost=True)
    score, evaluation = read(message.content or "", top)
    usage = completion.usage
    if usage is None:
        return Verdict(score, evaluation)
    return Verdict(score, evaluation, usage.prompt_tokens, usage.completion_tokens)
