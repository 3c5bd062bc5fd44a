"""Rules between values of several groups, one function each; the class of a group checks the rules
within it. Each error names key, value and remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from medreason.config import targets
from medreason.config.data import handling
from medreason.config.rules import one_of, positive

if TYPE_CHECKING:
    from medreason.config.schema import Config


def something_is_trained_on(config: Config) -> None:
    for group, selection in {"modality": config.modality, "task": config.task}.items():
        if not selection.members:
            known = ", ".join(field.name for field in fields(selection))
            raise ValueError(f"{group}: none is chosen; choose {group}=all, or some of {known}")


def validation_rows_have_a_side(config: Config) -> None:
    side = config.data.get("validation")
    if side is None or not str(config.data["_target_"]).startswith("medreason.data."):
        return  # none, or a setting of the user's own function
    if side == "validation":
        raise ValueError(
            "data.validation='validation' leaves those rows to nobody; set data.validation=null, "
            "and validation=in_domain validation.source=published to ask them"
        )
    if side == "published":
        raise ValueError(
            "data.validation='published' is no side; set validation=in_domain "
            "validation.source=published to ask the published validation rows"
        )
    one_of("data.validation", side, ("train", "test"))


def published_validation_is_kept(config: Config) -> None:
    if not config.validation.is_on or config.validation.source != "published":
        return
    how = handling(config.data)[0].split
    if how in ("by_image", "by_patient"):
        raise ValueError(
            f"validation.source='published' keeps the published validation rows, and data.split="
            f"{how!r} splits all rows anew; set data.split=published, or validation.source=train"
        )
    if side := config.data.get("validation"):
        raise ValueError(
            f"data.validation={side!r} puts the published validation rows there, and "
            "validation.source='published' asks them; set data.validation=null, or "
            "validation.source=train"
        )


def validation_can_be_asked(config: Config) -> None:
    every = config.validation.given_every
    if every is None or config.method.algorithm == "none":
        return
    steps = config.method.trl.get("max_steps") or 0
    if 0 < steps < every:
        raise ValueError(
            f"validation.every={every} is beyond method.trl.max_steps={steps}: nothing would be "
            "validated; set validation.every=auto, or validation=none"
        )


def something_is_left_to_do(config: Config) -> None:
    if config.runs.test or config.action.name not in ("train", "evaluate"):
        return
    if config.method.algorithm == "none":
        raise ValueError(
            f"runs.test=false leaves nothing to do for method={config.method.name}, which is only "
            "tested; set runs.test=true, or choose a method that trains"
        )


def functions_are_known(config: Config) -> None:
    _check_functions(config, of_user=False)
    for reward in config.reward.values():
        if reward.judge:
            config.rubric.check(reward.judge)


def users_functions_are_known(config: Config) -> None:
    """Import a user's own reader and rewards and check their settings. Not for a configuration of a
    run folder: its results can be read where the module of their reward cannot be imported.

    Raises:
        ValueError: as `targets.check`.
    """
    _check_functions(config, of_user=True)


def _check_functions(config: Config, *, of_user: bool) -> None:
    """Import reader and rewards, those of a user or ours, and check their settings."""
    reader = handling(config.data)[1]
    if _is_users(reader) == of_user:
        targets.check("data", reader)
    for name, reward in config.reward.items():
        if not reward.judge and _is_users(reward.score) == of_user:
            targets.check(f"reward.{name}.score", reward.score, positional=2)


def _is_users(function: Mapping[str, Any]) -> bool:
    path = function.get("_target_")
    return isinstance(path, str) and path.partition(".")[0] != "medreason"


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
        and config.rollout.shares_prompts
        and config.rollout.fallback == "error"
    ):
        other = "rollout.update=trl" if config.rollout.name == "vllm" else "rollout=trl"
        raise ValueError(
            "hardware.attention='flash_attention_2' takes no mask under which completions share "
            f"a prompt prefix; set hardware.attention=sdpa, {other} or rollout.fallback=unshared"
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
    if config.hardware.accelerator == "cpu" and config.rollout.vllm.get("vllm_mode") == "server":
        raise ValueError(
            f"rollout.vllm.vllm_mode=server with hardware={config.hardware.name}: weights reach a "
            "server over CUDA alone; choose colocate"
        )
    if config.adapter and config.hardware.parallel != "ddp":
        raise ValueError(
            f"rollout=vllm with an adapter and hardware.parallel={config.hardware.parallel!r}: "
            "TRL would merge it into the sharded base and take it out again at each update, which "
            "rounds the base; set hardware.parallel=ddp or choose rollout=grouped"
        )
    if config.adapter.get("use_dora"):
        raise ValueError(
            "rollout=vllm with adapter.use_dora=true: vLLM gets merged weights, which are built of "
            "plain LoRA alone; choose rollout=grouped or set adapter.use_dora=false"
        )
    if config.model.quantization != "none":
        raise ValueError(
            f"rollout=vllm takes whole weights, and model.quantization="
            f"{config.model.quantization!r}; choose rollout=grouped"
        )


def vllm_can_answer(config: Config) -> None:
    if config.evaluation.engine != "vllm":
        return
    if config.hardware.processes > 1:
        raise ValueError(
            f"evaluation.engine=vllm runs on one device, and hardware={config.hardware.name} has "
            f"{config.hardware.processes} processes; set evaluation.engine=generate, or evaluate "
            "with hardware=gpu (action=evaluate)"
        )
    if config.model.quantization != "none" or config.adapter.get("use_dora"):
        raise ValueError(
            "evaluation.engine=vllm takes whole weights and plain LoRA, and model.quantization="
            f"{config.model.quantization!r}, adapter.use_dora="
            f"{config.adapter.get('use_dora', False)}; set evaluation.engine=generate"
        )


_SERVED_ACTIONS = ("train", "evaluate", "plan", "audit", "prepare", "report", "judge")
"""Those that ask a served model questions, or no model at all."""


def engine_is_that_of_the_model(config: Config) -> None:
    served, engine = config.model.is_served, config.evaluation.engine
    if served and engine != "endpoint":
        raise ValueError(
            f"evaluation.engine={engine!r} decodes here, and model.endpoint.base_url="
            f"{config.model.endpoint.base_url} names a server; set evaluation.engine=endpoint, or "
            "leave model.endpoint out"
        )
    if engine == "endpoint" and not served:
        raise ValueError(
            "evaluation.engine='endpoint' asks a server, and model.endpoint.base_url has no value; "
            "choose model=endpoint model.endpoint.base_url=http://127.0.0.1:8000/v1 "
            "model.endpoint.model=NAME"
        )


def served_model_is_only_asked(config: Config) -> None:
    if not config.model.is_served:
        return
    action, method = config.action.name, config.method
    if action not in _SERVED_ACTIONS:
        raise ValueError(
            f"action={action} needs weights, and model={config.model.name} is served by "
            f"{config.model.endpoint.base_url}; choose a model with weights, such as "
            "model=qwen2_vl_2b"
        )
    if method.algorithm != "none" and action in ("train", "plan"):
        raise ValueError(
            f"method={method.name} trains, and model={config.model.name} is served by "
            f"{config.model.endpoint.base_url}; choose method=base, which only asks it"
        )
    if config.model.max_pixels and not config.model.path:
        raise ValueError(
            f"model.max_pixels={config.model.max_pixels}: the server scales images, and the limit "
            "can be compared with its own where model.path=... names the model that is served (a "
            "folder or a hub id, of which the processor is loaded); set that, or "
            "model.max_pixels=null"
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
    given = config.method.trl.get("steps_per_generation")
    if given and config.hardware.per_device_prompts == "auto":
        raise ValueError(
            f"method.trl.steps_per_generation={given} counts micro-batches, which "
            "hardware.per_device_prompts=auto leaves open; give a number of questions"
        )
    iterations = config.method.trl.get("num_iterations", 1)
    positive("method.trl.num_iterations", iterations)
    positive("method.trl.steps_per_generation", given or config.accumulation)
    updates = config.updates_per_rollout
    steps = {"runs.checkpoint_steps": config.runs.checkpoint_steps}
    if config.validation.makes_checkpoints and (every := config.validation.given_every):
        steps["validation.every"] = every
    for key, value in steps.items():
        if value % updates:
            raise ValueError(
                f"{key}={value} is not a multiple of {updates}, the updates on the same "
                f"completions (method.trl.num_iterations={iterations}): after a resume between "
                "them, TRL would sample again for the rest; set "
                f"{key}={-(-value // updates) * updates}"
            )


ALL: tuple[Callable[[Config], None], ...] = (
    something_is_trained_on,
    validation_rows_have_a_side,
    published_validation_is_kept,
    validation_can_be_asked,
    something_is_left_to_do,
    functions_are_known,
    judged_rewards_have_a_judge,
    format_rewards_have_a_format,
    reward_gates_name_another_reward,
    grpo_has_a_weighted_reward,
    attention_can_share_prefixes,
    fsdp_ranks_sample_equally_often,
    vllm_can_sample,
    vllm_can_answer,
    engine_is_that_of_the_model,
    served_model_is_only_asked,
    random_weights_are_for_benchmarks,
    quantized_weights_have_an_adapter,
    quantized_weights_are_not_sharded,
    hardware_can_split_a_step,
    checkpoints_fall_between_rollouts,
)
"""In this order: a user reads the first that fails."""
