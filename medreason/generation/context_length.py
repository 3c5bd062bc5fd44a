"""Questions that do not fit the model's context are refused before the model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from transformers.processing_utils import ProcessorMixin

from medreason.config import Model
from medreason.data.checks import file_and_row
from medreason.data.images import blank, open_rgb, size_of
from medreason.generation.generate import prompt_texts
from medreason.models.load import context_length, load_processor
from medreason.samples import Sample

_LISTED = 10


class Question(NamedTuple):
    """A prompt about a sample's image, and its completion: a text, or how many tokens it may have.

    The texts are the longest ones that can occur.
    """

    sample: Sample
    prompt: str
    completion: str | int


class _Length(NamedTuple):
    prompt: int
    """Tokens, those of the image included."""
    image: int
    completion: int

    @property
    def total(self) -> int:
        return self.prompt + self.completion

    def __str__(self) -> str:
        return (
            f"a prompt of {self.prompt:,} tokens ({self.image:,} of the image) and "
            f"{self.completion:,} of completion"
        )


def refuse_longer_than_context(
    model: Model, questions: Iterable[Question], limit_key: str = ""
) -> None:
    """Refuse prompts that with their completions are longer than `max_position_embeddings`.

    Positions beyond it were never trained, and answers there mean nothing. `limit_key` is the
    configuration's key that limits completions, where one does.

    Raises:
        ValueError: with file, row, tokens and limit of the first such questions.
    """
    limit = context_length(model)
    if limit is None:
        return
    counter = _Counter(load_processor(model))
    too_long = [
        f"{_place(question.sample)}: {length}"
        for question in questions
        if counter.most(question) > limit and (length := counter.length(question)).total > limit
    ]
    if not too_long:
        return
    smaller = " or ".join(filter(None, (limit_key, "model.max_pixels")))
    others = "\n  ".join(["", *too_long[1:_LISTED]])
    raise ValueError(
        f"{too_long[0]} exceed the {limit:,} tokens of the context (max_position_embeddings) of "
        f"model.path={model.path}, as do {len(too_long) - 1} other questions; shorten the question "
        f"or remove its row, set a smaller {smaller}, or choose a model with a longer context"
        f"{others}"
    )


def prompt_tokens(
    processor: ProcessorMixin, prompt: str, image_size: tuple[int, int] | None
) -> int:
    """Tokens of a prompt in the chat template, about an image of (width, height) or about none."""
    any_processor: Any = processor
    (text,) = prompt_texts(processor, [prompt], [image_size is not None])
    images = [blank(image_size)] if image_size else None
    return len(any_processor(text=[text], images=images)["input_ids"][0])


class _Counter:
    """Counts tokens: at most so many without reading anything, then exactly."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor: Any = processor
        self._around = len(prompt_texts(processor, [""], [True])[0].encode())
        self._image = self._most_of_an_image()

    def _most_of_an_image(self) -> float:
        images = self._processor.image_processor
        size = dict(getattr(images, "size", None) or {})
        if "longest_edge" not in size or not hasattr(images, "merge_size"):
            return float("inf")
        return size["longest_edge"] / (images.patch_size * images.merge_size) ** 2

    def most(self, question: Question) -> float:
        """No question has more tokens: a token of text is at least a byte."""
        completion = question.completion
        replied = completion if isinstance(completion, int) else len(completion.encode())
        return self._around + len(question.prompt.encode()) + replied + self._image

    def length(self, question: Question) -> _Length:
        (text,) = prompt_texts(self._processor, [question.prompt], [True])
        image = self._image_tokens(question.sample)
        completion = question.completion
        if not isinstance(completion, int):
            completion = self._text_tokens(completion) + 1  # its end
        # The template has one token for the image.
        return _Length(self._text_tokens(text) - 1 + image, image, completion)

    def _text_tokens(self, text: str) -> int:
        return len(self._processor.tokenizer(text)["input_ids"])

    def _image_tokens(self, sample: Sample) -> int:
        if hasattr(self._processor, "_get_num_multimodal_tokens"):
            width, height = size_of(sample.image)
            return self._processor._get_num_multimodal_tokens([(height, width)]).num_image_tokens[0]
        (text,) = prompt_texts(self._processor, [""], [True])
        picture = open_rgb(sample.image, sample.window)
        tokens = self._processor(text=[text], images=[picture])["input_ids"][0]
        return len(tokens) - self._text_tokens(text) + 1


def _place(sample: Sample) -> str:
    file, row = file_and_row(sample)
    return file if row < 0 else f"{file}, row {row}"
