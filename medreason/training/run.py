"""One training: from the base model to the weights in the run folder, resumed where it stopped."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import DistributedType
from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import GRPOTrainer, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from medreason.config import Config
from medreason.console import notice
from medreason.generation.context_length import Question, refuse_longer_than_context
from medreason.models.load import load_model, load_processor
from medreason.runs.files import atomic_folder
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training import adapter, checkpoints, grpo, memory_check, sft
from medreason.training.arguments import longest_prompt
from medreason.training.divergence import DivergenceCheck, explained
from medreason.training.recorder import Recorder
from medreason.training.update_check import UpdateCheck


def train(
    config: Config, samples: Sequence[Sample], folder: RunFolder, progress: Callable[..., None]
) -> None:
    """Train, save the weights to `folder.model`, and delete the checkpoints."""
    began = time.monotonic()
    _refuse_long_questions(config, samples)
    recorder = Recorder(folder, progress)
    update_check = UpdateCheck(folder)
    trainer = build(config, samples, folder, [recorder, DivergenceCheck(), update_check])
    _log_parameters(trainer, folder)
    left_out = config.left_out_of_epoch(len(samples))
    if left_out and trainer.accelerator.is_main_process:
        notice(
            f"each epoch leaves out {left_out} of {len(samples)} questions, every time others: "
            f"they do not fill a step of method.prompts_per_step={config.method.prompts_per_step}"
        )
    if config.hardware.memory_check:
        _check_memory(config, trainer, samples)
    recorder.rollout_logs = update_check.rollout_logs = getattr(trainer, "_logs", None)
    checkpoint = checkpoints.newest(
        folder,
        processes=config.hardware.processes,
        deepspeed=config.hardware.parallel in ("zero2", "zero3"),
    )
    with explained(trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    main_process = trainer.accelerator.is_main_process
    with atomic_folder(folder.model, main_process=main_process, replace=True) as unfinished:
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(unfinished))  # the processor too; writes on rank 0 alone
        trainer.accelerator.wait_for_everyone()
    if main_process:
        folder.update(trained=True, train_seconds=time.monotonic() - began)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    # The evaluation follows in this process and needs the memory. Trainers refer to themselves in
    # cycles, so they are freed by a collection alone.
    del trainer, recorder
    gc.collect()
    torch.cuda.empty_cache()
    unset_hf_deepspeed_config()  # else from_pretrained shards what is evaluated


def build(
    config: Config, samples: Sequence[Sample], folder: RunFolder, callbacks: list[TrainerCallback]
) -> SFTTrainer | GRPOTrainer:
    """The trainer of the configured method, with its model."""
    method = sft.trainer if config.method.algorithm == "sft" else grpo.trainer
    trainer = method(
        config,
        samples,
        load_model(config.model, config.hardware, full_precision=not config.adapter),
        load_processor(config.model),
        folder,
        callbacks,
    )
    # accelerate chooses from arguments and environment variables, and falls back without an error.
    kind = trainer.accelerator.distributed_type
    expected = {"fsdp": DistributedType.FSDP, "ddp": kind}.get(
        config.hardware.parallel, DistributedType.DEEPSPEED
    )
    assert kind == expected, f"hardware.parallel={config.hardware.parallel!r} became {kind}"
    if config.model.quantization != "none":
        assert trainer.model is not None
        adapter.train_in_float32(trainer.model)
    return trainer


def _refuse_long_questions(config: Config, samples: Sequence[Sample]) -> None:
    """Raise ValueError for samples that the model's context cannot hold with their completions."""
    if config.method.algorithm == "sft":
        questions = [Question(s, longest_prompt(config, s), sft.target(config, s)) for s in samples]
        refuse_longer_than_context(config.model, questions)
        return
    tokens = config.method.trl["max_completion_length"]
    questions = [Question(s, longest_prompt(config, s), tokens) for s in samples]
    refuse_longer_than_context(config.model, questions, "method.trl.max_completion_length")


def _log_parameters(trainer: SFTTrainer | GRPOTrainer, folder: RunFolder) -> None:
    """Write the number of trainable parameters to log and state."""
    assert trainer.model is not None
    trainable, total = adapter.count_parameters(trainer.model)
    if trainer.accelerator.is_main_process:
        notice(f"trainable parameters: {trainable:,} of {total:,}")
        folder.update(trainable_parameters=trainable, parameters=total)


def _check_memory(
    config: Config, trainer: SFTTrainer | GRPOTrainer, samples: Sequence[Sample]
) -> None:
    if config.hardware.parallel != "ddp":
        # FSDP and DeepSpeed shard the weights inside `Trainer.train`: before it, one device would
        # hold all of them.
        notice("no trial step: hardware.parallel is not ddp")
        return
    peak, _ = memory_check.trial_step(config, trainer, samples)
    if trainer.accelerator.is_main_process:
        notice(f"trial step of the longest samples: peak {peak / 2**30:.2f} GiB")


def trained_model(config: Config, folder: RunFolder) -> Config:
    """The configuration with the run's weights as its model; method=base keeps the base model."""
    if config.method.algorithm == "none":
        return config
    return replace(config, model=replace(config.model, path=str(folder.model), revision=None))
