"""Rollouts: a question's completions are sampled as transformers' `generate` samples them, but
image and prompt are prefilled once a question.

Each question has a random stream of its own, so its completions depend neither on the batch it is
in nor on the number of ranks nor on a resume (save where rounding moves a token across a number).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from medreason.generation.decoding import decode
from medreason.generation.drafts import RowDrafts
from medreason.generation.kept_graphs import DecodingGraphs
from medreason.generation.onednn_products import onednn_products
from medreason.generation.prefill import prefill_prompts
from medreason.generation.token_choice import CompletionTokens

_SUPPORTED = {
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "suppress_tokens",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "disable_compile",
    "transformers_version",
}


def unsupported_settings(settings: GenerationConfig) -> dict[str, Any]:
    """The settings that `generate` would follow and `decode` would not."""
    # Of those that differ from transformers' defaults: what is at its default asks for nothing.
    unsupported = {k: v for k, v in settings.to_diff_dict().items() if k not in _SUPPORTED}
    if unsupported.get("repetition_penalty") == 1.0:
        del unsupported["repetition_penalty"]
    return unsupported


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    completions: int,
    settings: GenerationConfig,
    seeds: Sequence[str],
    total_over_ranks: Callable[[int], int] = int,
    graphs: DecodingGraphs | None = None,
    drafts: RowDrafts | None = None,
) -> list[list[CompletionTokens]]:
    """`completions` of each question, in the order of the questions, each question by its seed.

    `inputs`: see `prefill_prompts`; `total_over_ranks`, `graphs`, `drafts`: see `decode`. Without
    `settings.do_sample` the likeliest token is taken. The model is run as it stands: `eval()` is
    the caller's.
    """
    steps = settings.max_new_tokens
    assert steps is not None
    numbers = uniform_numbers(seeds, completions, steps) if settings.do_sample else None
    with onednn_products(model):
        prefill = prefill_prompts(model, inputs, completions=completions, room=steps)
        rows = decode(
            model,
            prefill,
            settings,
            None if numbers is None else numbers.to(prefill.logits.device),
            total_over_ranks=total_over_ranks,
            graphs=graphs,
            drafts=drafts,
        )
    return [rows[i : i + completions] for i in range(0, len(rows), completions)]


def uniform_numbers(seeds: Sequence[str], completions: int, steps: int) -> Tensor:
    """Numbers (steps, questions x completions) from [0, 1)."""
    # All numbers are drawn before the first step, since a stream that is drawn from only while its
    # rows are active would depend on when other completions end. Drawn on the CPU, because CUDA's
    # generator gives other numbers for the same seed. In float64, since float32 has 2**24 numbers
    # between 0 and 1, too few for the rare tokens of a large vocabulary.
    streams = []
    for seed in seeds:
        digest = hashlib.sha256(seed.encode()).digest()
        # torch takes a seed of 63 bits.
        stream = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        streams.append(torch.rand(steps, completions, generator=stream, dtype=torch.float64))
    return torch.cat(streams, dim=1)
