"""TRL's batches, question by question: TRL repeats a question in one row for each completion.

Q questions of G completions are Q * G rows to TRL, ordered by question: the rows of question q are
q * G to q * G + G - 1. The diagram in `grouped_trainer` says where rows become questions and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.processing_utils import ProcessorMixin
from trl.trainer.utils import pad

Conversation = list[dict[str, Any]]
"""Turns with `role` and `content`, as chat templates take them."""

_OF_IMAGES = ("pixel_values", "image_grid_thw", "num_images")
"""Fields with an entry (or patches) for each image, and so one set for each question."""


@dataclass(frozen=True)
class QuestionBatch:
    """Questions whose completions get log-probabilities. Prompts are padded on the left."""

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

    @classmethod
    def from_rows(
        cls,
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

        `pixel_values` and `image_grid_thw` hold each question's images once.
        """
        prompt_ids, completion_ids = input_ids.tensor_split([-completion_tokens], dim=1)
        prompt_mask, completion_mask = attention_mask.tensor_split([-completion_tokens], dim=1)
        # TRL counts images by row when completions are scored, and the loss gets our counts, by
        # question (`rows_to_questions` took one of each group).
        by_row = len(num_images) == len(input_ids)
        grids = image_grid_thw.split(list(num_images[::completions] if by_row else num_images))
        return cls(
            prompt_ids=prompt_ids[::completions],
            prompt_mask=prompt_mask[::completions],
            token_types=mm_token_type_ids[::completions, : prompt_ids.shape[1]],
            completion_ids=completion_ids.unflatten(0, (-1, completions)),
            completion_mask=completion_mask.unflatten(0, (-1, completions)),
            pixel_values=pixel_values.split([int(grid.prod(-1).sum()) for grid in grids]),
            grids=grids,
        )

    def prompts(self, places: Sequence[int]) -> dict[str, Tensor]:
        """The arguments of the model's forward for the prompts of the questions at `places`."""
        return {
            "input_ids": self.prompt_ids[places],
            "attention_mask": self.prompt_mask[places],
            "mm_token_type_ids": self.token_types[places],
            "pixel_values": torch.cat([self.pixel_values[i] for i in places]),
            "image_grid_thw": torch.cat([self.grids[i] for i in places]),
        }


class OncePerQuestionProcessor:
    """Stands in for TRL's processor on rows, and processes each question's text and image once.

    TRL 1.16 tokenizes all rows for generation (`apply_chat_template`) and then processes all of
    them again for the forward pass (`__call__`). The second call gets the result of the first.
    """

    def __init__(self, processor: ProcessorMixin, completions: int) -> None:
        self._processor = processor
        self._completions = completions
        self._processed: dict[str, Any] = {}
        """The processor's output for the questions: lists of tokens, tensors of images."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._processor, name)

    def apply_chat_template(
        self,
        conversation: Sequence[Conversation],
        *args: Any,
        tokenize: bool = False,
        **settings: Any,
    ) -> str | list[str] | dict[str, Any]:
        processor: Any = self._processor  # declared for a single image and text
        if not tokenize:
            return processor.apply_chat_template(conversation, *args, tokenize=False, **settings)
        size = self._completions
        if any(turns != conversation[i - i % size] for i, turns in enumerate(conversation)):
            raise ValueError(
                f"rollout=grouped: the batch does not hold whole groups of {size} completions; "
                "set rollout=trl"
            )
        self._processed = processor.apply_chat_template(
            conversation[::size], *args, tokenize=True, **settings
        )
        # Token lists are repeated for TRL, which counts, logs and pads by row. Images are not: TRL
        # hands them on unread, and repeating 784 patches G times would cost more than all else.
        rows = {
            name: [values[i // size] for i in range(len(conversation))]
            for name, values in self._processed.items()
            if isinstance(values, list)
        }
        return {**self._processed, **rows}

    def __call__(self, **_: object) -> dict[str, Tensor]:
        """The fields beside tokens and mask: token types by row, images by question."""
        types = self.inputs()["mm_token_type_ids"].repeat_interleave(self._completions, dim=0)
        return {
            "mm_token_type_ids": types,
            "pixel_values": self._processed["pixel_values"],
            "image_grid_thw": self._processed["image_grid_thw"],
        }

    def inputs(self, places: Sequence[int] | None = None) -> dict[str, Tensor]:
        """The arguments of the model's forward for the questions at `places` (default: all).

        Prompts are padded on the left. Each question has one image.
        """
        grids = self._processed["image_grid_thw"]
        assert len(grids) == len(self._processed["input_ids"])
        places = range(len(grids)) if places is None else places
        pixels = self._processed["pixel_values"].split(grids.prod(-1).tolist())
        ids, types = (
            [torch.tensor(self._processed[name][i]) for i in places]
            for name in ("input_ids", "mm_token_type_ids")
        )
        padding = self._processor.tokenizer.pad_token_id
        return {
            "input_ids": pad(ids, padding, padding_side="left"),
            "attention_mask": pad([torch.ones_like(row) for row in ids], 0, padding_side="left"),
            "mm_token_type_ids": pad(types, 0, padding_side="left"),
            "pixel_values": torch.cat([pixels[i] for i in places]),
            "image_grid_thw": grids[list(places)],
        }


def rows_to_questions(rows: Mapping[str, Any], completions: int) -> dict[str, Any]:
    """TRL's batch (rows, ...) as (questions, completions, ...)."""

    # TRL shuffles a batch and cuts it into micro-batches along the first axis. With questions
    # there, both move whole groups, so a micro-batch can compute each prompt once.
    def by_question(name: str, value: Tensor | list[int]) -> Tensor | list[int]:
        if isinstance(value, list):  # num_images, with an entry for each row
            return value[::completions]
        if name in _OF_IMAGES or value.ndim == 0:
            return value
        return value.unflatten(0, (-1, completions))

    return {name: by_question(name, value) for name, value in rows.items()}


def questions_to_rows(questions: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse for TRL's loss; images stay one set for each question."""
    return {
        name: value if name in _OF_IMAGES or value.ndim == 0 else value.flatten(0, 1)
        for name, value in questions.items()
    }
