"""Rules between values of several groups, one function each; the class of a group checks the rules
within it. Each error names key, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from medreason.config import targets
from medreason.config.data import handling
from medreason.config.rules import positive

if TYPE_CHECKING:
    from medreason.config.schema import Config


def something_is_trained_on(config: Config) -> None:
    for group, selection in {"modality": config.modality, "task": config.task}.items():
        if not selection.members:
            known = ", ".join(field.name for field in fields(selection))
            raise ValueError(f"{group}: none is chosen; choose {group}=all, or some of {known}")


def data_settings_are_known(config: Config) -> None:
    targets.check("data", handling(config.data)[1])


def reward_settings_are_known(config: Config) -> None:
    for name, reward in config.reward.items():
        if reward.judge:
            config.rubric.check(reward.judge)
        else:
            targets.check(f"reward.{name}.score", reward.score, positional=2)


def judged_rewards_have_a_judge(config: Config) -> None:
    for name, reward in config.reward.items():
        if reward.judge and config.judge.kind == "none" and config.method.algorithm == "grpo":
            raise ValueError(
                f"reward.{name}.judge={reward.judge!r} needs a judge; choose judge=openai or "
                "judge=local"
            )


def format_rewards_have_a_format(config: Config) -> None:
    for name, reward in config.reward.items():
        if config.method.algorithm == "grpo" and reward.score.get("style") == "free":
            raise ValueError(
                f"reward.{name}.score.style='free': prompt={config.prompt.name} asks for no "
                f"form; drop it with ~reward.{name} or choose another prompt"
            )


def reward_gates_name_another_reward(config: Config) -> None:
    for name, reward in config.reward.items():
        others = [other for other, its in config.reward.items() if other != name and its.score]
        if reward.only_when is not None and reward.only_when not in others:
            raise ValueError(
                f"reward.{name}.only_when={reward.only_when!r}; give another reward with "
                f"a score ({', '.join(others)}), or null for no gate"
            )


def grpo_has_a_weighted_reward(config: Config) -> None:
    if config.method.algorithm == "grpo" and not any(r.weight for r in config.reward.values()):
        raise ValueError(
            f"method={config.method.name} needs a reward with a weight; reward has "
            f"{ {name: r.weight for name, r in config.reward.items()} }. "
            "Choose reward=med_r1 or set a weight"
        )


def attention_can_share_prefixes(config: Config) -> None:
    if (
        config.method.algorithm == "grpo"
        and config.hardware.attention == "flash_attention_2"
        and (config.rollout.name, config.rollout.fallback) == ("grouped", "error")
    ):
        raise ValueError(
            "hardware.attention='flash_attention_2' takes no mask under which completions share "
            "a prompt prefix; set hardware.attention=sdpa, rollout=trl or rollout.fallback=unshared"
        )


def fsdp_ranks_sample_equally_often(config: Config) -> None:
    if config.hardware.parallel == "fsdp" and config.rollout.dynamic_sampling:
        raise ValueError(
            f"rollout.dynamic_sampling={config.rollout.dynamic_sampling}: with "
            "hardware.parallel=fsdp all ranks must sample equally often, and each would sample "
            "again for questions of its own; set it to 0, or hardware.parallel=ddp"
        )


def vllm_can_sample(config: Config) -> None:
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
    quantization = config.model.quantization
    if quantization != "none" and config.method.algorithm != "none" and not config.adapter:
        raise ValueError(
            f"model.quantization={quantization!r} freezes the weights, so "
            f"method={config.method.name} needs an adapter to train; choose adapter=qlora or set "
            "model.quantization=none"
        )


def quantized_weights_are_not_sharded(config: Config) -> None:
    if config.model.quantization != "none" and config.hardware.parallel != "ddp":
        raise ValueError(
            f"model.quantization={config.model.quantization!r} does not go with "
            f"hardware.parallel={config.hardware.parallel!r}: weights in 4 bits are not sharded; "
            "set hardware.parallel=ddp"
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
            "after a resume between them, TRL would sample again for the rest; set "
            f"runs.checkpoint_steps={-(-config.runs.checkpoint_steps // updates) * updates}"
        )


ALL: tuple[Callable[[Config], None], ...] = (
    something_is_trained_on,
    data_settings_are_known,
    reward_settings_are_known,
    judged_rewards_have_a_judge,
    format_rewards_have_a_format,
    reward_gates_name_another_reward,
    grpo_has_a_weighted_reward,
    attention_can_share_prefixes,
    fsdp_ranks_sample_equally_often,
    vllm_can_sample,
    random_weights_are_for_benchmarks,
    quantized_weights_have_an_adapter,
    quantized_weights_are_not_sharded,
    hardware_can_split_a_step,
    checkpoints_fall_between_rollouts,
)
"""In this order: a user reads the first that fails."""
