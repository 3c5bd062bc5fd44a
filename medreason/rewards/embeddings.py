"""Scores by the meaning of texts in place of their words: an extra, as it takes an encoder.

`encoder` is a folder or a hub id that transformers loads, such as
`sentence-transformers/all-MiniLM-L6-v2`. Texts are cut at the encoder's own limit.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from medreason.replies import Reply
from medreason.rewards.reasoning import explanation_of
from medreason.samples import Sample

if TYPE_CHECKING:
    from torch import Tensor


class Encoded(NamedTuple):
    states: Tensor
    """(tokens, width), of the last layer."""
    special: Tensor
    """(tokens,): whether a token was added by the tokenizer."""


def reasoning_embedding(reply: Reply, sample: Sample, *, encoder: str) -> float:
    """Cosine of the mean embeddings of reasoning and reference explanation; below 0 counts as 0.

    Source: Sentence-BERT, arXiv:1908.10084. Raises ValueError where the sample has no explanation.
    """
    reference = explanation_of(sample)
    if reply.reasoning is None:
        return 0.0
    given, wanted = (_encode(encoder, text).states.mean(0) for text in (reply.reasoning, reference))
    return _share(float(given @ wanted / (given.norm() * wanted.norm())))


def bertscore(reply: Reply, sample: Sample, *, encoder: str) -> float:
    """BERTScore F1 of the answer's text and the reference answer, 0 to 1; below 0 counts as 0.

    Source: arXiv:1904.09675, section 3, without idf weights and rescaling, of the last layer.
    """
    if reply.answer is None:
        return 0.0
    given, wanted = (
        _words(encoder, text) for text in (sample.text_of(reply.answer), sample.answer_text)
    )
    if not (len(given) and len(wanted)):
        return 0.0
    alike = given @ wanted.T  # (tokens of the answer, tokens of the reference)
    precision, recall = float(alike.max(1).values.mean()), float(alike.max(0).values.mean())
    return _share(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0


def check(encoder: str) -> None:
    """Refuse a folder without an encoder. A hub id is left to the hub."""
    folder = Path(encoder)
    hub_id = encoder.count("/") == 1 and not encoder.startswith((".", "/", "~"))
    if not (folder / "config.json").exists() and (folder.exists() or not hub_id):
        raise ValueError(
            f"encoder={encoder!r}: no folder with a config.json, and not a hub id (owner/name)"
        )


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _words(encoder: str, text: str) -> Tensor:
    """(tokens, width) without special tokens, of length 1 each."""
    found = _encode(encoder, text)
    states = found.states[~found.special]
    return states / states.norm(dim=-1, keepdim=True)


@functools.lru_cache(maxsize=4096)  # references come again and again
def _encode(encoder: str, text: str) -> Encoded:
    import torch  # seconds

    model, tokenizer = _loaded(encoder)
    made = tokenizer(text, truncation=True, return_tensors="pt", return_special_tokens_mask=True)
    special = made.pop("special_tokens_mask")[0].bool()
    with torch.no_grad():
        return Encoded(model(**made).last_hidden_state[0], special)


@functools.lru_cache(maxsize=2)
def _loaded(encoder: str) -> tuple[Any, Any]:
    check(encoder)
    from transformers import AutoModel, AutoTokenizer  # torch, seconds

    try:
        return AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"encoder={encoder!r} cannot be loaded; give a folder or a hub id of a text encoder "
            f"such as sentence-transformers/all-MiniLM-L6-v2 ({error})"
        ) from error
