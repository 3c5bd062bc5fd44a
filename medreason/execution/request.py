"""What a configuration asks for: its keys, its run folder, and why it cannot be done."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medreason import config as configuration
from medreason import data
from medreason.config import Config
from medreason.models import adapters, model_folder
from medreason.replies import parse
from medreason.rewards import embeddings
from medreason.runs import integrity, keys
from medreason.runs.outcomes import NoDataError
from medreason.runs.run_folder import RunFolder, State, find_run_folder
from medreason.samples import Sample


@dataclass(frozen=True)
class RunRequest:
    """Which run, and which evaluation of it."""

    folder: RunFolder
    state: State
    """Of the folder, when the request was made."""
    parts: dict[str, Any]
    """What `train_key` is the digest of."""
    train_key: str
    evaluation_key: str
    trained_on: int
    """Training samples."""
    tested_on: int
    """Test samples."""

    @property
    def finished(self) -> bool:
        return self.state.trained and self.evaluation_key in self.state.evaluations


def run_request(config: Config) -> RunRequest:
    """Keys and folder of the configured work, after every check that needs no model.

    Raises:
        NoDataError: nothing to train on or to be tested on.
        ValueError: data or model cannot be used, or a finished folder says something else.
    """
    fingerprint = _fingerprint(config.model.path)
    samples = data.load(config.data, config.folder / "cache")
    trained_on, trained_digest = _trained_on(config, samples)
    tested_on, tested_digest = _tested_on(config, samples)
    _refuse_unusable(config, samples, trained_on, tested_on)
    parts = keys.train_parts(config, trained_digest, fingerprint)
    train_key = keys.digest(parts)
    evaluation_key = keys.digest(keys.evaluation_parts(config, train_key, tested_digest))
    folder = find_run_folder(config.folder / "runs", config.run_name, train_key)
    state = folder.state()
    integrity.refuse_other_state(folder, state, parts)
    return RunRequest(
        folder, state, parts, train_key, evaluation_key, len(trained_on), len(tested_on)
    )


_selections: dict[str, tuple[list[Sample], str]] = {}
"""Rows and digests by what decides them: the cells of a sweep ask for the same ones."""


def _trained_on(config: Config, samples: Sequence[Sample]) -> tuple[list[Sample], str]:
    decides = _decides("train", config, config.modality.members, config.task.members)
    if decides not in _selections:
        rows = data.trained_on(config, samples)
        _selections[decides] = rows, data.digest(rows)
    return _selections[decides]


def _tested_on(config: Config, samples: Sequence[Sample]) -> tuple[list[Sample], str]:
    """The test rows; the digest is theirs and that of the rows the options-only baseline counts."""
    evaluation = asdict(config.evaluation)
    drawn = config.seed if config.evaluation.samples_per_cell is not None else None
    decides = _decides("test", config, evaluation, drawn)
    if decides not in _selections:
        rows = data.tested_on(config, samples)
        _selections[decides] = rows, data.digest(rows)
    rows, digest = _selections[decides]
    if config.method.algorithm != "none":
        return rows, f"{digest}-{_trained_on(config, samples)[1]}"
    decides = _decides("prior", config)
    if decides not in _selections:
        counted = data.read_for_prior(config, samples)
        _selections[decides] = counted, data.digest(counted)
    return rows, f"{digest}-{_selections[decides][1]}"


def _decides(what: str, config: Config, *more: object) -> str:
    untrained = config.method.algorithm == "none"
    return json.dumps([what, config.outputs, config.data, untrained, more], sort_keys=True)


@functools.cache  # a process trains none of the models it starts from
def _fingerprint(path: str) -> str:
    model_folder.check(path)
    adapters.check(path)
    return model_folder.fingerprint(path)


def _refuse_unusable(
    config: Config,
    samples: Sequence[Sample],
    trained_on: Sequence[Sample],
    tested_on: Sequence[Sample],
) -> None:
    """What can be known to fail before a model is loaded."""
    if not tested_on:
        raise NoDataError(
            f"no test samples in evaluation.modalities={config.evaluation.modalities} and "
            f"evaluation.tasks={config.evaluation.tasks}{_hint(samples)}"
        )
    if config.evaluation.encoder:
        embeddings.check(config.evaluation.encoder)
    if config.method.algorithm == "none":
        return
    if len(trained_on) < config.method.prompts_per_step:
        raise NoDataError(
            f"modality={config.modality.name} task={config.task.name}: {len(trained_on)} training "
            f"samples, fewer than method.prompts_per_step={config.method.prompts_per_step}; "
            f"choose another cell or a smaller step{_hint(samples)}"
        )
    if model_folder.is_adapter(config.model.path):
        raise ValueError(
            f"model.path={config.model.path!r} is an adapter: training goes on from a full model; "
            "merge it with PEFT's merge_and_unload and save that"
        )
    if config.method.algorithm == "grpo":
        _try_rewards(config, trained_on)


def _hint(samples: Sequence[Sample]) -> str:
    half_known = any("unknown" in sample.cell for sample in samples)
    return "; data.labels_from finds the other half of a cell" if half_known else ""


def _try_rewards(config: Config, samples: Sequence[Sample]) -> None:
    """Score one reply, so that a reward that cannot be given fails here and not in step 1."""
    poorest = min(samples, key=lambda sample: sample.explanation is not None)
    reply = parse("<think>?</think><answer>A</answer>", poorest.options)
    if poorest.explanation is None and any(r.judge == "reasoning" for r in config.reward.values()):
        raise ValueError(
            f"sample {poorest.id} of {poorest.source} has no explanation, which a judge of its "
            "reasoning needs; use a data set with explanations, or another reward"
        )
    for reward in (reward for reward in config.reward.values() if reward.score):
        configuration.function(reward.score)(reply, poorest)
