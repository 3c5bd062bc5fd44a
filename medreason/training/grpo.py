"""GRPO on TRL's trainer: full weights or, as RARL, an adapter with the base as the reference."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.processing_utils import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from medreason.config import Config
from medreason.models import model_folder
from medreason.models.load import END_TOKENS, VISION_TOKENS
from medreason.prompts import conversation
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
from medreason.training.grouped_trainer import GroupedGRPOTrainer
from medreason.training.trl_rewards import Scorer, rewards


class PortableGRPOTrainer(PortableCheckpoints, GRPOTrainer):
    """TRL's trainer with checkpoints that any cut can read."""


class PortableGroupedTrainer(PortableCheckpoints, GroupedGRPOTrainer):
    """The same for ours."""


def trainer(
    config: Config,
    samples: Sequence[Sample],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: RunFolder,
    callbacks: list[TrainerCallback],
) -> GRPOTrainer:
    tokenizer = processor.tokenizer
    # Both are ends; TRL takes every one the model declares. With the public code of Med-R1 a reply
    # that ended in <|endoftext|> was trained on its padding.
    ends = tokenizer.convert_tokens_to_ids(END_TOKENS)
    model.generation_config.eos_token_id = ends
    epoch = EpochCounter()
    scorer = Scorer(samples, ends, functools.partial(sample_in_epoch, config))
    functions, weights = rewards(config, scorer)
    build = (
        functools.partial(
            PortableGroupedTrainer,
            rollout=config.rollout,
            vision_cache=config.folder / "cache" / "vision",
            cuda_graphs=config.hardware.uses_cuda_graphs,
        )
        if config.rollout.name == "grouped"
        else PortableGRPOTrainer
    )
    return build(
        model=model,
        reward_funcs=list(functions),
        args=trl_arguments(
            GRPOConfig,
            config,
            folder,
            per_device_train_batch_size=config.hardware.per_device_prompts
            * config.method.num_generations,
            reward_weights=weights,
            **_reference(config),
            generation_kwargs=_limits(config, tokenizer.convert_tokens_to_ids(VISION_TOKENS), ends),
        ),
        train_dataset=dataset(config, samples, epoch),
        processing_class=processor,
        peft_config=lora_config(config, model),
        callbacks=[*callbacks, epoch],
    )


def _reference(config: Config) -> dict[str, Any]:
    """How TRL loads the reference model, from where the policy's own weights came from.

    Raises:
        ValueError: the policy is a merged adapter; its folder has the base's weights alone.
    """
    beta = config.method.trl.get("beta", 0.0)
    if config.adapter or not beta:
        return {}
    path = model_folder.resolve(config.model.path)
    if model_folder.is_adapter(path):
        raise ValueError(
            f"method.trl.beta={beta} pulls towards the start model, and of model.path={path}, an "
            "adapter, TRL would load the base alone; export it first (action=export) and start "
            "from that folder, choose an adapter, or set method.trl.beta=0"
        )
    if config.model.revision is None:
        return {}
    return {"model_init_kwargs": {"revision": config.model.revision}}


def _limits(config: Config, never: list[int], ends: list[int]) -> dict[str, Any]:
    """Tokens that are never drawn; vLLM, which asks the checkpoint, is told the ends of a reply."""
    if config.rollout.name == "vllm":
        return {"logit_bias": dict.fromkeys(never, -100.0), "stop_token_ids": ends}
    return {"suppress_tokens": never}


def dataset(config: Config, samples: Sequence[Sample], epoch: EpochCounter) -> Dataset:
    """Columns prompt, family and image; `sample` and `epoch` lead the rewards to what was asked."""

    def columns(sample: Sample) -> dict[str, Any]:
        drawn = prompt_in_epoch(config, sample_in_epoch(config, sample, epoch.number), epoch)
        prompt = conversation(drawn.text)
        return {"prompt": prompt, "family": drawn.family, "epoch": epoch.number}

    return lazy_rows(samples, columns)
