"""A judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Callable

from openai.types.chat import ChatCompletion

from medreason.config.judge import Judge
from medreason.generation.chat_endpoint import client_of, message_of, request
from medreason.generation.parallel_requests import FailedError
from medreason.judging.rubric import Item, Verdict, read


def judge_of(judge: Judge) -> Callable[[Item], Verdict]:
    """A function that grades one item in at most `judge.attempts` requests; it is thread-safe.

    Failed requests are repeated as in `client_of`; a reply without a verdict is asked for again at
    once. The function raises FailedError for an item that it gives up, ValueError where no request
    can succeed (key refused, model unknown).
    """
    client = client_of(judge)
    settings = {"temperature": judge.temperature, "max_tokens": judge.max_tokens}

    def grade(item: Item) -> Verdict:
        messages = [
            {"role": "system", "content": item.instructions},
            {"role": "user", "content": item.question},
        ]
        attempts = judge.attempts
        while True:
            retrying = client.with_options(max_retries=attempts - 1)
            completion, requests = request(retrying, judge, "judge", messages, settings)
            attempts -= requests
            try:
                return _verdict(completion, item.top)
            except FailedError:
                if attempts < 1:
                    raise

    return grade


def _verdict(completion: ChatCompletion | None, top: int) -> Verdict:
    score, evaluation = read(message_of(completion).content or "", top)
    usage = completion.usage if completion else None
    if usage is None:
        return Verdict(score, evaluation)
    return Verdict(score, evaluation, usage.prompt_tokens, usage.completion_tokens)
