"""TRL's rows, question by question: it repeats a question for each of its completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.processing_utils import ProcessorMixin
from trl.trainer.utils import pad


@dataclass(frozen=True)
class QuestionBatch:
    """A batch of log-probabilities to be found. Prompts are padded on the left."""

    prompt_ids: Tensor
    """(questions, prompt tokens), as are mask and types."""
    prompt_mask: Tensor
    token_types: Tensor
    completion_ids: Tensor
    """(questions, completions, completion tokens), as is the mask."""
    completion_mask: Tensor
    pixel_values: Sequence[Tensor]
    """Of each question (patches, values)."""
    grids: Sequence[Tensor]
    """Of each question (images, 3)."""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def prompts(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """What the model's forward takes for the prompts of the chosen questions."""
        return {
            "input_ids": self.prompt_ids[chosen],
            "attention_mask": self.prompt_mask[chosen],
            "mm_token_type_ids": self.token_types[chosen],
            "pixel_values": torch.cat([self.pixel_values[i] for i in chosen]),
            "image_grid_thw": torch.cat([self.grids[i] for i in chosen]),
        }


def questions_from_rows(
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_tokens: int,
    completions: int,
    *,
    mm_token_type_ids: Tensor,
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    num_images: Sequence[int],
) -> QuestionBatch:
    """From TRL's rows (questions * completions, prompt and completion tokens).

    Pixel values and grids hold each question's images once; `num_images` counts those of a row or
    of a question.
    """
    prompt, ids = input_ids[:, :-completion_tokens], input_ids[:, -completion_tokens:]
    prompt_mask, mask = (
        attention_mask[:, :-completion_tokens],
        attention_mask[:, -completion_tokens:],
    )
    images = list(num_images[::completions] if len(num_images) == len(input_ids) else num_images)
    grids = image_grid_thw.split(images)
    return QuestionBatch(
        prompt_ids=prompt[::completions],
        prompt_mask=prompt_mask[::completions],
        token_types=mm_token_type_ids[::completions, : prompt.shape[1]],
        completion_ids=ids.unflatten(0, (-1, completions)),
        completion_mask=mask.unflatten(0, (-1, completions)),
        pixel_values=pixel_values.split([int(grid.prod(-1).sum()) for grid in grids]),
        grids=grids,
    )


class OncePerQuestionProcessor:
    """The processor as TRL uses it on rows: text and image of a question are processed once.

    TRL 1.16 tokenizes all rows for generation and processes all of them again for the forward
    pass. The second time it gets what the first one made, with each question's image once.
    """

    def __init__(self, processor: ProcessorMixin, completions: int) -> None:
        self._processor = processor
        self._completions = completions
        self._made: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._processor, name)

    def apply_chat_template(
        self,
        conversation: Any,  # noqa: ANN401
        *args: Any,
        tokenize: bool = False,
        **settings: Any,
    ) -> Any:  # noqa: ANN401
        if not tokenize:
            return self._processor.apply_chat_template(
                conversation, *args, tokenize=False, **settings
            )
        size = self._completions
        if any(turns != conversation[i - i % size] for i, turns in enumerate(conversation)):
            raise ValueError(
                f"rollout=grouped: the batch does not hold whole groups of {size} completions; "
                "set rollout=trl"
            )
        processor: Any = self._processor
        self._made = processor.apply_chat_template(
            conversation[::size], *args, tokenize=True, **settings
        )
        rows = {
            name: [values[i // size] for i in range(len(conversation))]
            for name, values in self._made.items()
            if isinstance(values, list)
        }
        return {**self._made, **rows}

    def __call__(self, **_: object) -> dict[str, Tensor]:
        """The fields beside tokens and mask; token types are of rows, images of questions."""
        types = self.inputs()["mm_token_type_ids"].repeat_interleave(self._completions, dim=0)
        return {
            "mm_token_type_ids": types,
            "pixel_values": self._made["pixel_values"],
            "image_grid_thw": self._made["image_grid_thw"],
        }

    def inputs(self, chosen: Sequence[int] | None = None) -> dict[str, Tensor]:
        """What the model's forward takes for the questions, or for the chosen ones, padded on the
        left. Each question has one image."""
        grids = self._made["image_grid_thw"]
        questions = range(len(self._made["input_ids"])) if chosen is None else chosen
        assert len(grids) == len(self._made["input_ids"])
        pixels = self._made["pixel_values"].split(grids.prod(-1).tolist())
        ids, types = (
            [torch.tensor(self._made[name][i]) for i in questions]
            for name in ("input_ids", "mm_token_type_ids")
        )
        padding = self._processor.tokenizer.pad_token_id
        return {
            "input_ids": pad(ids, padding, padding_side="left"),
            "attention_mask": pad([torch.ones_like(row) for row in ids], 0, padding_side="left"),
            "mm_token_type_ids": pad(types, 0, padding_side="left"),
            "pixel_values": torch.cat([pixels[i] for i in questions]),
            "image_grid_thw": grids[list(questions)],
        }


def rows_to_questions(rows: Mapping[str, Any], completions: int) -> dict[str, Any]:
    """TRL's batch (rows, ...) as (questions, completions, ...).

    Its shuffle and its cut into micro-batches then move whole questions.
    """
    return {
        name: value[::completions]
        if name == "num_images"
        else value
        if name in ("pixel_values", "image_grid_thw") or value.ndim == 0
        else value.unflatten(0, (-1, completions))
        for name, value in rows.items()
    }


def questions_to_rows(questions: Mapping[str, Any]) -> dict[str, Any]:
    """The way back; images stay those of questions."""
    of_images = ("pixel_values", "image_grid_thw", "num_images")
    return {
        name: value if name in of_images or value.ndim == 0 else value.flatten(0, 1)
        for name, value in questions.items()
    }
