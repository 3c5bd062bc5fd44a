"""A model that a server answers for: questions to it, and whether it is the one that is meant."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import openai
from openai.types.chat import ChatCompletion
from PIL import Image

from medreason.config import Model
from medreason.generation import chat_endpoint
from medreason.generation.chat_endpoint import UnknownModelError
from medreason.generation.parallel_requests import FailedError
from medreason.generation.rows import Completion

_GROUP = "model.endpoint"
_LISTED = 10
_REASONING_FIELDS = ("reasoning_content", "reasoning")
"""Where vLLM, transformers and others put what a reasoning parser took out of the content."""
_END = re.compile(r"(<\|\w+\|>)+$")
"""Special tokens behind a text."""
PROBE_PROMPT = "What does this image show?"
PROBE_TOKENS = 16
_PROBE_SIZE = (112, 112)

Ask = Callable[[str, Image.Image | None, int], Completion]
"""The reply to a prompt about an image, or about none, of at most so many tokens."""

Score = Callable[[str, Image.Image | None, Sequence[str]], list[float]]
"""The log-probability of each text as the beginning of the reply to a prompt, less that of the
tokens which all of them begin with."""

_PROMPT_SCORES = {
    "prompt_logprobs": 0,
    "continue_final_message": True,
    "add_generation_prompt": False,
}
"""Fields by which vLLM scores a prompt that ends within the assistant's turn."""


def ask_of(model: Model) -> Ask:
    """A thread-safe function that asks the server for one greedy reply.

    The function raises FailedError where all attempts failed, ValueError where no request can
    succeed (key refused, model unknown).
    """
    endpoint, client = model.endpoint, chat_endpoint.client_of(model.endpoint)

    def ask(prompt: str, image: Image.Image | None, max_tokens: int) -> Completion:
        settings = endpoint.fields(max_tokens)
        messages = [{"role": "user", "content": _content(prompt, image)}]
        completion, _ = chat_endpoint.request(client, endpoint, _GROUP, messages, settings)
        return _completion(prompt, completion)

    return ask


def score_of(model: Model) -> Score:
    """A thread-safe function that has the server score texts as beginnings of its reply.

    The function raises FailedError where all attempts failed, ValueError where no request can
    succeed, as on a server that scores no prompts.
    """
    endpoint, client = model.endpoint, chat_endpoint.client_of(model.endpoint)
    settings = endpoint.fields(1) | _PROMPT_SCORES

    def score(prompt: str, image: Image.Image | None, texts: Sequence[str]) -> list[float]:
        question = {"role": "user", "content": _content(prompt, image)}
        tokens: list[list[tuple[str, float]]] = []
        for text in texts:
            messages = [question, {"role": "assistant", "content": text}]
            completion, _ = chat_endpoint.request(client, endpoint, _GROUP, messages, settings)
            chat_endpoint.message_of(completion)
            tokens.append(_prompt_scores(model, completion))
        ids = [[token for token, _ in row] for row in tokens]
        places = enumerate(zip(*ids, strict=False))
        shared = next((i for i, row in places if len(set(row)) > 1), min(map(len, ids)))
        return [sum(logp for _, logp in row[shared:]) for row in tokens]

    return score


def _prompt_scores(model: Model, completion: ChatCompletion | None) -> list[tuple[str, float]]:
    """(id, log-probability) of the tokens of the prompt, but the first, which has none."""
    places = getattr(completion, "prompt_logprobs", None)
    if not places:
        raise ValueError(_no_scores(model, "none in its reply"))
    # Of each place vLLM names the prompt's own token first.
    first = [next(iter(place.items())) for place in places if place]
    return [(token, float(values["logprob"])) for token, values in first]


def _no_scores(model: Model, words: str) -> str:
    return (
        f"model.endpoint.base_url={model.endpoint.base_url}: {model.endpoint.model!r} gives no "
        f"log-probabilities of a prompt ({words}), of which option likelihoods are made; serve it "
        "by `vllm serve`, or set 'evaluation.answers=[generated]'"
    )


def refuse_without_scores(model: Model) -> None:
    """Have the server score a small prompt, before those of an evaluation.

    Raises:
        ValueError: it gives no log-probabilities of prompts.
    """
    try:
        score_of(model)(PROBE_PROMPT, None, ("A", "B"))
    except FailedError as error:
        words = f"{error}: {error.words}" if error.words else str(error)
        raise ValueError(_no_scores(model, words)) from None


def _content(prompt: str, image: Image.Image | None) -> str | list[dict[str, Any]]:
    """The image before the text, as the local prompts have it; in PNG, which loses nothing."""
    if image is None:
        return prompt
    stream = BytesIO()
    image.save(stream, "PNG", compress_level=1)
    url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]


def _completion(prompt: str, completion: ChatCompletion | None) -> Completion:
    """The reply with its reasoning in tags, as the model wrote it before a parser took it out.

    What the model says in place of an answer, a refusal too, is a reply like any other.
    """
    message = chat_endpoint.message_of(completion)
    assert completion
    content = message.content or getattr(message, "refusal", None) or ""
    if not isinstance(content, str):
        raise FailedError("the content of the reply is no text")
    cut_off = completion.choices[0].finish_reason == "length"
    fields = (getattr(message, name, None) for name in _REASONING_FIELDS)
    if (reasoning := next(filter(None, fields), None)) and "<think>" not in content:
        # Not closed where it was cut off, or where `transformers serve` left the end token in.
        inside = _END.sub("", reasoning)
        closed = content or not (cut_off or inside != reasoning)
        thought = f"{inside}</think>" if closed else inside
        content = f"<think>{thought}{content}"
    usage = completion.usage
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    return Completion(prompt, content, *tokens, "length" if cut_off else "stop")


@dataclass(frozen=True)
class Probe:
    """Replies to a question without an image, and about `shown`."""

    text: Completion
    image: Completion
    shown: Image.Image

    @property
    def counts_tokens(self) -> bool:
        return self.text.prompt_tokens > 0


def probe(model: Model, size: tuple[int, int] = _PROBE_SIZE) -> Probe:
    """Ask the server two small questions, before those of an evaluation.

    Raises:
        ValueError: it is not reached, refuses the key or the request, does not have the model, or
            takes no images; with its own words and a remedy.
    """
    endpoint, ask = model.endpoint, ask_of(model)
    where = f"model.endpoint.base_url={endpoint.base_url}"
    if endpoint.listed:
        _refuse_unlisted(model, chat_endpoint.client_of(endpoint))
    try:
        text = ask(PROBE_PROMPT, None, PROBE_TOKENS)
    except FailedError as error:
        if error.status is None:
            raise ValueError(unreached(model, error)) from None
        raise ValueError(
            f"{where} refuses a question to {endpoint.model!r} ({error}: {error.words}); a field "
            "that it does not take is left out by '+model.endpoint.request.FIELD=null', one that "
            "it needs set by '+model.endpoint.request.FIELD=...'"
        ) from None
    # A picture that any server takes, the same every time.
    shown = Image.linear_gradient("L").convert("RGB").resize(size)
    try:
        image = ask(PROBE_PROMPT, shown, PROBE_TOKENS)
    except (FailedError, UnknownModelError) as error:
        words = getattr(error, "words", "") or "status 404"
        raise ValueError(
            f"{where}: {endpoint.model!r} answers a question without an image and refuses one with "
            f"a PNG image of {size[0]} x {size[1]} ({error}: {words}); serve a model that takes "
            "images"
        ) from None
    if text.prompt_tokens and image.prompt_tokens <= text.prompt_tokens:
        raise ValueError(
            f"{where}: {endpoint.model!r} counts {image.prompt_tokens} prompt tokens with an image "
            f"and {text.prompt_tokens} without: the server drops images; serve a model that takes "
            "them"
        )
    return Probe(text, image, shown)


def _refuse_unlisted(model: Model, client: openai.OpenAI) -> None:
    names = chat_endpoint.listed_models(client)
    if names is None:
        return
    wanted = model.endpoint.model
    if wanted in names or f"models/{wanted}" in names:
        return
    more = ", ..." if len(names) > _LISTED else ""
    listed = ", ".join(map(repr, names[:_LISTED])) + more if names else "none"
    raise ValueError(
        f"model.endpoint.model={wanted!r} is not among the models that {model.endpoint.base_url} "
        f"lists: {listed}; set model.endpoint.model to one of them, or where the server answers "
        "for models that it does not list (`transformers serve` lists its hub cache alone), "
        "model.endpoint.listed=false"
    )


def unreached(model: Model, error: FailedError) -> str:
    """The error for a server that gives no replies, or none any more."""
    endpoint = model.endpoint
    words = f"{error}: {error.words}" if error.words else str(error)
    return (
        f"model.endpoint.base_url={endpoint.base_url} gives no replies ({words}; "
        f"{endpoint.attempts} attempts each); start the server, set "
        "model.endpoint.base_url=.../v1, or fewer requests at once by "
        f"model.endpoint.concurrency={max(endpoint.concurrency // 4, 1)}; replies so far are kept: "
        "re-run the same command to resume"
    )
