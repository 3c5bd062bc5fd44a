"""Scores by the similarity of text embeddings; they need a text encoder.

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
    """0 to 1: cosine of the mean embeddings of reasoning and reference explanation, at least 0.

    Raises ValueError where the sample has no explanation or the encoder cannot be loaded.
    Source: Sentence-BERT, arXiv:1908.10084.
    """
    explanation = explanation_of(sample)
    if reply.reasoning is None:
        return 0.0
    a, b = (_encode(encoder, text).states.mean(0) for text in (reply.reasoning, explanation))
    return _clip(float(a @ b / (a.norm() * b.norm())))


def bertscore(reply: Reply, sample: Sample, *, encoder: str) -> float:
    """0 to 1: BERTScore F1 of the answer's text and the nearest reference, at least 0.

    0 where the reply has no answer. Raises ValueError where the encoder cannot be loaded.
    Source: arXiv:1904.09675, section 3, without idf weights and rescaling, of the last layer.
    """
    if reply.answer is None:
        return 0.0
    answer = _tokens(encoder, sample.text_of(reply.answer))
    return max(_f1(answer, _tokens(encoder, text)) for text in sample.references)


def check(encoder: str) -> None:
    """Raise ValueError for a folder without an encoder. Whether a hub id exists, the hub says."""
    folder = Path(encoder)
    hub_id = encoder.count("/") == 1 and not encoder.startswith((".", "/", "~"))
    if not (folder / "config.json").exists() and (folder.exists() or not hub_id):
        raise ValueError(
            f"encoder={encoder!r}: no folder with a config.json, and not a hub id (owner/name)"
        )


def _f1(answer: Tensor, reference: Tensor) -> float:
    """Of (tokens, width) and (tokens, width); 0 where one of them has no tokens."""
    if not (len(answer) and len(reference)):
        return 0.0
    cosine = answer @ reference.T  # (tokens of the answer, tokens of the reference)
    precision, recall = float(cosine.max(1).values.mean()), float(cosine.max(0).values.mean())
    return _clip(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _tokens(encoder: str, text: str) -> Tensor:
    """(tokens, width) without special tokens, each of norm 1."""
    encoded = _encode(encoder, text)
    states = encoded.states[~encoded.special]
    return states / states.norm(dim=-1, keepdim=True)


@functools.lru_cache(maxsize=4096)  # a reference is compared with every reply to its question
def _encode(encoder: str, text: str) -> Encoded:
    import torch  # seconds

    model, tokenizer = _loaded(encoder)
    inputs = tokenizer(text, truncation=True, return_tensors="pt", return_special_tokens_mask=True)
    special = inputs.pop("special_tokens_mask")[0].bool()
    with torch.no_grad():
        return Encoded(model(**inputs).last_hidden_state[0], special)


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
