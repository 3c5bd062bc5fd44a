"""Greedy answers to all rows of an evaluation: shared where the model allows it, else unshared."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from medreason.data.images import blank
from medreason.generation import prefix_sharing
from medreason.generation.decoding import decode
from medreason.generation.draft_step import takes_draft_step, takes_drafts
from medreason.generation.drafts import DraftHistory
from medreason.generation.generate import (
    completion_from_ids,
    generate,
    greedy_settings,
    model_inputs,
)
from medreason.generation.kept_graphs import DecodingGraphs
from medreason.generation.prefill import Prefill
from medreason.generation.prefix_sharing import PrefilledPrefixes, PrefixPrefiller
from medreason.generation.prepared_inputs import PreparedInputs
from medreason.generation.row_decoder import decode_refilled
from medreason.generation.rows import Completion, EvaluationRow
from medreason.generation.tolerance import computed_in, tolerance
from medreason.samples import Sample

_log = logging.getLogger(__name__)

UNSHARED_WARNING = "evaluation cannot share images: %s; going on unshared"

_CHECK_PROMPTS = ("Which of these does the image show?", "Which?")
_CHECK_SIZE = (56, 56)

OnBatch = Callable[[int], None]
"""Hears how many rows are finished."""

OnAnswers = Callable[[Mapping[int, Completion]], None]
"""Hears the completions of each batch, by the row's place."""


@torch.inference_mode()
def answer_rows(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[EvaluationRow],
    *,
    batch_size: int,
    max_new_tokens: int,
    graphs: bool = False,
    images_ahead: bool = False,
    drafts: DraftHistory | None = None,
    prepared: PreparedInputs | None = None,
    on_batch: OnBatch = lambda done: None,
    on_answers: OnAnswers = lambda batch: None,
) -> list[Completion]:
    """A completion of each row, in their order, as `generate` gives it. `graphs`: see `decode`;
    with `images_ahead` other threads read and process images meanwhile; `prepared` keeps token ids
    and processed images for the next call.

    `drafts` save passes through the model and change no token; it knows replies by `question_of`.
    """
    if not rows:
        return []
    model.eval()
    if reason := _reason_against_sharing(model, processor, rows[0].sample):
        _log.warning(UNSHARED_WARNING, reason)
        return answer_rows_unshared(
            model,
            processor,
            rows,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            on_batch=on_batch,
            on_answers=on_answers,
        )
    settings = greedy_settings(processor.tokenizer, max_new_tokens)
    prefiller = PrefixPrefiller(model, processor, prepared=prepared)
    if drafts and not takes_drafts(model):
        drafts = None
    # One answer for all rows that ask the same: about a grey image of one size, or about none.
    equal: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        equal[prefiller.shown(row), row.prompt].append(i)
    places = [*equal.values()]
    asked = [rows[first] for first, *_ in places]
    # A CUDA graph has fixed rows, so that none can take the place of another.
    refills = len(asked) > batch_size and not graphs and takes_draft_step(model)
    decoded = (
        _decode_refilled(model, prefiller, asked, settings, batch_size, drafts)
        if refills or drafts
        else _decode_batches(
            model, prefiller, asked, settings, batch_size, DecodingGraphs() if graphs else None
        )
    )
    completions: dict[int, Completion] = {}
    in_order = [asked[i] for i in prefix_sharing.in_order(asked)]
    with prefiller.loading_ahead(in_order) if images_ahead else nullcontext():
        for ended in decoded:
            batch: dict[int, Completion] = {}
            for i, (count, ids) in ended.items():
                completion = completion_from_ids(
                    asked[i].prompt, count, ids, settings, processor.tokenizer
                )
                batch |= dict.fromkeys(places[i], completion)
            completions |= batch
            on_batch(len(completions))
            on_answers(batch)
    return [completions[i] for i in range(len(rows))]


_Decoded = dict[int, tuple[int, list[int]]]
"""(prompt tokens, token ids of the completion) by the row's place."""


def _decode_batches(
    model: PreTrainedModel,
    prefiller: PrefixPrefiller,
    rows: Sequence[EvaluationRow],
    settings: GenerationConfig,
    size: int,
    graphs: DecodingGraphs | None,
) -> Iterator[_Decoded]:
    """`size` rows at a time, until the last of them ends."""
    room = settings.max_new_tokens
    assert room is not None
    for batch in prefix_sharing.batches(rows, size):
        prefixes = prefiller.prefill_prefixes([rows[i] for i in batch])
        prefill = prefiller.prefill_rest(prefixes, room)
        decoded = decode(model, prefill, settings, None, graphs=graphs)
        counts = prefixes.prompt_tokens
        yield {i: (n, tokens.ids) for i, n, tokens in zip(batch, counts, decoded, strict=True)}


def _decode_refilled(
    model: PreTrainedModel,
    prefiller: PrefixPrefiller,
    rows: Sequence[EvaluationRow],
    settings: GenerationConfig,
    size: int,
    drafts: DraftHistory | None,
) -> Iterator[_Decoded]:
    """At most `size` rows at a time, of which those that end are replaced by waiting ones."""
    room = settings.max_new_tokens
    assert room is not None
    order, prompt_tokens = prefix_sharing.in_order(rows), dict[int, int]()
    prefixes_of = _prefixes_ahead(prefiller, rows, order, size)

    def prefill(begun: Sequence[int], drafted: Sequence[Sequence[int]]) -> Prefill:
        prefixes = prefixes_of(begun)
        prompt_tokens.update(zip(begun, prefixes.prompt_tokens, strict=True))
        return prefiller.prefill_rest(prefixes, room, drafted)

    questions = [question_of(row.sample.id, row.prompt) for row in rows]
    decoded = decode_refilled(
        model,
        prefill,
        settings,
        None,
        order,
        size=size,
        drafts=drafts.of_rows(questions, [row.control for row in rows]) if drafts else None,
    )
    for ended in decoded:
        yield {i: (prompt_tokens[i], tokens.ids) for i, tokens in ended.items()}


def _prefixes_ahead(
    prefiller: PrefixPrefiller, rows: Sequence[EvaluationRow], order: Sequence[int], size: int
) -> Callable[[Sequence[int]], PrefilledPrefixes]:
    """Gives the prefixes of the next few rows in `order`. They are prefilled `size` rows at a time:
    those of a few rows are small passes."""
    ahead: dict[int, tuple[PrefilledPrefixes, int]] = {}
    """Of rows: their prefixes, and the row's place in these."""

    def prefixes_of(begun: Sequence[int]) -> PrefilledPrefixes:
        if not ahead.keys() >= {*begun}:
            first = order.index(begun[0])
            batch = order[first : first + size]
            prefixes = prefiller.prefill_prefixes([rows[i] for i in batch])
            ahead.clear()
            ahead.update({i: (prefixes, place) for place, i in enumerate(batch)})
        return ahead[begun[0]][0].of_rows([ahead[i][1] for i in begun])

    return prefixes_of


def question_of(sample: str, prompt: str) -> str:
    """What a `DraftHistory` knows replies by; a control that changes the image alone has the
    question of the original. `sample` is its id."""
    return f"{sample} {prompt}"


_reasons: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()
"""Against sharing, of models that were asked before: a training asks its own at each validation,
and other weights compute in the same way."""


def _reason_against_sharing(
    model: PreTrainedModel, processor: ProcessorMixin, sample: Sample
) -> str:
    """Why questions cannot share their images; empty where they can."""
    if model not in _reasons:
        obstacles = "; ".join(prefix_sharing.sharing_obstacles(model))
        _reasons[model] = obstacles or _difference_from_unshared(model, processor, sample) or ""
    return _reasons[model]


def _difference_from_unshared(
    model: PreTrainedModel, processor: ProcessorMixin, sample: Sample
) -> str | None:
    """What is wrong where a question that shares its image gets other logits than on its own.

    Before any answer, with two short prompts about a small grey image. The shorter prompt is
    compared, since its row is padded, and a model could ignore mask or positions.
    """
    rows = [EvaluationRow("blank_image", sample, prompt) for prompt in _CHECK_PROMPTS]
    prefiller = PrefixPrefiller(model, processor, PreparedInputs({sample.image: _CHECK_SIZE}))
    shared = prefiller.prefill_rest(prefiller.prefill_prefixes(rows), 0).logits[-1]

    def unshared(prompts: Sequence[str]) -> Tensor:
        samples = [sample] * len(prompts)
        inputs = model_inputs(model, processor, samples, prompts, lambda _: blank(_CHECK_SIZE))
        return model(**inputs, logits_to_keep=1).logits[-1, -1]

    # Both without padding, which a model that ignores its mask would read.
    results = (shared, unshared(_CHECK_PROMPTS[-1:]), unshared(_CHECK_PROMPTS[-1:] * 2))
    logps, expected, in_batch = (logits.float().log_softmax(-1) for logits in results)
    difference = (logps - expected).abs().mean().item()
    allowed = tolerance(computed_in(model), (in_batch - expected).abs().mean().item())
    if difference <= allowed:
        return None
    return f"log-probabilities of one question are {difference:.2g} apart, more than {allowed:.2g}"


def answer_rows_unshared(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[EvaluationRow],
    *,
    batch_size: int,
    max_new_tokens: int,
    on_batch: OnBatch = lambda done: None,
    on_answers: OnAnswers = lambda batch: None,
) -> list[Completion]:
    """Control by control, each row with its own copy of the image."""
    completions: dict[int, Completion] = {}
    for control in dict.fromkeys(row.control for row in rows):
        indices = [i for i, row in enumerate(rows) if row.control == control]
        finished = len(completions)
        answers = generate(
            model,
            processor,
            [rows[i].sample for i in indices],
            [rows[i].prompt for i in indices],
            image_of=rows[indices[0]].image_of,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            on_batch=lambda done, finished=finished: on_batch(finished + done),
            on_answers=lambda batch, indices=indices: on_answers(
                {indices[i]: completion for i, completion in batch.items()}
            ),
        )
        completions |= dict(zip(indices, answers, strict=True))
    return [completions[i] for i in range(len(rows))]
