"""Two keys: one for what decides the weights, one for what decides the answers.

Hardware, tracking and paths are in neither: the same key is the same work wherever it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from medreason.config import Config


def train_parts(config: Config, data_digest: str, model_fingerprint: str) -> dict[str, Any]:
    """What decides the weights. A base model is the same for every cell, so its key has no cell."""
    untrained = config.method.algorithm == "none"
    parts: dict[str, Any] = {
        "method": {"algorithm": "none"} if untrained else asdict(config.method),
        "model": {**asdict(config.model), "fingerprint": model_fingerprint},
    }
    del parts["model"]["weights"], parts["model"]["architecture"]  # of benchmarks alone
    if config.model.quantization == "none":
        del parts["model"]["quantization"]  # runs that are older than this choice keep their key
    if model_fingerprint:
        del parts["model"]["path"]  # local weights are what they are, wherever they lie
    if untrained:
        return parts
    if config.method.algorithm == "grpo" and config.rollout.name != "trl":
        parts["rollout"] = config.rollout.name  # equal in distribution, but not draw for draw
        if config.rollout.dynamic_sampling:
            parts["dynamic_sampling"] = config.rollout.dynamic_sampling
    return parts | {
        "data": data_digest,
        "modality": config.modality.members,
        "task": config.task.members,
        "prompt": {
            "style": config.prompt.style,
            "train": config.prompt.training,
            "open": config.prompt.open,
        },
        "reward": {name: asdict(reward) for name, reward in config.reward.items()}
        if config.method.algorithm == "grpo"
        else None,
        **_judge(config),
        "adapter": config.adapter,
        "seed": config.seed,
    }


def evaluation_parts(config: Config, train_key: str, data_digest: str) -> dict[str, Any]:
    """What decides the answers to the test questions."""
    settings = asdict(config.evaluation)
    del settings["name"]
    by_option_likelihood = "option_likelihood" in settings["answers"]
    if not by_option_likelihood:
        del settings["answers"]  # as it was before there was a choice
    if settings["encoder"] is None:
        del settings["encoder"]
    return {
        **({"tagged": config.prompt.style != "free"} if by_option_likelihood else {}),
        "train": train_key,
        "data": data_digest,
        "evaluation": settings,
        "prompt": [config.prompt.evaluation, config.prompt.open],
        "seed": config.seed if config.evaluation.samples_per_cell is not None else None,
    }


def _judge(config: Config) -> dict[str, Any]:
    """What the judge decides of the weights, where a reward asks it."""
    if config.method.algorithm != "grpo" or not any(r.judge for r in config.reward.values()):
        return {}
    asked = [*config.judge.identity, config.judge.temperature, config.judge.max_tokens]
    return {"judge": asked, "rubric": asdict(config.rubric)}


def digest(parts: dict[str, Any]) -> str:
    """12 hexadecimal digits; equal for equal parts, in whatever order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    """(key, value in a, value in b) of every leaf in which two parts differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield path, a, b
