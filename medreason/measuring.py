"""What a piece of work costs on this machine, and how fast the machine can be at all."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch

_M_MMAP_THRESHOLD = -3  # malloc.h


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


def floor(
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


def private_bytes() -> int:
    """Of the process, without the pages of files it maps, which the kernel takes back at will."""
    found = psutil.Process().memory_info()
    return found.rss - getattr(found, "shared", 0)


def return_freed_blocks() -> None:
    """From now on malloc gives blocks of 256 KiB and more back when they are freed, slower:
    what it would keep can be more than all tensors of a step. Without glibc nothing changes."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, 1 << 18)


class Peak:
    """Highest memory within a `with`: of the GPU as torch counts it, else `private_bytes`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> Peak:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, private_bytes())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self._thread.join()
