"""Names of earlier versions and what each is called now: config keys, values, modules, functions.

Nothing here makes an old name work; where one is met, the error says the new one. Only the standard
library, since `medreason/__init__.py` imports this.
"""

from __future__ import annotations

KEYS = {
    "judge.same_as_reward": "judge.allow_reward_judge",
    "second_judge.same_as_reward": "second_judge.allow_reward_judge",
    "rollout.features_gb": "rollout.vision_cache_gb",
    "hardware.hang_minutes": "hardware.hang_timeout_minutes",
    "hardware.probe": "hardware.memory_check",
    "prepare.fit": "prepare.resize",
    "runs.sync": "tracking.resync",
    "tuned": "model/steps@_global_",
}
"""Config key or group -> its new name."""

REMOVED_KEYS = {
    "modality.members": "choose with modality=[ct,mri] or modality.ct=false",
    "modality.name": "it follows from the modalities that are chosen",
    "task.members": "choose with task=[disease,grading] or task.disease=false",
    "task.name": "it follows from the tasks that are chosen",
    "rollout.flex_attention": "attention over packed completions is always sdpa",
    "judge.backoff_s": "the client of the endpoint chooses the time between attempts",
    "second_judge.backoff_s": "the client of the endpoint chooses the time between attempts",
}
"""Config key -> why it is not needed any more."""

VALUES = {
    "rollout": {"hf": "trl"},
    "rollout.name": {"hf": "trl"},
    "rollout.fallback": {"plain": "unshared"},
    "evaluation": {"likelihood": "option_likelihood"},
    "evaluation.answers": {"likelihood": "option_likelihood"},
    "evaluation.controls": {"none": "original, which is always evaluated: leave it out"},
}
"""Config key, or group on the command line -> old value -> what to give in its place."""

ADDED = (
    *("validation", "runs.test", "evaluation.engine", "model.endpoint", "training_set", "report"),
    *("typed", "weights_of"),
)
"""Config keys and groups that run folders of earlier commits lack: their defaults are what those
commits did."""

MODULES = {
    "config_actions": "config.judge",
    "config_hardware": "config.hardware",
    "config_rules": "config.rules",
    "data.phantom": "phantom",
    "embeddings": "rewards.embeddings",
    "evaluation.confidence": "evaluation.option_likelihood",
    "evaluation.figures": "evaluation.metrics",
    "evaluation.generate": "generation.generate",
    "evaluation.letters": "evaluation.option_likelihood",
    "evaluation.shared": "generation.prefix_sharing",
    "hardware": "config.machine",
    "measuring": "benchmark.roofline",
    "models.card": "report.model_card",
    "models.checkpoint": "models.model_folder",
    "models.decoding": "generation.decoding",
    "models.features": "generation.vision_cache",
    "models.lessons": "models.tiny.lessons",
    "models.memory": "training.memory_estimate",
    "models.replay": "generation.cuda_graph",
    "penalties": "rewards.format",
    "reasoning": "rewards.reasoning",
    "runs.cluster": "execution.slurm",
    "runs.fit": "training.memory_limits",
    "runs.grid": "sweeps.jobs",
    "runs.key": "runs.keys",
    "runs.launch": "execution.launch",
    "runs.ledger": "runs.run_folder",
    "runs.rates": "execution.throughput",
    "runs.slots": "execution.gpu_slots",
    "runs.supervise": "execution.supervision",
    "runs.sweep": "sweeps.callback",
    "runs.watch": "runs.parent_watch",
    "runs.whole": "runs.integrity",
    "runs.work": "execution.request",
    "runs.worker": "execution.worker",
    "scores": "rewards.answer",
    "statistics": "stats",
    "training.attention": "generation.packed_attention",
    "training.collapse": "rewards.variance",
    "training.footprint": "benchmark.memory",
    "training.grouped": "training.grouped_trainer",
    "training.groups": "generation.packing",
    "training.probe": "training.memory_check",
    "training.questions": "training.group_batches",
    "training.rewards": "training.trl_rewards",
    "training.rollout": "generation.sampling",
    "training.sharing": "training.sharing_check",
}
"""Module below `medreason` -> where all of it is that FUNCTIONS does not name."""

FUNCTIONS = {
    "config_actions.Export": "config.schema.Export",
    "config_actions.Predict": "config.schema.Predict",
    "penalties.repetition": "rewards.length.repetition",
    "reasoning.consistent": "rewards.reasoning.consistency",
    "runs.ledger.Folder": "runs.run_folder.RunFolder",
    "runs.ledger.find": "runs.run_folder.find_run_folder",
    "runs.ledger.folders": "runs.run_folder.run_folders",
    "runs.ledger.read_json": "runs.files.read_json",
    "runs.ledger.write_json": "runs.files.write_json",
    "scores.explanation_of": "rewards.reasoning.explanation_of",
    "scores.follows_format": "rewards.format.follows_format",
    "scores.hollow_reasoning": "rewards.reasoning.hollow_reasoning",
    "scores.med_r1_format": "rewards.format.med_r1_format",
    "scores.overlong": "rewards.length.overlong",
    "scores.reasoning_similarity": "rewards.reasoning.reasoning_similarity",
    "scores.words": "rewards.words.words",
    "statistics.Prior": "option_prior.OptionPrior",
    "statistics.fit_prior": "option_prior.fit_option_prior",
    "statistics.question_only_prior": "option_prior.fit_option_prior",
}
"""Function or class of a module that moved, where its name or its module is another one."""


def refuse_old_key(key: str) -> None:
    """Raise a ValueError for a config key, or a group, of an earlier version."""
    if key in KEYS:
        raise ValueError(f"{key} is now {KEYS[key]}")
    if key in REMOVED_KEYS:
        raise ValueError(f"{key} is gone, leave it out: {REMOVED_KEYS[key]}")


def new_path(path: str) -> str | None:
    """The dotted path of the function that was at `path` once; None where nothing moved."""
    package, _, name = path.partition(".")
    if package != "medreason":
        return None
    if name in FUNCTIONS:
        return f"medreason.{FUNCTIONS[name]}"
    module, _, function = name.rpartition(".")
    return f"medreason.{MODULES[module]}.{function}" if module in MODULES else None


class OldImports:
    """The last finder of `sys.meta_path`: an import of a moved module says where it is now."""

    @staticmethod
    def find_spec(module: str, path: object = None, target: object = None) -> None:
        """Find nothing.

        Raises:
            ModuleNotFoundError: the module has moved.
        """
        package, _, name = module.partition(".")
        if package == "medreason" and name in MODULES:
            elsewhere = [
                f"{function.removeprefix(f'{name}.')} is medreason.{new}"
                for function, new in FUNCTIONS.items()
                if function.rpartition(".")[0] == name
            ]
            # Without `name=`: `from medreason import scores` would swallow it and say less.
            raise ModuleNotFoundError(
                "; ".join([f"{module} is now medreason.{MODULES[name]}", *elsewhere])
            )
