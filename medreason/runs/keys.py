"""Two keys: one for what decides the weights, one for what decides the answers.

Hardware, tracking and paths are in neither: the same key is the same work wherever it runs. This is
the only list of what decides either; `integrity` compares a folder's files with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from medreason.config import Config, Reward, sources


def train_parts(
    config: Config, data_digest: str, model_fingerprint: str, validation_digest: str = ""
) -> dict[str, Any]:
    """What decides the weights, and the curves of a training that asks validation questions.

    A base model is the same for every cell, so its key has no cell.
    """
    model = {
        "name": config.model.name,
        # Local weights are what they are, wherever they lie; of a served model the path is a hint.
        "path": None if model_fingerprint or config.model.is_served else config.model.path,
        "revision": config.model.revision,
        "max_pixels": config.model.max_pixels,
        "weights": config.model.weights,
        "architecture": config.model.architecture,
        "quantization": config.model.quantization,
        "fingerprint": model_fingerprint,
    }
    if config.model.is_served:  # else as the keys of commits without endpoints have it
        model["endpoint"] = config.model.endpoint.identity
    if config.method.algorithm == "none":
        return start_run_parts(model)
    grpo = config.method.algorithm == "grpo"
    judged = grpo and any(reward.judge for reward in config.reward.values())
    validated = {"validation": _validation(config, validation_digest)}
    return (validated if config.validation.every else {}) | {
        "method": asdict(config.method),
        "model": model,
        "adapter": config.adapter,
        "data": data_digest,
        "data.source": _data_source(config),
        "modality": config.modality.members,
        "task": config.task.members,
        "prompt": {
            "style": config.prompt.style,
            "train": config.prompt.training,
            "open": config.prompt.open,
        },
        # Equal in distribution whichever draws, but not completion for completion.
        "rollout": _pick(config.rollout, "name", "dynamic_sampling") if grpo else None,
        "reward": {name: _reward(reward) for name, reward in config.reward.items()}
        if grpo
        else None,
        "judge": _pick(config.judge, "kind", "base_url", "model", "temperature", "max_tokens")
        if judged
        else None,
        "rubric": asdict(config.rubric) if judged else None,
        "seed": config.seed,
    }


def evaluation_parts(config: Config, train_key: str, data_digest: str) -> dict[str, Any]:
    """What decides the answers to the test questions."""
    evaluation = asdict(config.evaluation)
    del evaluation["name"], evaluation["draft_tokens"]
    if config.evaluation.engine == "generate":  # as the keys of commits without engines have it
        del evaluation["engine"]
    return {
        "train": train_key,
        "data": data_digest,
        "data.source": _data_source(config),
        "evaluation": evaluation,
        "prompt": _evaluation_prompt(config),
        "seed": config.seed if config.evaluation.samples_per_cell is not None else None,
    }


def evaluation_ground(config: Config) -> dict[str, Any]:
    """What two evaluations have to share for a difference between them to be one of the weights:
    how a question is asked and answered. Which questions are shared is for their digests to say."""
    return {
        "prompt": _evaluation_prompt(config),
        "evaluation": {
            "max_new_tokens": config.evaluation.max_new_tokens,
            "answers": sorted(config.evaluation.answers),
            "engine": config.evaluation.engine,
        },
    }


def start_parts(config: Config) -> dict[str, Any]:
    """What a training starts from: the same for it and for the run of its start model."""
    return train_parts(config, "", "")["model"]


def start_run_parts(model: dict[str, Any]) -> dict[str, Any]:
    """The train parts of the run that evaluates the model of `start_parts` as it is."""
    return {"method": {"algorithm": "none"}, "model": model}


def training_parts(config: Config) -> dict[str, Any]:
    """What trainings share that differ in cell and seed alone."""
    held_back = config.validation.identity if config.validation.is_on else None
    parts = train_parts(config, "", "") | {"rows": config.data, "held_back": held_back}
    return {name: part for name, part in parts.items() if name not in ("modality", "task", "seed")}


def digest(parts: dict[str, Any]) -> str:
    """12 hexadecimal digits; equal for equal parts, in whatever order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def differences(a: object, b: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """(key, value in a, value in b) of every leaf in which two parts differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield path, a, b


def _reward(reward: Reward) -> dict[str, Any]:
    """Its settings; `score.source`, beside settings of any name, is what its function is."""
    source = sources.identity(reward.score["_target_"]) if reward.score else None
    return {**asdict(reward), "score.source": source}


def _evaluation_prompt(config: Config) -> dict[str, Any]:
    return {
        "tagged": config.prompt.style != "free",
        "evaluate": config.prompt.evaluation,
        "open": config.prompt.open,
    }


def _validation(config: Config, digest: str) -> dict[str, Any]:
    """All of the group, since a run folder holds one curve; and how its questions are asked."""
    return {
        **config.validation.identity,
        "questions_digest": digest,
        "prompt": _evaluation_prompt(config),
    }


def _data_source(config: Config) -> str:
    return sources.identity(config.data["_target_"])


def _pick(group: object, *names: str) -> dict[str, Any]:
    return {name: getattr(group, name) for name in names}
