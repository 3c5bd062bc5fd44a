"""A trial step of the longest samples before a run: what does not fit fails in the first minute."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOTrainer, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from medreason.config import Config
from medreason.console import first_line
from medreason.samples import Sample
from medreason.training.memory_estimate import DeviceBatch, bucket_bytes, drawing_bytes
from medreason.training.memory_limits import longest_samples, remedies
from medreason.training.peak_memory import PeakMemory

_STATE_BYTES = {"float32": 8, "8bit": 2}
"""AdamW's two moments, of each trained parameter; 8-bit embeddings have theirs in float32."""

_COUNTERS = ("_total_train_tokens", "_step", "_buffered_inputs")


def trial_step(
    config: Config, trainer: SFTTrainer | GRPOTrainer, samples: Sequence[Sample]
) -> tuple[int, DeviceBatch]:
    """(peak bytes, batch) of two forward and backward passes of the longest samples, and before
    them of what drawing a whole step's completions takes, which is reserved and not drawn.

    The optimizer's states to come are reserved meanwhile. No trace of the step stays: no gradient,
    no metric, no random number drawn. On CUDA the bytes are those torch allocated, on a CPU those
    of the process.

    Raises:
        ValueError: it does not fit; says what would help.
    """
    device, model = trainer.accelerator.device, trainer.model
    assert isinstance(model, nn.Module)
    rows = [trainer.train_dataset[i] for i in longest_samples(config, samples)]  # pyright: ignore
    try:
        with torch.random.fork_rng(), _records_unchanged(trainer), PeakMemory(device) as peak:
            batch = _run_step(config, trainer, model, rows)
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        first = first_line(error)
        raise ValueError(
            f"out of memory in a trial step of the {len(rows)} longest samples ({first}); "
            f"what helps, gentlest first: {'; '.join(remedies(config))}"
        ) from error
    finally:
        model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
    return peak.bytes, batch


def _run_step(
    config: Config,
    trainer: SFTTrainer | GRPOTrainer,
    model: nn.Module,
    rows: list[dict[str, Any]],
) -> DeviceBatch:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = [_reserved(_allocated_later(config, trained), trainer.accelerator.device)]
    model.train()
    if config.hardware.recomputes:  # transformers enables it when training begins
        settings = trainer.args.activation_checkpointing_kwargs
        trainer.model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)  # pyright: ignore
    if isinstance(trainer, GRPOTrainer):
        batch = _full_length_batch(config, trainer, rows)
    else:
        batch = trainer._prepare_inputs(trainer.data_collator(rows))
    size = _batch_size(config, batch)
    held.append(_reserved_for_drawing(config, trainer, size, trained))
    trainer.current_gradient_accumulation_steps = 1
    # Twice, since the second pass meets what the first leaves: gradients, and on a CPU the blocks
    # that malloc keeps. Under autocast, which SFT gets from the model that accelerate prepares when
    # training begins.
    for _ in range(2):
        # Then the second pass is a step of its own; but DDP's gradients stay, in its buckets.
        if config.accumulation == 1 and config.hardware.processes == 1:
            model.zero_grad(set_to_none=True)
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            loss = trainer.compute_loss(model, batch)
        trainer.accelerator.backward(loss)
        del loss
    held.clear()
    return size


def keeps_graphs(trainer: SFTTrainer | GRPOTrainer) -> bool:
    """Whether CUDA graphs stay beside its updates, as a `GroupedGRPOTrainer`'s may."""
    return getattr(trainer, "keeps_graphs", False)


def _reserved(count: int, device: torch.device) -> Tensor:
    """So many bytes. A CPU gives memory only for pages that are written, hence the addition."""
    return torch.zeros(count, dtype=torch.uint8, device=device).add_(1)


def _reserved_for_drawing(
    config: Config, trainer: SFTTrainer | GRPOTrainer, batch: DeviceBatch, trained: int
) -> Tensor:
    """What stays of drawing beside the update; for a moment, all that it takes is held."""
    model, device = trainer.model, trainer.accelerator.device
    assert isinstance(model, PreTrainedModel | PeftModel)
    drawing, stays = drawing_bytes(config, model, batch, keeps_graphs=keeps_graphs(trainer))
    # Beside DDP's buckets; of several micro-batches those are reserved already.
    buckets = bucket_bytes(config, trained) if drawing and config.accumulation == 1 else 0
    _reserved(drawing + buckets, device)
    torch.cuda.empty_cache()  # else the update would be cut out of that one block
    return _reserved(stays, device)


def _allocated_later(config: Config, trained: int) -> int:
    """Bytes that training adds: the optimizer's states in the first step, and DDP's buckets."""
    states = trained * _STATE_BYTES[config.hardware.optimizer_states]
    return states + (bucket_bytes(config, trained) if config.accumulation > 1 else 0)


def _batch_size(config: Config, batch: dict[str, Any]) -> DeviceBatch:
    sampled = config.method.algorithm == "grpo"
    prompts = batch["prompt_ids"] if sampled else batch["input_ids"]
    return DeviceBatch(
        questions=config.hardware.questions_at_once,
        completions=config.method.num_generations,
        prompt_tokens=prompts.shape[-1],
        completion_tokens=batch["completion_ids"].shape[-1] if sampled else 0,
        patches=int(batch["image_grid_thw"].prod(-1).max()),
        shared=prompts.ndim == 3,  # (questions, completions, tokens), as the grouped trainer has it
    )


def _full_length_batch(
    config: Config, trainer: GRPOTrainer, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """TRL's batch of these questions with completions of full length and rewards that differ."""
    size, tokens = config.method.num_generations, config.method.trl["max_completion_length"]
    repeated = [row for row in rows for _ in range(size)]

    # vLLM gives log-probabilities beside the tokens, None for one that it cannot score.
    unscored = [[None] * tokens for _ in repeated] if trainer.use_vllm else None

    def completions(*_: object, **__: object) -> tuple[list[list[int]], list[list[None]] | None]:
        return [[100] * tokens for _ in repeated], unscored

    def rewards(*_: object) -> Tensor:  # equal ones would make the grouped trainer skip the group
        values = torch.arange(float(len(repeated)), device=trainer.accelerator.device)
        return values[:, None].repeat(1, len(trainer.reward_funcs))

    # In place of the trainer's methods: sampling takes minutes, and a judge costs money.
    substitutes = {"_generate_single_turn": completions, "_calculate_rewards": rewards}
    vars(trainer).update(substitutes)
    try:
        return trainer._generate_and_score_completions(repeated)
    finally:
        for name in substitutes:
            delattr(trainer, name)


@contextmanager
def _records_unchanged(trainer: SFTTrainer | GRPOTrainer) -> Iterator[None]:
    """Restore the counters and empty the logs of a trainer that has not begun to train."""
    counters = {name: getattr(trainer, name) for name in _COUNTERS if hasattr(trainer, name)}
    tokens = trainer.state.num_input_tokens_seen
    try:
        yield
    finally:
        for name, value in counters.items():
            setattr(trainer, name, value)
        trainer.state.num_input_tokens_seen = tokens
        for logs in (trainer._metrics, getattr(trainer, "_logs", {})):
            for values in logs.values():
                values.clear()


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has an error of its own for CUDA; its CPU allocator raises a plain RuntimeError."""
    words = ("out of memory", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        word in str(error) for word in words
    )
