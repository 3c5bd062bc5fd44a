"""Rules between values of several groups, one function each: what one group alone can know is
checked in its own class. Each refusal names key, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from medreason.config.data import handling
from medreason.config.rules import positive, subset
from medreason.config.targets import bind
from medreason.samples import MODALITIES, TASKS

if TYPE_CHECKING:
    from medreason.config.schema import Config


def cells_are_known(config: Config) -> None:
    subset("modality.members", config.modality.members, MODALITIES)
    subset("task.members", config.task.members, TASKS)


def data_takes_its_settings(config: Config) -> None:
    bind("data", handling(config.data)[1])


def rewards_can_be_given(config: Config) -> None:
    grpo = config.method.algorithm == "grpo"
    for name, reward in config.reward.items():
        if reward.judge:
            config.rubric.check(reward.judge)
        else:
            bind(f"reward.{name}.score", reward.score, given=2)
        if reward.judge and config.judge.kind == "none" and grpo:
            raise ValueError(
                f"reward.{name}.judge={reward.judge!r} needs a judge; choose judge=openai or "
                "judge=local"
            )
        if grpo and reward.score.get("style") == "free":
            raise ValueError(
                f"reward.{name}.score.style='free': prompt={config.prompt.name} asks for no "
                f"form; drop it with ~reward.{name} or choose another prompt"
            )
        others = [other for other, its in config.reward.items() if other != name and its.score]
        if reward.only_when is not None and reward.only_when not in others:
            raise ValueError(
                f"reward.{name}.only_when={reward.only_when!r}; give another reward with "
                f"a score ({', '.join(others)}), or null for no gate"
            )


def grpo_has_a_reward(config: Config) -> None:
    if config.method.algorithm == "grpo" and not any(r.weight for r in config.reward.values()):
        raise ValueError(
            f"method={config.method.name} needs a reward with a weight; reward has "
            f"{ {name: r.weight for name, r in config.reward.items()} }. "
            "Choose reward=med_r1 or set a weight"
        )


def attention_can_share_prompts(config: Config) -> None:
    if (
        config.method.algorithm == "grpo"
        and config.hardware.attention == "flash_attention_2"
        and (config.rollout.name, config.rollout.fallback) == ("grouped", "error")
    ):
        raise ValueError(
            "hardware.attention='flash_attention_2' takes no mask that lets completions share "
            "a prompt; set hardware.attention=sdpa, rollout=trl or rollout.fallback=unshared"
        )


def fsdp_draws_equally_often(config: Config) -> None:
    if config.hardware.parallel == "fsdp" and config.rollout.dynamic_sampling:
        raise ValueError(
            f"rollout.dynamic_sampling={config.rollout.dynamic_sampling}: with "
            "hardware.parallel=fsdp all processes draw equally often, and each has its own "
            "questions to draw again; set it to 0, or hardware.parallel=ddp"
        )


def vllm_can_draw(config: Config) -> None:
    if config.method.algorithm != "grpo" or config.rollout.name != "vllm":
        return
    if config.hardware.accelerator != "cuda":
        raise ValueError(
            f"rollout=vllm runs on CUDA alone, and hardware={config.hardware.name} is a CPU; "
            "choose rollout=grouped"
        )
    if config.model.quantization != "none":
        raise ValueError(
            f"rollout=vllm takes whole weights, and model.quantization="
            f"{config.model.quantization!r}; choose rollout=grouped or adapter=lora_all"
        )


def random_weights_are_for_benchmarks(config: Config) -> None:
    if config.model.weights == "random" and config.action.name not in ("bench", "plan"):
        raise ValueError("model.weights=random is for action=bench; nothing is learned from it")


def quantized_weights_have_an_adapter(config: Config) -> None:
    if config.model.quantization == "none":
        return
    named = f"model.quantization={config.model.quantization!r}"
    if config.method.algorithm != "none" and not config.adapter:
        raise ValueError(
            f"{named} freezes the weights, so method={config.method.name} needs an adapter to "
            "train; choose adapter=qlora or set model.quantization=none"
        )
    if config.hardware.parallel != "ddp":
        raise ValueError(
            f"{named} does not go with hardware.parallel={config.hardware.parallel!r}: weights "
            "in 4 bits are not cut over devices; set hardware.parallel=ddp"
        )


def hardware_can_split_a_step(config: Config) -> None:
    if config.method.algorithm != "none":
        _ = config.accumulation  # raises


def checkpoints_fall_between_rollouts(config: Config) -> None:
    if config.method.algorithm != "grpo":
        return
    iterations = config.method.trl.get("num_iterations", 1)
    batches = config.method.trl.get("steps_per_generation") or config.accumulation
    positive("method.trl.num_iterations", iterations)
    positive("method.trl.steps_per_generation", batches)
    updates = math.ceil(iterations * batches / config.accumulation)
    if config.runs.checkpoint_steps % updates:
        raise ValueError(
            f"runs.checkpoint_steps={config.runs.checkpoint_steps} is not a multiple of {updates}"
            f", the updates on the same completions (method.trl.num_iterations={iterations}): "
            "TRL would draw again for those behind a checkpoint in between; set "
            f"runs.checkpoint_steps={-(-config.runs.checkpoint_steps // updates) * updates}"
        )


ALL: tuple[Callable[[Config], None], ...] = (
    cells_are_known,
    data_takes_its_settings,
    rewards_can_be_given,
    grpo_has_a_reward,
    attention_can_share_prompts,
    fsdp_draws_equally_often,
    vllm_can_draw,
    random_weights_are_for_benchmarks,
    quantized_weights_have_an_adapter,
    hardware_can_split_a_step,
    checkpoints_fall_between_rollouts,
)
"""In this order; the first that fails is the one a user reads."""
