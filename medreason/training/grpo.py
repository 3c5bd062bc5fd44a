"""GRPO on TRL's trainer: all weights, or as in RARL an adapter with its base as the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.processing_utils import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from medreason.config import Config
from medreason.generation import fused_layers
from medreason.models import model_folder
from medreason.models.load import END_TOKENS, VISION_TOKENS, without_adapter
from medreason.models.patch_embedding import multiplies_patches, multiply_patches
from medreason.prompts import conversation
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training import memory_limits
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
from medreason.training.trl_rewards import CompletionReader, rewards
from medreason.training.vllm_rollout import VllmGRPOTrainer


class PortableGRPOTrainer(PortableCheckpoints, GRPOTrainer):
    """TRL's trainer with checkpoints that any number of processes reads."""


class PortableVllmTrainer(PortableCheckpoints, VllmGRPOTrainer):
    """The trainer whose completions vLLM draws, with such checkpoints."""


class PortableGroupedTrainer(PortableCheckpoints, GroupedGRPOTrainer):
    """The grouped trainer with such checkpoints."""


class PortableGroupedVllmTrainer(PortableCheckpoints, VllmGRPOTrainer, GroupedGRPOTrainer):
    """vLLM draws the completions and the grouped trainer learns from them."""


def trainer(
    config: Config,
    samples: Sequence[Sample],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: RunFolder,
    callbacks: list[TrainerCallback],
) -> GRPOTrainer:
    tokenizer = processor.tokenizer
    # Either token ends a reply, and TRL stops at every one the model declares. With one of them,
    # as in Med-R1's public code, a reply that ended in the other was trained on its padding
    # (experiments/med_r1/README.md).
    ends = tokenizer.convert_tokens_to_ids(END_TOKENS)
    model.generation_config.eos_token_id = ends
    epoch = EpochCounter()
    reader = CompletionReader(samples, ends, functools.partial(sample_in_epoch, config))
    functions, weights = rewards(config, reader)
    trainer = _trainer_class(config, samples)(
        model=model,
        reward_funcs=list(functions),
        args=trl_arguments(
            GRPOConfig,
            config,
            folder,
            per_device_train_batch_size=config.hardware.questions_at_once
            * config.method.num_generations,
            reward_weights=weights,
            **_reference_arguments(config),
            generation_kwargs=_token_limits(
                config, tokenizer.convert_tokens_to_ids(VISION_TOKENS), ends
            ),
        ),
        train_dataset=dataset(config, samples, epoch),
        processing_class=processor,
        peft_config=lora_config(config, model),
        callbacks=[*callbacks, epoch],
    )
    if isinstance(trainer.ref_model, nn.Module) and multiplies_patches(model):
        multiply_patches(trainer.ref_model)  # TRL has loaded it
    _round_products_of_reference(config, trainer)
    if config.hardware.uses_fused_layers and config.rollout.name != "trl":
        for each in (trainer.model, trainer.ref_model):
            base = without_adapter(each) if isinstance(each, PreTrainedModel | PeftModel) else None
            if isinstance(base, PreTrainedModel):
                fused_layers.fuse(base)
    return trainer


def _round_products_of_reference(config: Config, trainer: GRPOTrainer) -> None:
    """Hold the weights of a fixed reference model's products in bfloat16: autocast rounds them to
    it in each forward, so the log-probabilities stay the same bits."""
    synced = config.method.trl.get("sync_ref_model")
    if config.hardware.precision != "bfloat16" or config.hardware.parallel != "ddp" or synced:
        return
    reference = trainer.ref_model
    # The head may share the weights of the embeddings, which autocast leaves as they are.
    for name, module in reference.named_modules() if isinstance(reference, nn.Module) else ():
        if isinstance(module, nn.Linear | nn.Conv3d) and not name.endswith("lm_head"):
            module.to(torch.bfloat16)


def _trainer_class(config: Config, samples: Sequence[Sample]) -> Callable[..., GRPOTrainer]:
    """The trainer of `rollout`, with the arguments that TRL's has not."""
    precision = config.hardware.precision
    match (config.rollout.name, config.rollout.shares_prompts):
        case ("vllm", False):
            return functools.partial(PortableVllmTrainer, precision=precision)
        case (_, False):
            return PortableGRPOTrainer
        case ("vllm", True):
            shared = PortableGroupedVllmTrainer
        case _:
            shared = functools.partial(PortableGroupedTrainer, **_graph_settings(config, samples))
    cache = config.folder / "cache" / "vision"
    return functools.partial(
        shared, precision=precision, rollout=config.rollout, vision_cache=cache
    )


def _graph_settings(config: Config, samples: Sequence[Sample]) -> dict[str, bool]:
    if not config.hardware.uses_cuda_graphs:
        return {}
    return {"cuda_graphs": True, "keep_graphs": memory_limits.keeps_graphs(config, samples)}


def _reference_arguments(config: Config) -> dict[str, Any]:
    """Arguments with which TRL loads the reference model from the policy's own folder.

    Raises:
        ValueError: that folder is an adapter's, and TRL would load its base without it.
    """
    beta = config.method.trl.get("beta", 0.0)
    if config.adapter or not beta:
        return {}
    path = model_folder.resolve(config.model.path)
    if model_folder.is_adapter(path):
        raise ValueError(
            f"method.trl.beta={beta} pulls towards a reference model, and of model.path={path}, "
            "an adapter, TRL would load the base alone; export it first (action=export) and start "
            "from that folder, choose an adapter, or set method.trl.beta=0"
        )
    # Without a map TRL leaves what does not fit on the GPU on the CPU, and says nothing.
    arguments: dict[str, Any] = {"device_map": None}
    if config.model.revision is not None:
        arguments["revision"] = config.model.revision
    return {"model_init_kwargs": arguments}


def _token_limits(config: Config, banned: list[int], ends: list[int]) -> dict[str, Any]:
    """Settings of sampling by which `banned` tokens never occur and `ends` end a completion."""
    if config.rollout.name == "vllm":  # it reads the checkpoint's ends, not our model's
        return {"logit_bias": dict.fromkeys(banned, -100.0), "stop_token_ids": ends}
    return {"suppress_tokens": banned}


def dataset(config: Config, samples: Sequence[Sample], epoch: EpochCounter) -> Dataset:
    """Columns prompt, family and image; by `sample` and `epoch` rewards know what was shown."""

    def columns(sample: Sample) -> dict[str, Any]:
        prompt = prompt_in_epoch(config, sample_in_epoch(config, sample, epoch.number), epoch)
        turns = conversation(prompt.text)
        return {"prompt": turns, "family": prompt.family, "epoch": epoch.number}

    return lazy_rows(samples, columns)
