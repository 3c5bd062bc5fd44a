"""One step of the longest prompts and completions before a run: what does not fit fails at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer

from medreason.config import Config
from medreason.samples import Sample
from medreason.training.memory_estimate import DeviceBatch
from medreason.training.memory_limits import longest_samples, remedies
from medreason.training.peak_memory import PeakMemory

_STATE_BYTES = {"float32": 8, "8bit": 2}
"""AdamW's two moments, of each trained weight; 8-bit embeddings have theirs in float32."""

_COUNTERS = ("_total_train_tokens", "_step", "_buffered_inputs")


def run(config: Config, trainer: Trainer, samples: Sequence[Sample]) -> tuple[int, DeviceBatch]:
    """Peak bytes of two forward and backward passes beside the optimizer's states to come.

    Nothing of it stays: no gradient, no metric, no draw of a random number. On CUDA the bytes are
    those torch allocated, on a CPU those of the process.

    Raises:
        ValueError: it does not fit; says what would help.
    """
    device = trainer.accelerator.device
    rows = [trainer.train_dataset[i] for i in longest_samples(config, samples)]  # pyright: ignore
    try:
        with torch.random.fork_rng(), _untouched(trainer), PeakMemory(device) as peak:
            held = _step(config, trainer, rows, device)
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        raise ValueError(
            f"out of memory in a trial step of the {len(rows)} longest samples ({error_line(error)}"
            f"); what helps, gentlest first: {'; '.join(remedies(config))}"
        ) from error
    finally:
        trainer.model.zero_grad(set_to_none=True)  # pyright: ignore
        gc.collect()
        torch.cuda.empty_cache()
    return peak.bytes, held


def _step(
    config: Config,
    trainer: Any,  # noqa: ANN401
    rows: list[dict[str, Any]],
    device: torch.device,
) -> DeviceBatch:
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    states = torch.zeros(
        trained * _STATE_BYTES[config.hardware.optimizer_states], dtype=torch.uint8, device=device
    ).add_(1)  # touched, or a CPU would not give the memory
    trainer.model.train()
    if config.hardware.gradient_checkpointing:  # transformers does so when training begins
        settings = trainer.args.activation_checkpointing_kwargs
        trainer.model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    if config.method.algorithm == "grpo":
        batch = _completed(config, trainer, rows)
    else:
        batch = trainer._prepare_inputs(trainer.data_collator(rows))
    trainer.current_gradient_accumulation_steps = 1
    for _ in range(2):  # with what the first leaves: gradients, and holes in the memory of a CPU
        if config.accumulation == 1:  # the next step then, not the next micro-batch
            trainer.model.zero_grad(set_to_none=True)
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, batch)
        trainer.accelerator.backward(loss)
        del loss
    del states
    return _size(config, batch)


def _size(config: Config, batch: dict[str, Any]) -> DeviceBatch:
    grids = batch["image_grid_thw"].prod(-1)
    sampled = config.method.algorithm == "grpo"
    prompts = batch["prompt_ids"] if sampled else batch["input_ids"]
    return DeviceBatch(
        questions=config.hardware.per_device_prompts,
        completions=config.method.num_generations,
        prompt_tokens=prompts.shape[-1],
        completion_tokens=batch["completion_ids"].shape[-1] if sampled else 0,
        patches=int(grids.max()),
        shared=prompts.ndim == 3,
    )


def _completed(config: Config, trainer: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: ANN401
    """TRL's batch of these questions with completions of full length and rewards that differ."""
    size, tokens = config.method.num_generations, config.method.trl["max_completion_length"]
    repeated = [row for row in rows for _ in range(size)]
    trainer._generate_single_turn = lambda *_, **__: ([[100] * tokens for _ in repeated], None)
    trainer._calculate_rewards = lambda *_: torch.arange(
        float(len(repeated)), device=trainer.accelerator.device
    )[:, None].repeat(1, len(trainer.reward_funcs))
    try:
        return trainer._generate_and_score_completions(repeated)
    finally:
        del trainer._generate_single_turn, trainer._calculate_rewards


@contextmanager
def _untouched(trainer: Any) -> Iterator[None]:  # noqa: ANN401
    """What the step leaves in the records of a trainer that has not begun is taken out again."""
    counted = {name: getattr(trainer, name) for name in _COUNTERS if hasattr(trainer, name)}
    tokens = trainer.state.num_input_tokens_seen
    try:
        yield
    finally:
        for name, value in counted.items():
            setattr(trainer, name, value)
        trainer.state.num_input_tokens_seen = tokens
        for recorded in (trainer._metrics, getattr(trainer, "_logs", {})):
            for values in recorded.values():
                values.clear()


def _is_memory(error: BaseException) -> bool:
    """torch says so on CUDA; its CPU allocator raises a plain RuntimeError."""
    words = ("out of memory", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        word in str(error) for word in words
    )


def error_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
