"""What is known here of the fields of TRL's and PEFT's classes, beside their names and types."""

from __future__ import annotations

from collections.abc import Callable, Mapping

UPSTREAM: Mapping[str, tuple[str, ...]] = {
    "method.trl": ("SFTConfig", "GRPOConfig"),
    "hardware.trl": ("SFTConfig", "GRPOConfig"),
    "rollout.vllm": ("GRPOConfig",),
    "adapter": ("LoraConfig",),
}
"""Key -> the classes of TRL or PEFT that take what is below it."""

DERIVED = {
    "output_dir": "outputs",
    "seed": "seed",
    "data_seed": "seed",
    "use_cpu": "hardware.accelerator",
    "bf16": "hardware.precision",
    "gradient_checkpointing": "hardware.gradient_checkpointing",
    "gradient_accumulation_steps": "method.prompts_per_step",
    "per_device_train_batch_size": "hardware.per_device_prompts",
    "save_steps": "runs.checkpoint_steps",
    "ddp_timeout": "hardware.hang_timeout_minutes",
    "reward_weights": "reward.NAME.weight",
    "use_vllm": "rollout=vllm",
    **dict.fromkeys(("do_eval", "eval_on_start", "eval_strategy"), "validation=in_domain"),
    **dict.fromkeys(("eval_steps", "eval_delay"), "validation.every"),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model"), "validation.select=best"),
    "report_to": "tracking=local or tracking=server (MLflow), or tracking=none",
    **dict.fromkeys(("remove_unused_columns", "disable_tqdm", "logging_steps"), ""),
    **dict.fromkeys(("logging_nan_inf_filter", "save_strategy", "dataloader_pin_memory"), ""),
    **dict.fromkeys(("max_length", "generation_kwargs", "local_rank"), ""),
}
"""Field of TRL that medreason always sets -> the key it follows from, empty where there is none;
`training.arguments` sets more for some hardware."""

ELSEWHERE = {
    **dict.fromkeys(("kl_coef", "kl_loss_coef", "init_kl_coef"), "method.trl.beta"),
    **dict.fromkeys(
        ("rollout_n", "num_rollouts", "rollout.n", "group_size", "n_samples_per_prompt"),
        "method.trl.num_generations",
    ),
    **dict.fromkeys(("epochs", "num_epochs", "total_epochs"), "method.trl.num_train_epochs"),
    **dict.fromkeys(("clip_ratio", "clip_ratio_low"), "method.trl.epsilon"),
    **{f"rollout.{name}": f"method.trl.{name}" for name in ("temperature", "top_p", "top_k")},
    **dict.fromkeys(("report_to", "logger"), "tracking=local"),
    "clip_ratio_high": "method.trl.epsilon_high",
    "ppo_epochs": "method.trl.num_iterations",
    **dict.fromkeys(("grad_clip", "clip_grad"), "method.trl.max_grad_norm"),
    **dict.fromkeys(("rlhf_type", "adv_estimator"), "method=grpo"),
    **dict.fromkeys(
        ("rollout_batch_size", "global_batch_size", "train_batch_size", "ppo_mini_batch_size"),
        "method.prompts_per_step",
    ),
    **dict.fromkeys(
        ("ppo_micro_batch_size_per_gpu", "micro_batch_size", "micro_batch_size_per_device"),
        "hardware.per_device_prompts",
    ),
    **dict.fromkeys(("lora_rank", "lora_r"), "adapter.r"),
    **dict.fromkeys(("train_type", "tuner_type", "sft_type", "finetuning_type"), "adapter=lora_r8"),
    "lora_target_modules": "adapter.target_modules",
    **dict.fromkeys(("load_in_4bit", "quant_bits", "quant_method"), "adapter=qlora"),
    **dict.fromkeys(("reward_funcs", "reward_fn", "reward_manager"), "reward=med_r1"),
    **dict.fromkeys(("custom_reward_function", "reward_function"), "reward.NAME.score._target_"),
    **dict.fromkeys(("model_name_or_path", "model_path", "model_id_or_path"), "model.path"),
    **dict.fromkeys(("dataset", "dataset_name", "train_files"), "data=hub data.hub"),
    "split_dataset_ratio": "validation.share",
    **dict.fromkeys(("n_gpus_per_node", "nproc_per_node", "num_processes"), "hardware.devices"),
    **dict.fromkeys(("gpus", "num_gpus", "n_gpus", "ngpus"), "hardware.devices"),
    **dict.fromkeys(("evaluation.batch_size", "eval_batch_size"), "hardware.per_device_evaluation"),
    "nnodes": "hardware.nodes",
    **dict.fromkeys(("attn_implementation", "attn_impl"), "hardware.attention"),
    **dict.fromkeys(("save_freq", "checkpoint_steps"), "runs.checkpoint_steps"),
    **dict.fromkeys(("project_name", "wandb_project"), "tracking.experiment"),
    "experiment_name": "sweep",
    "gpu_memory_utilization": "rollout.vllm.vllm_gpu_memory_utilization",
    "tensor_model_parallel_size": "rollout.vllm.vllm_tensor_parallel_size",
    **dict.fromkeys(("max_new_tokens", "max_response_length"), "method.trl.max_completion_length"),
    **dict.fromkeys(("evaluation_strategy", "test_freq"), "validation.every"),
    **dict.fromkeys(("dtype", "precision", "torch_dtype"), "hardware.precision"),
}
"""What verl, EasyR1, ms-swift and other versions of TRL call a setting, by the last parts of its
key -> the key or option here."""

NOT_NEEDED = {
    "max_prompt_length": "prompts are never cut",
    "use_vllm": "rollout=vllm has vLLM draw",
    "use_peft": "adapter=lora_r8 trains an adapter",
    **dict.fromkeys(("max_seq_length", "max_model_len"), "prompts are never cut"),
}
"""Setting of other trainers or other versions of TRL -> why there is none."""


def elsewhere(key: str) -> str:
    """`; did you mean ...?` where other trainers call a setting so; else empty."""
    leaf = key.rpartition(".")[2]
    if leaf in NOT_NEEDED:
        return f"; {NOT_NEEDED[leaf]}: leave it out"
    for name, meant in ELSEWHERE.items():
        if name == leaf or f".{key}".endswith(f".{name}"):
            return f"; did you mean {meant}?"
    return ""


SAME_STEPS = {
    "dataloader_drop_last": (False,),
    "train_sampling_strategy": ("random", "sequential"),
    "accelerator_config": (None,),
    "average_tokens_across_devices": (True,),
    "auto_find_batch_size": (False,),
    "ignore_data_skip": (False,),
}
"""Field of TRL -> the values with which a step has the same rows, and each token the same weight,
however hardware splits it and wherever a run is resumed."""

TRL_CLASSES = {"sft": ("SFTConfig",), "grpo": ("GRPOConfig",), "none": ("SFTConfig", "GRPOConfig")}
"""TRL's class for each algorithm; method=base takes the keys of both, without effect."""

WORDS = {
    "SFTConfig.loss_type": ("nll", "dft"),
    "GRPOConfig.loss_type": (
        *("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    ),
    "GRPOConfig.scale_rewards": ("group", "batch", "none"),
    "GRPOConfig.importance_sampling_level": ("token", "sequence"),
    "GRPOConfig.multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
"""Field that takes any text -> the words TRL 1.16 knows; it refuses others at the first loss."""

Rule = tuple[Callable[[float], bool], str]
_NOT_NEGATIVE: Rule = (lambda value: value >= 0, "it must be 0 or more")
_POSITIVE: Rule = (lambda value: value > 0, "it must be above 0")
_SHARE: Rule = (lambda value: 0 <= value <= 1, "it must be from 0 to 1")
_BELOW_1: Rule = (lambda value: 0 <= value < 1, "it must be 0 or more, and below 1")
_COUNT: Rule = (lambda value: value >= 1, "it must be at least 1")
LIMITS: Mapping[str, Rule] = {
    "max_steps": (
        lambda value: value == -1 or value >= 1,
        "give a number of updates, or -1 for method.trl.num_train_epochs",
    ),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), _NOT_NEGATIVE
    ),
    **dict.fromkeys(("beta", "epsilon", "epsilon_high", "delta", "top_k"), _NOT_NEGATIVE),
    **dict.fromkeys(("num_train_epochs", "temperature", "repetition_penalty"), _POSITIVE),
    "top_p": (lambda value: 0 < value <= 1, "it must be above 0, and at most 1"),
    **dict.fromkeys(("min_p", "top_entropy_quantile", "label_smoothing_factor"), _SHARE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout"), _BELOW_1),
    **dict.fromkeys(("num_iterations", "steps_per_generation", "max_completion_length"), _COUNT),
    **dict.fromkeys(("r", "lora_alpha"), _COUNT),
}
"""Field -> what its value must be, where TRL and PEFT check it late or never."""
