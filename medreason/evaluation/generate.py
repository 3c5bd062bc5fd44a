"""Greedy answers of a model to samples, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import GenerationConfig, PreTrainedModel
from transformers.processing_utils import ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from medreason.data.images import open_rgb
from medreason.models.load import END_TOKENS, VISION_TOKENS
from medreason.prompts import conversation
from medreason.samples import Sample

ImageOf = Callable[[Sample], Image.Image | None]
"""What is shown with a sample; None asks without an image, and then for every sample."""


@dataclass(frozen=True)
class Completion:
    prompt: str
    text: str
    prompt_tokens: int
    """Image tokens included."""
    completion_tokens: int
    """The end token included."""
    finish_reason: str
    """stop, or length where the token limit was hit."""


def real_image(sample: Sample) -> Image.Image:
    return open_rgb(sample.image)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    *,
    image_of: ImageOf = real_image,
    batch_size: int,
    max_new_tokens: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Completion]:
    """One completion a sample, in the order of the samples. `on_batch` hears how many are done."""
    tokenizer = processor.tokenizer
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        # Set, because generate would take it from the checkpoint's own generation config.
        repetition_penalty=1.0,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END_TOKENS),
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=tokenizer.convert_tokens_to_ids(VISION_TOKENS),
    )
    model.eval()
    found: dict[int, Completion] = {}
    for places in _batches([len(prompt) for prompt in prompts], batch_size):
        inputs = _inputs(
            processor, [samples[i] for i in places], [prompts[i] for i in places], image_of
        )
        inputs = inputs.to(model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        output = model.generate(**inputs, generation_config=settings)  # pyright: ignore[reportCallIssue]
        replies = output[:, inputs["input_ids"].shape[1] :]  # (batch, new tokens)
        for row, place in enumerate(places):
            found[place] = _completion(
                prompts[place], inputs["attention_mask"][row], replies[row], settings, tokenizer
            )
        on_batch(len(found))
    return [found[i] for i in range(len(samples))]


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places ordered by length, longest first: little padding, and memory fails early."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _inputs(  # noqa: ANN202  a BatchFeature
    processor: ProcessorMixin, samples: Sequence[Sample], prompts: Sequence[str], image_of: ImageOf
):
    images = [image for sample in samples if (image := image_of(sample)) is not None]
    # The same preparation as in training: TRL puts the image before the text.
    turns = [
        prepare_multimodal_messages(conversation(prompt), images=shown)
        for prompt, shown in zip(prompts, [[i] for i in images] or [[]] * len(prompts), strict=True)
    ]
    texts = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return processor(text=texts, images=images or None, padding=True, return_tensors="pt")  # pyright: ignore[reportCallIssue]


def _completion(
    prompt: str,
    prompt_mask: torch.Tensor,
    reply: torch.Tensor,
    settings: GenerationConfig,
    tokenizer,  # noqa: ANN001
) -> Completion:
    ids = reply.tolist()
    ends = [i for i, token in enumerate(ids) if token in settings.eos_token_id]
    length = ends[0] + 1 if ends else len(ids)
    return Completion(
        prompt=prompt,
        text=tokenizer.decode(ids[: length - 1 if ends else length], skip_special_tokens=True),
        prompt_tokens=int(prompt_mask.sum()),
        completion_tokens=length,
        finish_reason="stop" if ends else "length",
    )
