"""The roofline of a machine: the least time that FLOPs and memory bandwidth allow for a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from medreason.models.vision_tower import vision_tower

Result = TypeVar("Result")


class Seconds(NamedTuple):
    """What a piece of work took."""

    busy: float
    """CPU seconds of this process, over all its threads; on a GPU the wall seconds."""
    wall: float


class Rates(NamedTuple):
    """What a machine reaches, measured."""

    flops: float
    """FLOP/s of matrix products."""
    bandwidth: float
    """Bytes/s read and written by copies."""


def _clock(device: torch.device) -> Seconds:
    if device.type == "cuda":
        torch.cuda.synchronize()  # kernels run on after Python has launched them
        return Seconds(time.perf_counter(), time.perf_counter())
    return Seconds(time.process_time(), time.perf_counter())


def timed(device: torch.device, work: Callable[[], Result]) -> tuple[Result, Seconds]:
    """The result of `work`, and what it took."""
    start = _clock(device)
    result = work()
    end = _clock(device)
    return result, Seconds(end.busy - start.busy, end.wall - start.wall)


def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The best of five products of square matrices, and the best of five copies."""
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    product = min(timed(device, lambda: matrix @ matrix)[1].busy for _ in range(5))
    # Written before it is read: Linux maps all pages never written to one page of zeros, which
    # stays in the caches.
    source = torch.ones(1 << 28, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    copy = min(timed(device, lambda: target.copy_(source))[1].busy for _ in range(5))
    return Rates(2 * side**3 / product, 2 * source.numel() / copy)


def roofline_seconds(
    model: PreTrainedModel | PeftModel,
    *,
    prompts: Sequence[int],
    patches: Sequence[int],
    completions: int,
    tokens: int,
    dtype: torch.dtype,
    rates: Rates,
) -> dict[str, float]:
    """Least seconds of rollout, update and step, with image and prompt computed once a question.

    `prompts` and `patches` are the numbers of each question, `tokens` those of each completion;
    products are computed in `dtype`. All parameters are trained.
    """
    config, tower = model.config.get_text_config(), vision_tower(model.config)
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    visual = sum(p.numel() for name, p in model.named_parameters() if ".visual." in name)
    head = config.vocab_size * config.hidden_size
    count = len(prompts) * completions
    # A parameter costs 2 FLOPs a token, a pair of tokens in attention 4 a channel and layer.
    # Causal: a prompt's tokens attend to half of it on average, a completion's to all of the
    # prompt and half of the completion.
    pairs = sum(p * p / 2 + completions * tokens * (p + tokens / 2) for p in prompts)
    vision_flops = sum(2 * visual * n + 4 * tower.attended_pairs(n) * tower.width for n in patches)
    text_flops = 2 * layers * (sum(prompts) + count * tokens)
    text_flops += 4 * pairs * config.hidden_size * config.num_hidden_layers
    head_flops = 2 * head * count * tokens
    prefill = (vision_flops + 2 * layers * sum(prompts)) / rates.flops
    # A decoding step reads all weights once, for however many rows: with few rows that takes
    # longer than the products.
    reading = tokens * (layers + head) * dtype.itemsize / rates.bandwidth
    decoding = max(reading, (2 * layers * count * tokens + head_flops) / rates.flops)
    # Backward is twice the forward: gradients of the inputs and of the weights.
    update = 3 * (vision_flops + text_flops + head_flops) / rates.flops
    rollout = prefill + decoding
    return {"update": update, "rollout": rollout, "step": update + rollout}
