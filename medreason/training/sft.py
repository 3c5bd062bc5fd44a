"""Supervised fine-tuning on TRL's trainer: the loss is on the reply alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.processing_utils import ProcessorMixin
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from medreason.config import Config
from medreason.generation import fused_layers
from medreason.prompts import conversation, turn
from medreason.replies import format_reply
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training.adapter import lora_config
from medreason.training.arguments import (
    EpochCounter,
    lazy_rows,
    prompt_in_epoch,
    sample_in_epoch,
    trl_arguments,
)
from medreason.training.checkpoints import PortableCheckpoints

Batch = dict[str, torch.Tensor]
"""What TRL's collator makes of rows: `input_ids`, `labels` and others, each (rows, tokens)."""


class PortableSFTTrainer(PortableCheckpoints, SFTTrainer):
    """TRL's trainer with checkpoints that any number of processes reads, and the same steps.

    - `get_batch_samples`: where the last micro-batches of an epoch have fewer rows than the
      processes take, accelerate 1.15 fills them with rows from the epoch's start. They are
      computed, since all processes must take part, and here get no weight: neither in the loss
      nor in the number of tokens by which transformers divides it.
    """

    accelerator: Accelerator  # Trainer assigns it without a type

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        batches = map(self._without_filled_rows, epoch_iterator)
        return super().get_batch_samples(batches, num_batches, device)

    def _without_filled_rows(self, batch: Batch) -> Batch:
        """The batch that the data loader has just yielded; filled rows get labels of -100."""
        if not self.accelerator.gradient_state.end_of_dataloader:
            return batch
        assert isinstance(self.train_dataset, Dataset)
        size, processes = self.args.per_device_train_batch_size, self.accelerator.num_processes
        in_last_round = (len(self.train_dataset) - 1) % (size * processes) + 1
        own = in_last_round - size * self.accelerator.process_index
        batch["labels"][max(own, 0) :] = -100
        return batch


def trainer(
    config: Config,
    samples: Sequence[Sample],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: RunFolder,
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    epoch = EpochCounter()
    trainer = PortableSFTTrainer(
        model=model,
        args=trl_arguments(
            SFTConfig,
            config,
            folder,
            per_device_train_batch_size=config.hardware.questions_at_once,
            max_length=None,  # truncation would drop image tokens or the answer
        ),
        train_dataset=dataset(config, samples, epoch),
        processing_class=processor,
        peft_config=lora_config(config, model),
        callbacks=[*callbacks, epoch],
    )
    if config.hardware.uses_fused_layers:
        fused_layers.fuse(model)
    return trainer


def dataset(config: Config, samples: Sequence[Sample], epoch: EpochCounter) -> Dataset:
    """Columns prompt, completion and image."""

    def columns(sample: Sample) -> dict[str, Any]:
        sample = sample_in_epoch(config, sample, epoch.number)
        prompt = prompt_in_epoch(config, sample, epoch)
        return {"prompt": conversation(prompt.text), "completion": turn(target(config, sample))}

    return lazy_rows(samples, columns)


def target(config: Config, sample: Sample) -> str:
    """The reply to imitate: the answer, with reasoning where prompt and sample have it."""
    if config.method.target == "med_r1_parity":
        return f"None\n\n<answer> {sample.answer} </answer>"
    if config.prompt.style == "free":
        return sample.answer
    if config.method.target == "answer" or sample.explanation is None:
        return format_reply(None, sample.answer, "no_think")
    return format_reply(sample.explanation, sample.answer, config.prompt.style)
