"""CPU milliseconds of a decoding step of 16 rows behind prompts of 220 tokens, of one thread.

    python experiments/vllm/step.py

The 33 M parameters of `make bench`, with each of the changes for CPUs: least and median of 60
steps, in turn. Time of the process, which other work on the machine lengthens little.
"""

from __future__ import annotations

import statistics
import time

import torch
from hydra import compose, initialize_config_dir
from transformers import DynamicCache, PreTrainedModel

from medreason import config as configuration
from medreason.config import CONF
from medreason.console import show
from medreason.generation import packed_attention
from medreason.generation.cuda_graph import EagerStep
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.onednn_products import onednn_products
from medreason.models.load import load_model

ROWS, PROMPT, STEPS, ROUNDS = 16, 220, 60, 3


def loaded(precision: str) -> PreTrainedModel:
    overrides = ["action=bench", "method=grpo", "model=random_33m"]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = compose("config", overrides=[*overrides, f"hardware.precision={precision}"])
    config = configuration.load(composed)
    return load_model(config.model, config.hardware).eval()


def prompt_cache(model: PreTrainedModel) -> DynamicCache:
    text = model.config.get_text_config()
    width = text.hidden_size // text.num_attention_heads
    cache = DynamicCache()
    for layer in range(text.num_hidden_layers):
        states = torch.randn(1, text.num_key_value_heads, PROMPT, width, dtype=model.dtype)
        cache.update(states, states.clone(), layer)
    return repeat_kv_cache(cache, torch.zeros(ROWS, dtype=torch.long), STEPS)


@torch.no_grad()
def steps(model: PreTrainedModel) -> list[float]:
    step = EagerStep(model, prompt_cache(model), torch.ones(ROWS, PROMPT, dtype=torch.long))
    tokens, position = torch.randint(5, 300, (ROWS,)), torch.full((3, ROWS, 1), PROMPT)
    times = []
    for i in range(STEPS):
        began = time.process_time()
        step(tokens, position + i)
        times.append(1000 * (time.process_time() - began))
    return times


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the worker does
    show("| precision | transformers' step | heads in one call | and weights reordered |")
    show("|---|---|---|---|")
    for precision in ("float32", "bfloat16"):
        plain, ours = loaded(precision), loaded(precision)
        packed_attention.enable(ours)
        figures: list[list[float]] = [[], [], []]
        for _ in range(ROUNDS):
            figures[0] += steps(plain)
            figures[1] += steps(ours)
            with onednn_products(ours):
                figures[2] += steps(ours)
        cells = [f"{min(each):.1f}, {statistics.median(each):.1f}" for each in figures]
        show(f"| {precision} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
