"""Answers to all rows of an evaluation: greedy completions, and the likelihoods of the letters."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from medreason.data.images import blank
from medreason.generation import prefix_sharing
from medreason.generation.decoding import decode
from medreason.generation.generate import completion, generate, greedy, model_inputs
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.prefill import Prefill
from medreason.generation.prefix_sharing import PrefilledPrefixes, PrefixPrefiller
from medreason.generation.rows import Completion, EvaluationRow
from medreason.generation.tolerance import TOLERANCE
from medreason.samples import Sample

_log = logging.getLogger(__name__)

_GOING_ON = "evaluation does not share images: %s; going on with generate"

_PROBES = ("Which of these does the image show?", "Which?")
_PROBE_SIZE = (56, 56)

OnBatch = Callable[[int], None]
"""Hears how many rows are done."""


@torch.inference_mode()
def answer_rows(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    asked: Sequence[EvaluationRow],
    *,
    batch_size: int,
    max_new_tokens: int,
    graphs: bool = False,
    on_batch: OnBatch = lambda done: None,
) -> list[Completion]:
    """One a row, in the order of the rows; the same as `generate` gives. `graphs`: see `decode`."""
    if not asked:
        return []
    model.eval()
    go_plain = functools.partial(
        answer_rows_unshared,
        model,
        processor,
        asked,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        on_batch=on_batch,
    )
    if reasons := prefix_sharing.hindrances(model):
        _log.warning(_GOING_ON, "; ".join(reasons))
        return go_plain()
    if reason := _differs(model, processor, asked[0].sample):
        _log.warning(_GOING_ON, reason)
        return go_plain()
    settings = greedy(processor.tokenizer, max_new_tokens)
    reader = PrefixPrefiller(model, processor)
    found: dict[int, Completion] = {}
    for places in prefix_sharing.batches(asked, batch_size):
        begun = reader.begin([asked[i] for i in places])
        rows = prompted(model, reader, begun, max_new_tokens)
        drawn = decode(model, rows, settings, None, graphs=graphs)
        for place, length, reply in zip(places, begun.lengths, drawn, strict=True):
            found[place] = completion(
                asked[place].prompt, length, reply.ids, settings, processor.tokenizer
            )
        on_batch(len(found))
    return [found[i] for i in range(len(asked))]


def prompted(
    model: PreTrainedModel, reader: PrefixPrefiller, begun: PrefilledPrefixes, room: int
) -> Prefill:
    """Read each row's own tokens, with room in the cache for so many more."""
    ids, own_mask = reader.padded(begun.own)
    cache = repeat_kv_cache(begun.cache, begun.entries, ids.shape[1] + room)
    mask = torch.cat([begun.mask[begun.entries], own_mask], dim=1)
    positions = begun.positions(own_mask)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return Prefill(logits, positions[:, :, -1:], mask, lambda: cache)


def _differs(model: PreTrainedModel, processor: ProcessorMixin, sample: Sample) -> str | None:
    """Whether a question that shares its picture is read otherwise than alone.

    Both questions and the picture, a grey one in place of the sample's, are small, and the question
    compared is the shorter: its row is padded.
    """
    rows = [EvaluationRow("blank_image", sample, prompt) for prompt in _PROBES]
    reader = PrefixPrefiller(model, processor, {sample.image: _PROBE_SIZE})
    logits = prompted(model, reader, reader.begin(rows), 0).logits[-1]
    inputs = model_inputs(model, processor, [sample], [_PROBES[-1]], lambda _: blank(_PROBE_SIZE))
    theirs: Tensor = model(**inputs, logits_to_keep=1).logits[0, -1].float().log_softmax(-1)
    apart = (logits.float().log_softmax(-1) - theirs).abs().mean().item()
    allowed = TOLERANCE.get(model.dtype, max(TOLERANCE.values()))
    if apart <= allowed:
        return None
    return f"log-probabilities of one question are {apart:.2g} apart, more than {allowed:.2g}"


def answer_rows_unshared(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    asked: Sequence[EvaluationRow],
    *,
    batch_size: int,
    max_new_tokens: int,
    on_batch: OnBatch = lambda done: None,
) -> list[Completion]:
    """Control by control, each row with its own copy of the image."""
    found: dict[int, Completion] = {}
    earlier = 0

    def heard(done: int) -> None:
        on_batch(earlier + done)

    for control in dict.fromkeys(row.control for row in asked):
        places = [i for i, row in enumerate(asked) if row.control == control]
        answers = generate(
            model,
            processor,
            [asked[i].sample for i in places],
            [asked[i].prompt for i in places],
            image_of=asked[places[0]].image_of,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            on_batch=heard,
        )
        found |= dict(zip(places, answers, strict=True))
        earlier = len(found)
    return [found[i] for i in range(len(asked))]
