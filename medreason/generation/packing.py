"""Packed sequences: a question's prompt once, and its completions behind it. Tensors only.

`pack` makes `[prompt prefix | block 1 | ... | block G]` of each question. The prefix is the prompt
without its last token. A completion block begins with a copy of that token and lacks the
completion's own last one, so that its hidden states are those that predict the completion, one for
one. With mRoPE positions that go on behind the prompt in every block, and a mask that hides the
other blocks, the model returns for a block what it would return for the completion behind its own
copy of the prompt.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

NOT_PREDICTED = -100
_PADDING = -1
ALIGNED = 16
"""Rows of a mask of numbers begin at multiples of so many: CUDA's kernels would copy others."""


@dataclass(frozen=True)
class PackedSequences:
    """One packed sequence a question, padded on the right."""

    input_ids: Tensor
    """(questions, tokens)"""
    position_ids: Tensor
    """(3, questions, tokens): mRoPE positions, which go on behind the prompt in each block."""
    block: Tensor
    """(questions, tokens): 0 in the prefix, the completion's number in a block, -1 for padding."""
    labels: Tensor
    """(questions, tokens): the token predicted at each place, -100 where none is."""
    places: Tensor
    """(questions, completions, completion tokens): the place at which each token is predicted."""
    predicted: Tensor
    """(questions, completions, completion tokens), bool: false for padding."""

    @property
    def visible(self) -> Tensor:
        """(questions, 1, tokens, tokens), bool: a token (third axis) sees the prefix and its own
        block up to itself."""
        tokens = self.block.shape[1]
        earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=self.block.device).tril()
        key_block, query_block = self.block[:, None, :], self.block[:, :, None]
        return (((key_block == 0) | (key_block == query_block)) & earlier)[:, None]

    @functools.cached_property
    def prefix(self) -> int:
        """Tokens of the longest prefix."""
        return int((self.block == 0).sum(-1).max())

    @property
    def cheaper_by_blocks(self) -> bool:
        """Whether attention compares fewer pairs of tokens block by block than under one mask."""
        # Blocks are a batch, all as long as the longest: one long completion among short ones makes
        # them dearer than one mask. Causal attention of the prefix computes half its pairs.
        _, completions, longest = self.places.shape
        by_blocks = self.prefix**2 / 2 + completions * longest * (self.prefix + longest)
        return by_blocks < self.block.shape[1] ** 2

    def blocks(self, heads: int) -> tuple[Tensor, CompletionBlocks]:
        """(mask, blocks) for attention block by block. The mask is (questions, 1, heads x
        completion tokens, prefix + completion tokens), bool: what the tokens of a block see.
        `heads` is how many query heads read the same keys."""
        (questions, tokens), (_, completions, longest) = self.block.shape, self.places.shape
        device, prefix = self.block.device, self.prefix
        earlier = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        # The mask is the same for all blocks of a question, so it has no axis of completions. In
        # sequences with a shorter prefix it hides the places up to the longest one.
        in_prefix = (self.block == 0)[:, None, None, :prefix].expand(-1, heads, longest, -1)
        visible = torch.cat([in_prefix, earlier.expand(questions, heads, -1, -1)], dim=-1)

        # Both are of the flat axis questions x tokens, for index_select: its backward adds rows,
        # where the backward of indexing by two tensors sorts them first.
        question = torch.arange(questions, device=device)[:, None]
        place = torch.arange(tokens, device=device)
        number = (self.block - 1).clamp(min=0)
        step = place - self.places[..., 0].gather(1, number)
        in_parts = torch.where(
            self.block > 0, prefix + number * longest + step, place.clamp(max=prefix - 1)
        )
        return visible.flatten(1, 2)[:, None], CompletionBlocks(
            prefix=prefix,
            completions=completions,
            block_index=(question * tokens + self.places.flatten(1)).flatten(),
            sequence_index=(question * (prefix + completions * longest) + in_parts).flatten(),
        )


@dataclass(frozen=True)
class CompletionBlocks:
    """Where the blocks of packed sequences are, as a batch of blocks as long as the longest."""

    prefix: int
    """Tokens of the longest prefix."""
    completions: int
    block_index: Tensor
    """(questions x completions x completion tokens): the place of each token of the blocks in the
    packed sequences."""
    sequence_index: Tensor
    """(questions x tokens): the place of each token of the packed sequences in `[prefix | blocks]`,
    the way back."""


def pack(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    prompt_positions: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> PackedSequences:
    """Pack prompts (questions, prompt tokens) padded on the left, with positions (3, questions,
    prompt tokens), and completions (questions, completions, completion tokens) padded on the right.

    A completion whose mask is all zero takes no room.
    """
    (questions, width), device = prompt_ids.shape, prompt_ids.device
    completions, longest = completion_ids.shape[1:]
    predicted = completion_mask.bool()
    lengths = predicted.sum(-1)  # (questions, completions)
    prefix = prompt_mask.sum(-1) - 1  # (questions)
    tokens = int((prefix + lengths.sum(-1)).max())

    # Blocks follow each other without padding between them, so a packed sequence is no longer than
    # its prompt and completions together. Padding is written to place `tokens`, which is cut off.
    steps = torch.arange(longest, device=device)
    block_starts = prefix[:, None] + lengths.cumsum(-1) - lengths  # (questions, completions)
    places = torch.where(predicted, block_starts[..., None] + steps, tokens)
    columns = torch.arange(width, device=device)
    in_prefix = prompt_mask.bool() & (columns < width - 1)
    prefix_places = torch.where(
        in_prefix, columns - (width - 1 - prefix)[:, None], tokens
    )  # (questions, prompt tokens)

    def lay_out(prompt: Tensor | int, blocks: Tensor, padding: int) -> Tensor:
        """(questions, tokens) of values of the prompts and of the blocks."""
        line = torch.full((questions, tokens + 1), padding, dtype=torch.long, device=device)
        prompt_values = torch.as_tensor(prompt, device=device).expand_as(prefix_places)
        line.scatter_(1, prefix_places, prompt_values.long())
        line.scatter_(1, places.flatten(1), blocks.expand_as(places).flatten(1).long())
        return line[:, :tokens]

    last_prompt_ids = prompt_ids[:, None, -1:].expand(-1, completions, -1)
    block_ids = torch.cat([last_prompt_ids, completion_ids[..., :-1]], dim=-1)
    numbers = torch.arange(1, completions + 1, device=device)
    position_ids = torch.stack(
        # A block's first token is the prompt's last, so that is where its positions begin.
        [lay_out(axis, axis[:, -1, None, None] + steps, 0) for axis in prompt_positions]
    )
    return PackedSequences(
        input_ids=lay_out(prompt_ids, block_ids, 0),
        position_ids=position_ids,
        block=lay_out(0, numbers[None, :, None], _PADDING),
        labels=lay_out(NOT_PREDICTED, completion_ids, NOT_PREDICTED),
        # Padding is gathered like the rest and masked by `predicted`, so it needs a valid place.
        places=places.clamp(max=tokens - 1),
        predicted=predicted,
    )


def unpack(values: Tensor, packed: PackedSequences) -> Tensor:
    """(questions, tokens) to (questions, completions, completion tokens), 0 for padding."""
    unpacked = values.gather(1, packed.places.flatten(1)).view_as(packed.places)
    return unpacked.masked_fill(~packed.predicted, 0.0)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers that attention adds to its scores."""
    # Of a bool mask torch would make these numbers in each layer, and keep them for backward.
    *others, width = visible.shape
    padded_width = -(-width // ALIGNED) * ALIGNED
    padded = torch.zeros(*others, padded_width, dtype=dtype, device=visible.device)
    return padded[..., :width].masked_fill_(~visible, torch.finfo(dtype).min)
