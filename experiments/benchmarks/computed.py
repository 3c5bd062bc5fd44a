"""Seconds of a GRPO step of Qwen2-VL-2B on an H100, computed from its kernels: nothing is measured.

    python experiments/benchmarks/computed.py

A kernel takes as long as its bytes at the bandwidth that kernels reach, as its FLOPs at the rate
that products reach, or as the shortest kernel takes, whichever is longest. Within a CUDA graph that
is all; elsewhere a step takes at least as long as Python and autograd take to launch its kernels.
A rollout launches the next step before it reads what the last one sampled, so that there only
kernels take time.
The roofline is that of `bench`: image and prompt once a question, weights read once a token, at the
same rates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hydra import compose, initialize_config_dir
from transformers import PreTrainedConfig

from medreason import config as configuration
from medreason.benchmark.gpu_time import GPUS
from medreason.benchmark.kernel_count import (
    Kernel,
    choosing_kernels,
    decoding_kernels,
    prefill_kernels,
    update_kernels,
)
from medreason.benchmark.roofline import Rates, roofline_seconds
from medreason.config import CONF, Config
from medreason.console import show
from medreason.generation import cuda_graph, kept_graphs
from medreason.models.load import meta_model
from medreason.training.memory_estimate import DeviceBatch, estimate

BANDWIDTH_REACHED, PRODUCTS_REACHED = 0.85, 0.6
"""Of the data sheet: of copies of large tensors, and of products in bfloat16."""
SHORTEST, LAUNCH = 1.5e-6, 6e-6
"""Seconds: of a kernel that does nothing, behind another in a graph; of Python with autograd to
launch one."""
BOOKKEEPING = 16
"""Short kernels beside a step and the choice of its tokens: what has ended, and what is written."""
TEXT, PATCHES, TOKENS = 60, 784, 256
SHAPES = ((4, 4), (16, 8))
"""Questions and completions of a step."""

HEADER = (
    "| shape | layers | questions a micro-batch | recomputed | kernels a decoding step | "
    "launches of an update | rollout, s | update, s | step, s | roofline, s | ratio |"
)

(H100,) = (gpu for gpu in GPUS if gpu.name == "H100")
RATES = Rates(PRODUCTS_REACHED * H100.rates.flops, BANDWIDTH_REACHED * H100.rates.bandwidth)


def in_graph(kernels: Sequence[Kernel]) -> float:
    return sum(max(k.moved / RATES.bandwidth, k.flops / RATES.flops, SHORTEST) for k in kernels)


def launched(kernels: Sequence[Kernel]) -> float:
    return max(in_graph(kernels), len(kernels) * LAUNCH)


def configured(questions: int, completions: int, *overrides: str) -> Config:
    overrides = (
        *("method=grpo", "model=qwen2_vl_2b", "hardware=gpu", "method.trl.beta=0"),
        *(f"method.prompts_per_step={questions}", f"method.trl.num_generations={completions}"),
        *(f"method.trl.max_completion_length={TOKENS}", *overrides),
    )
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return configuration.load(compose("config", overrides=[*overrides]))


def cut(questions: int, completions: int) -> tuple[int, bool]:
    """(questions of a micro-batch, whether activations are computed again): without, and as many as
    fit into the card by the estimate."""
    for checkpointing in (False, True):
        for at_once in range(questions, 0, -1):
            config = configured(
                *(questions, completions, f"hardware.gradient_checkpointing={checkpointing}"),
            )
            batch = DeviceBatch(
                at_once, completions, TEXT + PATCHES // 4, TOKENS, PATCHES, shared=True
            )
            if questions % at_once == 0 and estimate(config, batch).peak < H100.memory:
                return at_once, checkpointing
    raise ValueError("one question does not fit")


def decoding_seconds(
    config: PreTrainedConfig, questions: int, completions: int, *, fused: bool
) -> tuple[float, int]:
    """(seconds of all steps, kernels of one)"""
    rows, window = questions * completions, kept_graphs.WINDOW if fused else cuda_graph.WINDOW
    choosing = in_graph(choosing_kernels(config, rows=rows)) + BOOKKEEPING * SHORTEST
    # A step rounds the weights of the language model, once a rollout.
    text = 2 * config_numbers(config)
    seconds, kernels = 3 * text / RATES.bandwidth, 0
    for done in range(0, TOKENS, window):
        step = decoding_kernels(
            config,
            questions=questions,
            completions=completions,
            prompt=TEXT + PATCHES // 4,
            tokens=TOKENS,
            done=done,
            fused=fused,
        )
        seconds += min(window, TOKENS - done) * (in_graph(step) + choosing)
        kernels = len(step)
    return seconds, kernels


def config_numbers(config: PreTrainedConfig) -> int:
    """Of the weights that a decoding step reads."""
    text = config.get_text_config()
    heads = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    layer = text.hidden_size * (2 * text.hidden_size + 2 * heads + 3 * text.intermediate_size)
    return text.num_hidden_layers * layer + text.vocab_size * text.hidden_size


def update_seconds(
    config: PreTrainedConfig,
    at_once: int,
    completions: int,
    micro_batches: int,
    *,
    again: bool,
    fused: bool,
) -> tuple[float, int]:
    """(seconds, launches) of all micro-batches: the first, and others, which add up gradients."""
    seconds, launches = 0.0, 0
    for first, times in ((True, 1), (False, micro_batches - 1)):
        if not times:
            continue
        forward, backward = update_kernels(
            config,
            questions=at_once,
            completions=completions,
            tokens=TOKENS,
            text_tokens=TEXT,
            checkpointing=again,
            fused=fused,
            first=first,
        )
        seconds += times * launched([*forward, *backward])
        launches += times * len([*forward, *backward])
    return seconds, launches


def main() -> None:
    model = meta_model(configured(1, 2).model)
    config = model.config
    parameters = sum(p.numel() for p in model.parameters())
    # Norm and scaling of the gradients; AdamW reads and writes weights and moments.
    optimizer = (4 * 3 + 4 * 7) * parameters / RATES.bandwidth
    show(HEADER)
    show("|" + " --- |" * (HEADER.count("|") - 1))
    for questions, completions in SHAPES:
        prompt = TEXT + PATCHES // 4
        roofline = roofline_seconds(
            model,
            prompts=[prompt] * questions,
            patches=[PATCHES] * questions,
            completions=completions,
            tokens=TOKENS,
            dtype=torch.bfloat16,
            rates=RATES,
        )["step"]
        best = cut(questions, completions)
        for name, fused, (at_once, again) in (
            ("transformers'", False, (1, True)),
            ("fused", True, (1, True)),
            ("fused", True, best),
        ):
            decoding, kernels = decoding_seconds(config, questions, completions, fused=fused)
            micro_batches = questions // at_once
            update, launches = update_seconds(
                config, at_once, completions, micro_batches, again=again, fused=fused
            )
            update += optimizer
            prefill = prefill_kernels(config, questions=questions, text_tokens=TEXT, fused=fused)
            rollout = launched(prefill) + decoding
            seconds = rollout + update
            show(
                f"| {questions} x {completions} x {TOKENS} | {name} | {at_once} |"
                f" {'yes' if again else 'no'} | {kernels} |"
                f" {launches:,} | {rollout:.2f} | {update:.2f} |"
                f" {seconds:.2f} | {roofline:.2f} | {seconds / roofline:.2f} |"
            )


if __name__ == "__main__":
    main()
