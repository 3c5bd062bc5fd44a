"""One training: from the start model to the weights in the run folder, resumed where it stopped."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import DistributedType
from transformers import Trainer, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import GRPOTrainer, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from medreason.config import Config
from medreason.models.load import load_model, load_processor
from medreason.runs.files import atomic_folder
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training import adapter, checkpoints, grpo, memory_check, sft
from medreason.training.recorder import Recorder


def train(
    config: Config, samples: Sequence[Sample], folder: RunFolder, progress: Callable[..., None]
) -> None:
    """Train, save to `folder.model` in one step, and drop the checkpoints, not needed any more."""
    began = time.monotonic()
    recorder = Recorder(folder, progress)
    trainer = build(config, samples, folder, [recorder])
    _note_size(trainer, folder)
    if config.hardware.memory_check:
        _try_longest(config, trainer, samples)
    recorder.rollout_logs = getattr(trainer, "_logs", None)
    checkpoint = checkpoints.last(
        folder,
        processes=config.hardware.processes,
        deepspeed=config.hardware.parallel in ("zero2", "zero3"),
    )
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
    # Trainers hold themselves in cycles; the evaluation needs their memory.
    del trainer, recorder
    gc.collect()
    torch.cuda.empty_cache()
    unset_hf_deepspeed_config()  # else zero3 loads the evaluated weights in parts, too


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
    kind = trainer.accelerator.distributed_type
    cut = {"fsdp": DistributedType.FSDP, "ddp": kind}.get(
        config.hardware.parallel, DistributedType.DEEPSPEED
    )
    assert kind == cut, f"hardware.parallel={config.hardware.parallel!r} became {kind}"
    if config.model.quantization != "none":
        adapter.in_full_precision(trainer.model)
    return trainer


def _note_size(trainer: Trainer, folder: RunFolder) -> None:
    """How many weights are trained, into log and state."""
    trained, all_ = adapter.count(trainer.model)
    if trainer.accelerator.is_main_process:
        print(f"trainable weights: {trained:,} of {all_:,}")  # noqa: T201
        folder.update(trainable_parameters=trained, parameters=all_)


def _try_longest(config: Config, trainer: Trainer, samples: Sequence[Sample]) -> None:
    if config.hardware.parallel != "ddp":  # weights are cut when training begins
        print("no trial step: hardware.parallel is not ddp")  # noqa: T201
        return
    peak, _ = memory_check.run(config, trainer, samples)
    if trainer.accelerator.is_main_process:
        print(f"trial step of the longest samples: peak {peak / 2**30:.2f} GiB")  # noqa: T201


def trained_model(config: Config, folder: RunFolder) -> Config:
    """The configuration with the run's own weights as its model; of a base run, its start model."""
    if config.method.algorithm == "none":
        return config
    return replace(config, model=replace(config.model, path=str(folder.model), revision=None))
