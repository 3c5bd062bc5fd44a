"""The likelihood of each option's letter right behind the prompt: no generation, no parser."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from medreason.evaluation.answers import OnBatch
from medreason.generation import prefix_sharing
from medreason.generation.generate import prompt_texts
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.packing import PackedSequences, additive_mask, pack, unpack
from medreason.generation.prefix_sharing import PrefilledPrefixes, PrefixPrefiller
from medreason.generation.rows import EvaluationRow
from medreason.generation.tolerance import TOLERANCE
from medreason.replies import format_reply
from medreason.samples import Sample

_log = logging.getLogger(__name__)

_GOING_ON = "evaluation does not share images: %s; letters go one by one"

_ROWS_AT_ONCE = 8
"""Whose logits are held at once: letters x tokens x vocabulary of each."""


@torch.inference_mode()
def option_likelihoods(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    asked: Sequence[EvaluationRow],
    *,
    batch_size: int,
    tagged: bool,
    on_batch: OnBatch = lambda done: None,
) -> list[list[float]]:
    """Of each row the probability of each letter among its options, in their order; each adds up
    to 1. Every row has options. All letters of a row are scored in one pass.
    """
    if not asked:
        return []
    model.eval()
    alone = functools.partial(option_likelihoods_unshared, model, processor, tagged=tagged)
    if reasons := prefix_sharing.hindrances(model):
        _log.warning(_GOING_ON, "; ".join(reasons))
        return [alone(row) for row in asked]
    reader = PrefixPrefiller(model, processor)
    found: dict[int, list[float]] = {}
    for places in prefix_sharing.batches(asked, batch_size):
        rows = [asked[i] for i in places]
        endings = [answer_texts(row.sample, tagged=tagged) for row in rows]
        logps = _log_probabilities(model, reader, reader.begin(rows, endings))
        for place, row, scores in zip(places, rows, logps, strict=True):
            found[place] = scores[: len(row.sample.options)].softmax(0).tolist()
        if len(found) == len(places) and (
            reason := _differs(model, found[places[0]], alone(rows[0]))
        ):
            _log.warning(_GOING_ON, reason)
            return [alone(row) for row in asked]
        on_batch(len(found))
    return [found[i] for i in range(len(asked))]


def _differs(
    model: PreTrainedModel, shares: Sequence[float], theirs: Sequence[float]
) -> str | None:
    """Whether the shares of a row's letters are not those that the row alone gives."""
    apart = max(abs(a - b) for a, b in zip(shares, theirs, strict=True))
    allowed = TOLERANCE.get(model.dtype, max(TOLERANCE.values()))
    if apart <= allowed:
        return None
    return f"shares of one question's letters are {apart:.2g} apart, more than {allowed:.2g}"


def _log_probabilities(model: Any, reader: PrefixPrefiller, begun: PrefilledPrefixes) -> Tensor:  # noqa: ANN401
    """(rows, endings) of each ending behind its row; 0 where a row has fewer endings."""
    ids, mask = reader.padded(begun.own)
    packed = pack(ids, mask, begun.positions(mask), *_endings(begun, ids.device))
    tokens = packed.input_ids.shape[1]
    beginning = begun.mask[begun.entries].bool()[:, None, None].expand(-1, 1, tokens, -1)
    visible = torch.cat([beginning, packed.visible], dim=-1)
    if model.config._attn_implementation == "eager":
        visible = additive_mask(visible, model.dtype)
    hidden = model.model(
        input_ids=packed.input_ids,
        attention_mask=visible,
        position_ids=packed.position_ids,
        past_key_values=repeat_kv_cache(begun.cache, begun.entries, tokens),
        use_cache=True,
    ).last_hidden_state
    return unpack(_predicted(model.get_output_embeddings(), hidden, packed), packed).sum(-1)


def _predicted(head: Any, hidden: Tensor, packed: PackedSequences) -> Tensor:  # noqa: ANN401
    """(rows, tokens): log-probability of the token predicted at each place, 0 where none is."""
    found = torch.zeros(packed.labels.shape, device=hidden.device)
    for start in range(0, len(hidden), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        chosen = packed.labels[some] >= 0
        logps = head(hidden[some][chosen]).float().log_softmax(-1)
        found[some][chosen] = logps.gather(-1, packed.labels[some][chosen][:, None])[:, 0]
    return found


def _endings(begun: PrefilledPrefixes, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), (rows, endings, tokens), padded on the right and with empty endings."""
    most = max(map(len, begun.endings))
    rows = [
        torch.tensor(tokens, device=device)
        for endings in begun.endings
        for tokens in [*endings, *[[]] * (most - len(endings))]
    ]
    ids = pad_sequence([row.long() for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones_like(row).long() for row in rows], batch_first=True)
    return ids.unflatten(0, (-1, most)), mask.unflatten(0, (-1, most))


@torch.inference_mode()
def option_likelihoods_unshared(
    model: PreTrainedModel, processor: ProcessorMixin, row: EvaluationRow, *, tagged: bool
) -> list[float]:
    """The same of one row, each option with its own copy of image and prompt."""
    endings = answer_texts(row.sample, tagged=tagged)
    image = row.image_of(row.sample)
    (prompt,) = prompt_texts(processor, [row.prompt], [image is not None])
    texts = [prompt + ending for ending in endings]
    images = [image] * len(endings) if image is not None else None
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")  # pyright: ignore[reportCallIssue]
    inputs = inputs.to(model.device)
    if images:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    rows = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    shared = len(prefix_sharing.common_prefix(rows))
    own = [len(row) - shared for row in rows]  # tokens that differ
    # (option, tokens, vocabulary); padded on the left, so every row ends at the last place.
    logits = model(**inputs, logits_to_keep=max(own) + 1).logits.float()
    scores = [
        logits[i, -count - 1 : -1].log_softmax(-1).gather(-1, _column(row[-count:], logits)).sum()
        for i, (row, count) in enumerate(zip(rows, own, strict=True))
    ]
    return torch.stack(scores).softmax(0).tolist()


def answer_texts(sample: Sample, *, tagged: bool) -> list[str]:
    """The texts by which a reply settles for each of the sample's letters."""
    return [
        format_reply(None, letter, "no_think") if tagged else letter for letter in sample.letters
    ]


def _column(ids: list[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(ids, device=like.device)[:, None]
