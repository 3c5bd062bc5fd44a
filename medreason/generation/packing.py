"""A question and its completions in one sequence: the prompt once, every completion behind it.

`pack` makes `[prompt | block 1 | ... | block G]` of each question. A block begins with a copy of
the prompt's last token and lacks the completion's own last one, so that its hidden states are those
that predict the completion, one for one: what the model returns at a block's places is what it
would return for the completion behind its own copy of the prompt. Tensors only.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

NOT_PREDICTED = -100
_PADDING = -1


@dataclass(frozen=True)
class PackedSequences:
    """One sequence a question, padded on the right."""

    input_ids: Tensor
    """(questions, tokens)"""
    position_ids: Tensor
    """(3, questions, tokens): mRoPE positions, which go on behind the prompt in each block."""
    block: Tensor
    """(questions, tokens): 0 in the prompt, the number of its completion in a block, -1 behind."""
    labels: Tensor
    """(questions, tokens): the token predicted at each place, -100 where none is."""
    places: Tensor
    """(questions, completions, completion tokens): the place at which each token is predicted."""
    predicted: Tensor
    """(questions, completions, completion tokens), bool: false for padding."""

    @property
    def visible(self) -> Tensor:
        """(questions, 1, tokens, tokens), bool: a token (third axis) sees what stands before it
        in the prompt and in its block."""
        tokens = self.block.shape[1]
        earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=self.block.device).tril()
        there = self.block[:, None, :]
        return (((there == 0) | (there == self.block[:, :, None])) & earlier)[:, None]

    @functools.cached_property
    def prefix(self) -> int:
        """Tokens of the longest prompt without its last."""
        return int((self.block == 0).sum(-1).max())

    @property
    def cheaper_by_blocks(self) -> bool:
        """Whether attention compares fewer tokens block by block, all as long as the longest, than
        under one mask."""
        _, completions, longest = self.places.shape
        by_blocks = self.prefix**2 / 2 + completions * longest * (self.prefix + longest)
        return by_blocks < self.block.shape[1] ** 2

    def blocks(self, heads: int) -> tuple[Tensor, CompletionBlocks]:
        """The same block by block: what their tokens see, (questions, 1, heads x completion tokens,
        prefix + completion tokens), bool, and where they are. `heads` is how many of the queries'
        heads read one of the keys'."""
        (questions, tokens), (_, completions, longest) = self.block.shape, self.places.shape
        in_prompt, prefix = self.block == 0, self.prefix
        earlier = torch.ones(longest, longest, dtype=torch.bool, device=self.block.device).tril()
        beside = in_prompt[:, None, None, :prefix].expand(-1, heads, longest, -1)
        visible = torch.cat([beside, earlier.expand(questions, heads, -1, -1)], dim=-1)

        lines = torch.arange(questions, device=self.block.device)[:, None]
        places = torch.arange(tokens, device=self.block.device)
        number = (self.block - 1).clamp(min=0)
        within = places - self.places[..., 0].gather(1, number)
        back = torch.where(
            self.block > 0, prefix + number * longest + within, places.clamp(max=prefix - 1)
        )
        return visible.flatten(1, 2)[:, None], CompletionBlocks(
            prefix=prefix,
            completions=completions,
            block_index=(lines * tokens + self.places.flatten(1)).flatten(),
            sequence_index=(lines * (prefix + completions * longest) + back).flatten(),
        )


@dataclass(frozen=True)
class CompletionBlocks:
    """The blocks of packed sequences, as long as the longest, beside the prompts they see."""

    prefix: int
    """Tokens of the longest prompt without its last."""
    completions: int
    block_index: Tensor
    """(questions x completions x completion tokens): where their tokens are in the sequences."""
    sequence_index: Tensor
    """(questions x tokens): where each place of the sequences is in `[prompt | blocks]`."""


def pack(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    prompt_positions: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> PackedSequences:
    """Prompts (questions, prompt tokens) padded on the left, positions (3, questions, prompt
    tokens), completions (questions, completions, completion tokens) padded on the right.

    A completion whose mask is all zero takes no room.
    """
    questions, width = prompt_ids.shape
    longest = completion_ids.shape[-1]
    predicted = completion_mask.bool()
    lengths = predicted.sum(-1)  # (questions, completions)
    prefix = prompt_mask.sum(-1) - 1  # of each prompt without its last token
    tokens = int((prefix + lengths.sum(-1)).max())

    steps = torch.arange(longest, device=prompt_ids.device)
    begins = prefix[:, None] + lengths.cumsum(-1) - lengths  # (questions, completions)
    places = torch.where(predicted, begins[..., None] + steps, tokens)
    columns = torch.arange(width, device=prompt_ids.device)
    in_prefix = prompt_mask.bool() & (columns < width - 1)
    prompt_places = torch.where(
        in_prefix, columns - (width - 1 - prefix)[:, None], tokens
    )  # (questions, prompt tokens)

    def laid_out(prompt: Tensor | int, blocks: Tensor, padding: int) -> Tensor:
        """(questions, tokens); what is padding is written to one place behind, and cut off."""
        line = torch.full(
            (questions, tokens + 1), padding, dtype=torch.long, device=prompt_ids.device
        )
        line.scatter_(
            1,
            prompt_places,
            torch.as_tensor(prompt, device=line.device).expand_as(prompt_places).long(),
        )
        line.scatter_(1, places.flatten(1), blocks.expand_as(places).flatten(1).long())
        return line[:, :tokens]

    last = prompt_ids[:, None, -1:].expand(-1, completion_ids.shape[1], -1)
    entered = torch.cat([last, completion_ids[..., :-1]], dim=-1)
    blocks = torch.arange(1, completion_ids.shape[1] + 1, device=prompt_ids.device)
    position_ids = torch.stack(
        [laid_out(axis, axis[:, -1, None, None] + steps, 0) for axis in prompt_positions]
    )
    return PackedSequences(
        input_ids=laid_out(prompt_ids, entered, 0),
        position_ids=position_ids,
        block=laid_out(0, blocks[None, :, None], _PADDING),
        labels=laid_out(NOT_PREDICTED, completion_ids, NOT_PREDICTED),
        places=places.clamp(max=tokens - 1),
        predicted=predicted,
    )


def unpack(values: Tensor, packed: PackedSequences) -> Tensor:
    """(questions, tokens) to (questions, completions, completion tokens), 0 where padding is."""
    found = values.gather(1, packed.places.flatten(1)).view_as(packed.places)
    return found.masked_fill(~packed.predicted, 0.0)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers that attention adds to its scores; of a bool mask torch would make them
    in each layer, and keep them for the backward pass."""
    *others, width = visible.shape
    # Rows begin at multiples of 16: CUDA's kernels would copy other ones.
    room = torch.zeros(*others, -(-width // 16) * 16, dtype=dtype, device=visible.device)
    return room[..., :width].masked_fill_(~visible, torch.finfo(dtype).min)
