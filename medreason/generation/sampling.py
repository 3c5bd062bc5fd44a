"""Completions of questions, sampled as `generate` samples them: image and prompt once a question.

The prompt is read once and its keys and values are repeated for its completions. Each question
draws from a stream of its own, so its completions depend neither on the batch it came in nor on
the number of processes nor on a resume (save where rounding moves a token across a draw).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from medreason.generation.decoding import CompletionTokens, decode
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.prefill import Prefill, mrope_positions

_HONOURED = {
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
    """What these settings ask of `generate` that `rollout` does not do."""
    asked = {k: v for k, v in settings.to_diff_dict().items() if k not in _HONOURED}
    if asked.get("repetition_penalty") == 1.0:
        del asked["repetition_penalty"]
    return asked


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    completions: int,
    settings: GenerationConfig,
    seeds: Sequence[str],
    everywhere: Callable[[int], int] = int,
    graphs: bool = False,
) -> list[list[CompletionTokens]]:
    """`completions` of each question, in the order of the questions.

    `inputs` are what the model's forward takes for the questions, each once: input_ids and
    attention_mask padded on the left, mm_token_type_ids, image_grid_thw, and either pixel_values
    or mm_encoder_outputs. Without `settings.do_sample` the likeliest token is taken. The model is
    run as it stands; `eval()` is the caller's. `everywhere`, `graphs`: see `decode`.
    """
    position_ids = mrope_positions(model, inputs)
    outputs = model(
        **{k: v for k, v in inputs.items() if k != "mm_token_type_ids"},
        position_ids=position_ids,
        use_cache=True,
        logits_to_keep=1,
    )
    logits = outputs.logits[:, -1]  # (questions, vocabulary)
    entries = torch.arange(len(logits), device=logits.device).repeat_interleave(completions)
    steps = settings.max_new_tokens
    assert steps is not None
    prompted = Prefill(
        logits=logits[entries],
        position=position_ids[:, entries, -1:],
        mask=inputs["attention_mask"][entries],
        cache=functools.partial(repeat_kv_cache, outputs.past_key_values, entries, steps),
    )
    draws = _draws(seeds, completions, steps).to(logits.device) if settings.do_sample else None
    found = decode(model, prompted, settings, draws, everywhere, graphs=graphs)
    return [found[i : i + completions] for i in range(0, len(found), completions)]


def _draws(seeds: Sequence[str], completions: int, steps: int) -> Tensor:
    """Uniform draws (steps, rows), made on the CPU: the same on every device."""
    streams = []
    for seed in seeds:
        digest = hashlib.sha256(seed.encode()).digest()
        stream = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        streams.append(torch.rand(steps, completions, generator=stream, dtype=torch.float64))
    return torch.cat(streams, dim=1)
