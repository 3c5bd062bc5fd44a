"""Answers of a served model, to the same rows and read in the same way as `answers` does."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers.processing_utils import ProcessorMixin

from medreason.config import Config, Model
from medreason.console import notice
from medreason.evaluation.answers import OnBatch
from medreason.evaluation.option_likelihood import answer_texts
from medreason.generation import served_model
from medreason.generation.context_length import prompt_tokens
from medreason.generation.kept_replies import KeptReplies, reply_to, scores_of
from medreason.generation.parallel_requests import parallel_requests
from medreason.generation.rows import FAILED, Completion, EvaluationRow
from medreason.generation.served_model import PROBE_PROMPT, PROBE_TOKENS, Probe
from medreason.models.load import context_length, load_processor
from medreason.runs import keys

_log = logging.getLogger(__name__)

_SIDES = (1024, 448, 224, 112, 56)
"""Of a square probe image, in pixels; the largest that fits the model's context."""


def answer_rows(
    config: Config,
    rows: Sequence[EvaluationRow],
    *,
    on_batch: OnBatch,
    on_answers: Callable[[Mapping[int, Completion]], None],
) -> None:
    """Ask the server for the rows that no kept reply answers; `on_answers` gets each completion by
    its place in `rows`, those without a reply last, with FAILED as their finish reason.

    Raises:
        ValueError: the server is another than was meant, or gives no replies any more.
    """
    if not rows:
        return
    model = config.model
    replies = KeptReplies(reply_file(config))
    replies.refuse_other_server(_probe(model), model)
    ask, max_tokens = served_model.ask_of(model), config.evaluation.max_new_tokens

    def answer(row: EvaluationRow) -> Completion:
        return reply_to(model, replies, ask, row, max_tokens)

    outcomes = parallel_requests(
        answer,
        dict(enumerate(rows)),
        concurrency=model.endpoint.concurrency,
        unreached=lambda error: served_model.unreached(model, error),
        reached=True,  # by the probe
    )
    failures: dict[int, Completion] = {}
    for done, (i, outcome) in enumerate(outcomes, 1):
        if isinstance(outcome, Completion):
            on_answers({i: outcome})
        else:
            failures[i] = Completion(rows[i].prompt, str(outcome), 0, 0, FAILED)
        on_batch(done)
    if failures:
        reasons = Counter(failed.text for failed in failures.values())
        _log.warning("%d of %d requests failed: %s", len(failures), len(rows), dict(reasons))
        on_answers(failures)


def score_options(
    config: Config,
    rows: Sequence[EvaluationRow],
    *,
    on_batch: OnBatch,
    on_likelihoods: Callable[[Mapping[int, list[float]]], None],
    on_answers: Callable[[Mapping[int, Completion]], None],
) -> None:
    """Have the server score the letters of rows with options, those of no kept reply;
    `on_likelihoods` gets the probabilities of each row's letters by its place in `rows`,
    `on_answers` the rows that got none, with FAILED as their finish reason.

    Raises:
        ValueError: the server is another than was meant, scores no prompts, or is lost.
    """
    if not rows:
        return
    model, tagged = config.model, config.prompt.style != "free"
    replies = KeptReplies(reply_file(config))
    replies.refuse_other_server(_probe(model), model)
    served_model.refuse_without_scores(model)
    score = served_model.score_of(model)
    outcomes = parallel_requests(
        lambda row: scores_of(model, replies, score, row, answer_texts(row.sample, tagged=tagged)),
        dict(enumerate(rows)),
        concurrency=model.endpoint.concurrency,
        unreached=lambda error: served_model.unreached(model, error),
        reached=True,
    )
    for done, (i, outcome) in enumerate(outcomes, 1):
        if isinstance(outcome, list):
            on_likelihoods({i: torch.tensor(outcome, dtype=torch.float64).softmax(0).tolist()})
        else:
            on_answers({i: Completion(rows[i].prompt, str(outcome), 0, 0, FAILED)})
        on_batch(done)


def reply_file(config: Config) -> Path:
    """Where the replies of the configured model are kept."""
    endpoint = config.model.endpoint
    digest = keys.digest({"base_url": endpoint.base_url, "model": endpoint.model})
    return config.folder / "cache" / "replies" / f"{digest}.jsonl"


def _probe(model: Model) -> Probe:
    """The server's replies to the probe; where `model.path` says what it is meant to serve, with
    the token counts of that model's processor.

    Raises:
        ValueError: the server counts other tokens.
    """
    if not model.path:
        return served_model.probe(model)
    processor = load_processor(model)
    side = _probe_side(model, processor)
    probe = served_model.probe(model, (side, side))
    if not probe.counts_tokens:
        notice(f"{model.endpoint.base_url} counts no tokens: they are not compared")
        return probe
    text = prompt_tokens(processor, PROBE_PROMPT, None)
    image = prompt_tokens(processor, PROBE_PROMPT, (side, side))
    where = f"model.endpoint.base_url={model.endpoint.base_url}: {model.endpoint.model!r} counts"
    if probe.text.prompt_tokens != text:
        raise ValueError(
            f"{where} {probe.text.prompt_tokens} tokens of a prompt without an image, and "
            f"model.path={model.path} {text}: another tokenizer or chat template; serve that "
            "model, or set model.path to the one that is served"
        )
    if probe.image.prompt_tokens != image:
        raise ValueError(
            f"{where} {probe.image.prompt_tokens - text} tokens of an image of {side} x {side}, "
            f"and model.path={model.path} with model.max_pixels={model.max_pixels} "
            f"{image - text}: another pixel limit; start the server with that limit (vLLM: "
            "--mm-processor-kwargs), or set model.max_pixels to the server's"
        )
    return probe


def _probe_side(model: Model, processor: ProcessorMixin) -> int:
    limit = context_length(model)
    for side in _SIDES:
        tokens = prompt_tokens(processor, PROBE_PROMPT, (side, side))
        if limit is None or tokens + PROBE_TOKENS <= limit:
            return side
    return _SIDES[-1]
