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
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from medreason.models.decoding import Drawn, Prompted, decode, repeated

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


def not_honoured(settings: GenerationConfig) -> dict[str, Any]:
    """What these settings ask of `generate` that `rollout` does not do."""
    asked = {k: v for k, v in settings.to_diff_dict().items() if k not in _HONOURED}
    if asked.get("repetition_penalty") == 1.0:
        del asked["repetition_penalty"]
    return asked


@torch.no_grad()
def rollout(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    completions: int,
    settings: GenerationConfig,
    seeds: Sequence[str],
    everywhere: Callable[[int], int] = int,
    graphs: bool = False,
) -> list[list[Drawn]]:
    """`completions` of each question, in the order of the questions.

    `inputs` are what the model's forward takes for the questions, each once: input_ids and
    attention_mask padded on the left, mm_token_type_ids, image_grid_thw, and either pixel_values
    or mm_encoder_outputs. Without `settings.do_sample` the likeliest token is taken. The model is
    run as it stands; `eval()` is the caller's. `everywhere`, `graphs`: see `decode`.
    """
    position_ids = prompt_positions(model, inputs)
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
    prompted = Prompted(
        logits=logits[entries],
        position=position_ids[:, entries, -1:],
        mask=inputs["attention_mask"][entries],
        cache=functools.partial(repeated, outputs.past_key_values, entries, steps),
    )
    draws = _draws(seeds, completions, steps).to(logits.device) if settings.do_sample else None
    found = decode(model, prompted, settings, draws, everywhere, graphs=graphs)
    return [found[i : i + completions] for i in range(0, len(found), completions)]


def prompt_positions(model: PreTrainedModel | PeftModel, inputs: Mapping[str, Any]) -> Tensor:
    """mRoPE positions (3, questions, prompt tokens) by the model's own rule."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    found, _ = base.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return found


def _draws(seeds: Sequence[str], completions: int, steps: int) -> Tensor:
    """Uniform draws (steps, rows), made on the CPU: the same on every device."""
    streams = []
    for seed in seeds:
        digest = hashlib.sha256(seed.encode()).digest()
        stream = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        streams.append(torch.rand(steps, completions, generator=stream, dtype=torch.float64))
    return torch.cat(streams, dim=1)
