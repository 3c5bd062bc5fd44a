"""What a piece of work costs on this machine, and how fast the machine can be at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def clock(device: torch.device) -> tuple[float, float]:
    """(busy seconds, wall seconds); a GPU's work is waited for, and counts as wall seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter(), time.perf_counter()
    return time.process_time(), time.perf_counter()


def timed(device: torch.device, act: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    busy, passed = clock(device)
    result = act()
    busy_then, passed_then = clock(device)
    return result, (busy_then - busy, passed_then - passed)


def roofline_seconds(
    model: Any,  # noqa: ANN401
    *,
    prompts: Sequence[int],
    patches: Sequence[int],
    completions: int,
    tokens: int,
    dtype: torch.dtype,
    rate: float,
    bandwidth: float,
) -> dict[str, float]:
    """Seconds that image and prompt once a question need at `rate` FLOP/s and `bandwidth` bytes/s.

    `prompts` and `patches` are those of each question, `tokens` those of each completion, `dtype`
    is what products are computed in. Weights times tokens and attention, 2 FLOPs a product,
    backward twice the forward (all weights are trained); generation reads all weights for each
    token.
    """
    config, vision = model.config.get_text_config(), model.config.vision_config
    layers = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n)
    visual = sum(p.numel() for n, p in model.named_parameters() if ".visual." in n)
    head = config.vocab_size * config.hidden_size
    count = len(prompts) * completions
    seen = sum(p * p / 2 + completions * tokens * (p + tokens / 2) for p in prompts)
    seeing = sum(2 * visual * n + 4 * n * n * vision.embed_dim * vision.depth for n in patches)
    text = 2 * layers * (sum(prompts) + count * tokens)
    text += 4 * seen * config.hidden_size * config.num_hidden_layers
    last = 2 * head * count * tokens
    weights = (layers + head) * dtype.itemsize
    reading = (seeing + 2 * layers * sum(prompts)) / rate
    drawing = max(tokens * weights / bandwidth, (2 * layers * count * tokens + last) / rate)
    update = 3 * (seeing + text + last) / rate
    generation = reading + drawing
    return {"update": update, "generation": generation, "step": update + generation}


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of five products of square matrices."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = min(timed(device, lambda: a @ a)[1][0] for _ in range(5))
    return 2 * side**3 / best


def copy_bandwidth(device: torch.device) -> float:
    """Bytes/s read and written by the best of five copies."""
    # Written first: pages that never were are one page of zeros, which caches hold.
    a = torch.ones(1 << 28, dtype=torch.uint8, device=device)
    b = torch.ones_like(a)
    return 2 * a.numel() / min(timed(device, lambda: b.copy_(a))[1][0] for _ in range(5))
