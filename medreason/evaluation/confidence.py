"""How sure a model is of an option: the likelihood of each conclusion behind its own reasoning."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from medreason.evaluation.generate import prompt_texts
from medreason.replies import before_answer, format_reply
from medreason.samples import LETTERS, Sample


@torch.inference_mode()
def option_shares(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    sample: Sample,
    image: Image.Image | None,
    prompt: str,
    reply: str,
    *,
    tagged: bool = True,
) -> list[float]:
    """The probability of each letter's conclusion among those of all options; adds up to 1.

    Each is scored as a whole text, since a tokenizer may merge a letter with the tag before it.
    `tagged` is false for prompts that ask for no tags.
    """
    lead = before_answer(reply) if tagged else ""
    ends = conclusions(sample, tagged=tagged)
    (start,) = prompt_texts(processor, [prompt], [image is not None])
    texts = [f"{start}{lead}{end}" for end in ends]
    images = [image] * len(ends) if image is not None else None
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")  # pyright: ignore[reportCallIssue]
    inputs = inputs.to(model.device)
    if images:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    rows = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    shared = next(i for i, ids in enumerate(zip(*rows, strict=False)) if len({*ids}) > 1)
    own = [len(row) - shared for row in rows]  # tokens that differ
    # (option, tokens, vocabulary); padded on the left, so every row ends at the last place.
    logits = model(**inputs, logits_to_keep=max(own) + 1).logits.float()
    scores = [
        logits[i, -count - 1 : -1].log_softmax(-1).gather(-1, _column(row[-count:], logits)).sum()
        for i, (row, count) in enumerate(zip(rows, own, strict=True))
    ]
    return torch.stack(scores).softmax(0).tolist()


def conclusions(sample: Sample, *, tagged: bool) -> list[str]:
    """The texts by which a reply settles for each of the sample's letters."""
    letters = LETTERS[: len(sample.options)]
    return [format_reply(None, letter, "no_think") if tagged else letter for letter in letters]


def _column(ids: list[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(ids, device=like.device)[:, None]
