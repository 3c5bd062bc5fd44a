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

from medreason.evaluation import shared
from medreason.evaluation.answers import OnBatch
from medreason.evaluation.confidence import conclusions, option_shares
from medreason.evaluation.controls import Asked
from medreason.evaluation.shared import Begun, Reader
from medreason.models.decoding import repeated
from medreason.training.groups import TOLERANCE, Packed, additive, pack, unpack

_log = logging.getLogger(__name__)

_GOING_ON = "evaluation does not share images: %s; letters go one by one"

_ROWS_AT_ONCE = 8
"""Whose logits are held at once: letters x tokens x vocabulary of each."""


@torch.inference_mode()
def letter_shares(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    asked: Sequence[Asked],
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
    alone = functools.partial(_alone, model, processor, tagged=tagged)
    if reasons := shared.hindrances(model):
        _log.warning(_GOING_ON, "; ".join(reasons))
        return [alone(row) for row in asked]
    reader = Reader(model, processor)
    found: dict[int, list[float]] = {}
    for places in shared.batches(asked, batch_size):
        rows = [asked[i] for i in places]
        endings = [conclusions(row.sample, tagged=tagged) for row in rows]
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


def _alone(
    model: PreTrainedModel, processor: ProcessorMixin, row: Asked, *, tagged: bool
) -> list[float]:
    image = row.image_of(row.sample)
    return option_shares(model, processor, row.sample, image, row.prompt, "", tagged=tagged)


def _log_probabilities(model: Any, reader: Reader, begun: Begun) -> Tensor:  # noqa: ANN401
    """(rows, endings) of each ending behind its row; 0 where a row has fewer endings."""
    ids, mask = reader.padded(begun.own)
    packed = pack(ids, mask, begun.positions(mask), *_endings(begun, ids.device))
    tokens = packed.input_ids.shape[1]
    beginning = begun.mask[begun.entries].bool()[:, None, None].expand(-1, 1, tokens, -1)
    visible = torch.cat([beginning, packed.visible], dim=-1)
    if model.config._attn_implementation == "eager":
        visible = additive(visible, model.dtype)
    hidden = model.model(
        input_ids=packed.input_ids,
        attention_mask=visible,
        position_ids=packed.position_ids,
        past_key_values=repeated(begun.cache, begun.entries, tokens),
        use_cache=True,
    ).last_hidden_state
    return unpack(_predicted(model.get_output_embeddings(), hidden, packed), packed).sum(-1)


def _predicted(head: Any, hidden: Tensor, packed: Packed) -> Tensor:  # noqa: ANN401
    """(rows, tokens): log-probability of the token predicted at each place, 0 where none is."""
    found = torch.zeros(packed.labels.shape, device=hidden.device)
    for start in range(0, len(hidden), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        chosen = packed.labels[some] >= 0
        logps = head(hidden[some][chosen]).float().log_softmax(-1)
        found[some][chosen] = logps.gather(-1, packed.labels[some][chosen][:, None])[:, 0]
    return found


def _endings(begun: Begun, device: torch.device) -> tuple[Tensor, Tensor]:
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
