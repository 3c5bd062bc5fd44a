"""Option likelihood: the probability of each option's letter right behind the prompt. Nothing is
generated and nothing is parsed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from medreason.evaluation.answers import UNSHARED_WARNING, OnBatch
from medreason.generation import prefix_sharing
from medreason.generation.generate import prompt_texts
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.packing import PackedSequences, additive_mask, pack, unpack
from medreason.generation.prefix_sharing import PrefilledPrefixes, PrefixPrefiller
from medreason.generation.rows import EvaluationRow
from medreason.generation.tolerance import computed_in, tolerance
from medreason.replies import format_reply
from medreason.samples import Sample

_log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 8
"""Rows whose logits are held at once: options x tokens x vocabulary of each."""


@torch.inference_mode()
def option_likelihoods(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[EvaluationRow],
    *,
    batch_size: int,
    tagged: bool,
    images_ahead: bool = False,
    on_batch: OnBatch = lambda done: None,
    on_likelihoods: Callable[[Mapping[int, list[float]]], None] = lambda batch: None,
) -> list[list[float]]:
    """The probabilities of each row's letters, in the order of its options; they add up to 1.

    Every row has options, which are scored in one packed sequence. `tagged` is false for prompts
    that ask for no tags. `images_ahead`: see `answer_rows`. `on_likelihoods` hears those of each
    batch, by the row's place.
    """
    if not rows:
        return []
    model.eval()
    score_unshared = functools.partial(option_likelihoods_unshared, model, processor, tagged=tagged)
    likelihoods: dict[int, list[float]] = {}

    def finish(batch: dict[int, list[float]]) -> None:
        likelihoods.update(batch)
        on_batch(len(likelihoods))
        on_likelihoods(batch)

    def score_all_unshared(reason: str) -> list[list[float]]:
        _log.warning(UNSHARED_WARNING, reason)
        for i, row in enumerate(rows):
            finish({i: score_unshared(row)})
        return [likelihoods[i] for i in range(len(rows))]

    if obstacles := prefix_sharing.sharing_obstacles(model):
        return score_all_unshared("; ".join(obstacles))
    prefiller = PrefixPrefiller(model, processor)
    in_order = [rows[i] for i in prefix_sharing.in_order(rows)]
    with prefiller.loading_ahead(in_order) if images_ahead else nullcontext():
        for batch in prefix_sharing.batches(rows, batch_size):
            members = [rows[i] for i in batch]
            endings = [answer_texts(row.sample, tagged=tagged) for row in members]
            prefixes = prefiller.prefill_prefixes(members, endings)
            logps = _ending_logps(model, prefiller, prefixes)
            scored: dict[int, list[float]] = {
                i: row_logps[: len(row.sample.options)].softmax(0).tolist()
                for i, row, row_logps in zip(batch, members, logps, strict=True)
            }
            if not likelihoods and (
                reason := _difference(model, scored[batch[0]], score_unshared(members[0]))
            ):
                return score_all_unshared(reason)
            finish(scored)
    return [likelihoods[i] for i in range(len(rows))]


def _difference(
    model: PreTrainedModel, shared: Sequence[float], unshared: Sequence[float]
) -> str | None:
    """What is wrong where the option likelihoods of one row are not those it gets on its own."""
    difference = max(abs(a - b) for a, b in zip(shared, unshared, strict=True))
    allowed = tolerance(computed_in(model))
    if difference <= allowed:
        return None
    return f"option likelihoods of one question are {difference:.2g} apart, more than {allowed:.2g}"


def _ending_logps(
    model: PreTrainedModel, prefiller: PrefixPrefiller, prefixes: PrefilledPrefixes
) -> Tensor:
    """(rows, endings): log-probability of each ending; 0 where a row has fewer endings."""
    ids, mask = prefiller.pad_left(prefixes.rest_ids)
    packed = pack(ids, mask, prefixes.positions(mask), *_padded_endings(prefixes, ids.device))
    tokens = packed.input_ids.shape[1]
    # Every token of the packed sequence sees the KV cache of its row's prefix, which stands before.
    prefix_mask = prefixes.mask[prefixes.entries].bool()[:, None, None].expand(-1, 1, tokens, -1)
    visible = torch.cat([prefix_mask, packed.visible], dim=-1)
    if model.config._attn_implementation == "eager":
        visible = additive_mask(visible, model.dtype)
    language_model: Any = model.model
    hidden = language_model(
        input_ids=packed.input_ids,
        attention_mask=visible,
        position_ids=packed.position_ids,
        past_key_values=repeat_kv_cache(prefixes.cache, prefixes.entries, tokens),
        use_cache=True,
    ).last_hidden_state
    head = model.get_output_embeddings()
    assert head is not None
    return unpack(_label_logps(head, hidden, packed), packed).sum(-1)


def _label_logps(head: nn.Module, hidden: Tensor, packed: PackedSequences) -> Tensor:
    """(rows, tokens): log-probability of the token predicted at each place, 0 where none is."""
    logps = torch.zeros(packed.labels.shape, device=hidden.device)
    for start in range(0, len(hidden), _ROWS_AT_ONCE):
        chunk = slice(start, start + _ROWS_AT_ONCE)
        labels = packed.labels[chunk]
        predicted = labels >= 0
        all_logps = head(hidden[chunk][predicted]).float().log_softmax(-1)
        logps[chunk][predicted] = all_logps.gather(-1, labels[predicted][:, None])[:, 0]
    return logps


def _padded_endings(prefixes: PrefilledPrefixes, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), (rows, endings, tokens), padded on the right and with empty endings."""
    most = max(map(len, prefixes.ending_ids))
    endings = [
        torch.tensor(ids, device=device)
        for row in prefixes.ending_ids
        for ids in [*row, *[[]] * (most - len(row))]
    ]
    ids = pad_sequence([ending.long() for ending in endings], batch_first=True)
    mask = pad_sequence([torch.ones_like(ending).long() for ending in endings], batch_first=True)
    return ids.unflatten(0, (-1, most)), mask.unflatten(0, (-1, most))


@torch.inference_mode()
def option_likelihoods_unshared(
    model: PreTrainedModel, processor: ProcessorMixin, row: EvaluationRow, *, tagged: bool
) -> list[float]:
    """The same of one row, each option with its own copy of image and prompt.

    Each text is scored as a whole, since a tokenizer may merge a letter with the tag before it.
    """
    endings = answer_texts(row.sample, tagged=tagged)
    image = row.image_of(row.sample)
    (prompt,) = prompt_texts(processor, [row.prompt], [image is not None])
    texts = [prompt + ending for ending in endings]
    images = [image] * len(endings) if image is not None else None
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")  # pyright: ignore[reportCallIssue]
    inputs = inputs.to(model.device)
    if images:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    whole_ids = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    prefix = len(prefix_sharing.common_prefix(whole_ids))
    ending_lengths = [len(ids) - prefix for ids in whole_ids]
    # (options, tokens, vocabulary); padded on the left, so every text ends at the last place.
    logits = model(**inputs, logits_to_keep=max(ending_lengths) + 1).logits.float()
    scores = [
        logits[i, -count - 1 : -1].log_softmax(-1).gather(-1, _column(ids[-count:], logits)).sum()
        for i, (ids, count) in enumerate(zip(whole_ids, ending_lengths, strict=True))
    ]
    return torch.stack(scores).softmax(0).tolist()


def answer_texts(sample: Sample, *, tagged: bool) -> list[str]:
    """What a reply that answers with each of the sample's letters says, without its reasoning."""
    return [
        format_reply(None, letter, "no_think") if tagged else letter for letter in sample.letters
    ]


def _column(ids: list[int], like: Tensor) -> Tensor:
    return torch.tensor(ids, device=like.device)[:, None]
