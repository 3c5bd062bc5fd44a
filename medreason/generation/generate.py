"""Greedy answers by transformers' own `generate`: the unshared path, which computes image and
prompt once a completion, and what both paths need of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from medreason.generation.rows import Completion, ImageOf, original_image
from medreason.models.load import END_TOKENS, VISION_TOKENS
from medreason.prompts import conversation
from medreason.samples import Sample


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    *,
    image_of: ImageOf = original_image,
    batch_size: int,
    max_new_tokens: int,
    on_batch: Callable[[int], None] = lambda done: None,
    on_answers: Callable[[Mapping[int, Completion]], None] = lambda batch: None,
) -> list[Completion]:
    """A completion of each sample, in their order. `on_batch` hears how many are finished,
    `on_answers` the completions of each batch by their place."""
    tokenizer = processor.tokenizer
    settings = greedy_settings(tokenizer, max_new_tokens)
    model.eval()
    completions: dict[int, Completion] = {}
    for batch in _batches_by_length(prompts, batch_size):
        inputs = model_inputs(
            model, processor, [samples[i] for i in batch], [prompts[i] for i in batch], image_of
        )
        output = model.generate(**inputs, generation_config=settings)  # pyright: ignore[reportCallIssue]
        new_ids = output[:, inputs["input_ids"].shape[1] :].tolist()  # (batch, new tokens)
        prompt_tokens = inputs["attention_mask"].sum(-1).tolist()
        for i, count, ids in zip(batch, prompt_tokens, new_ids, strict=True):
            completions[i] = completion_from_ids(prompts[i], count, ids, settings, tokenizer)
        on_batch(len(completions))
        on_answers({i: completions[i] for i in batch})
    return [completions[i] for i in range(len(samples))]


def greedy_settings(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding: the likeliest token, until either end token."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        # Set, because generate would take it from the checkpoint's own generation config.
        repetition_penalty=1.0,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=tokenizer.convert_tokens_to_ids([*END_TOKENS]),
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=tokenizer.convert_tokens_to_ids([*VISION_TOKENS]),
    )


def completion_from_ids(
    prompt: str,
    prompt_tokens: int,
    ids: list[int],
    settings: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> Completion:
    """A completion as text; what stands behind its end token is padding."""
    ends = [i for i, token in enumerate(ids) if token in settings.eos_token_id]
    length = ends[0] + 1 if ends else len(ids)
    text = tokenizer.decode(ids[: length - 1 if ends else length], skip_special_tokens=True)
    assert isinstance(text, str)
    return Completion(
        prompt=prompt,
        text=text,
        prompt_tokens=prompt_tokens,
        completion_tokens=length,
        finish_reason="stop" if ends else "length",
    )


def model_inputs(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    image_of: ImageOf,
) -> BatchFeature:
    """What the model's forward takes, padded on the left."""
    images = [image for sample in samples if (image := image_of(sample)) is not None]
    texts = prompt_texts(processor, prompts, [bool(images)] * len(prompts))
    inputs = processor(text=texts, images=images or None, padding=True, return_tensors="pt")  # pyright: ignore[reportCallIssue]
    inputs = inputs.to(model.device)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs


def prompt_texts(
    processor: ProcessorMixin, prompts: Sequence[str], with_image: Sequence[bool]
) -> list[str]:
    """The prompts in the chat template, with a placeholder for the image."""
    # The same preparation as in training: TRL puts the image before the text.
    conversations = [
        prepare_multimodal_messages(conversation(prompt), images=[None] if has_image else [])
        for prompt, has_image in zip(prompts, with_image, strict=True)
    ]
    texts: Any = processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=False
    )
    return texts


def _batches_by_length(prompts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Indices of the prompts, longest first: little padding, and memory fails early."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]
