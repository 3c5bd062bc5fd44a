"""A judge behind an OpenAI-compatible endpoint: one call, tried again where that can help."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable

from medreason.config.judge import Judge
from medreason.judging.rubric import Item, NoVerdictError, Verdict, read

_LONGEST_WAIT_S = 60.0


class FailedError(Exception):
    """One item could not be graded. `lost`: nothing that a judge says came back, the last time."""

    def __init__(self, reason: str, *, lost: bool = False) -> None:
        super().__init__(reason)
        self.lost = lost


def judge_of(judge: Judge) -> Callable[[Item], Verdict]:
    """A function that grades one item; several threads may call it.

    Raises:
        ValueError: `openai` is not installed. The function raises it where no call can succeed (the
            key is refused, the model unknown), and FailedError for an item that was given up.
    """
    try:
        import openai  # an extra, and a second to import
    except ImportError as error:
        raise ValueError(
            "judge.kind='openai' needs the package openai: pip install -e '.[judge]'"
        ) from error
    # Endpoints on one's own machine take no key, but the client wants one.
    key = os.environ.get(judge.api_key_env) or "none"
    client = openai.OpenAI(
        base_url=judge.base_url, api_key=key, timeout=judge.timeout_s, max_retries=0
    )
    where = f"judge.base_url={judge.base_url}"

    def once(item: Item) -> Verdict:
        reply = client.chat.completions.create(
            model=judge.model,
            messages=[
                {"role": "system", "content": item.instructions},
                {"role": "user", "content": item.question},
            ],
            temperature=judge.temperature,
            max_tokens=judge.max_tokens,
        )
        if not getattr(reply, "choices", None):
            raise FailedError("the reply is no chat completion", lost=True)
        score, evaluation = read(reply.choices[0].message.content or "", item.top)
        usage = reply.usage
        return Verdict(
            score,
            evaluation,
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
        )

    def grade(item: Item) -> Verdict:
        failure = FailedError("not asked")
        for attempt in range(1, judge.attempts + 1):
            wait = judge.backoff_s * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)
            try:
                return once(item)
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
            except (openai.RateLimitError, openai.InternalServerError) as error:
                failure = FailedError(f"status {error.status_code}")
                wait = _told_to_wait(error.response.headers.get("retry-after")) or wait
            except openai.APIStatusError as error:  # our request is at fault: no use to repeat it
                raise FailedError(f"status {error.status_code}") from None
            except openai.APITimeoutError:
                failure = FailedError(f"no answer in {judge.timeout_s:g} s", lost=True)
            except openai.APIConnectionError:
                failure = FailedError("connection lost", lost=True)
            except FailedError as error:
                failure = error
            except NoVerdictError:
                failure = FailedError("no verdict in the reply")
            except (openai.APIError, json.JSONDecodeError):
                failure = FailedError("the reply is not whole JSON")
            if attempt < judge.attempts:
                _wait(wait)
        raise failure from None

    return grade


def _told_to_wait(header: str | None) -> float | None:
    try:
        return float(header or "")
    except ValueError:  # a date, or nothing
        return None


def _wait(seconds: float) -> None:
    time.sleep(min(max(seconds, 0.0), _LONGEST_WAIT_S))
