"""A configuration as a request: its keys, its run folder, or why it cannot be run."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from medreason import data
from medreason.config import Config
from medreason.console import counted
from medreason.data import validation
from medreason.data.splits import DIVIDES_ANEW
from medreason.models import adapters, model_folder
from medreason.replies import parse
from medreason.rewards import embeddings
from medreason.rewards.named_score import NamedScore
from medreason.runs import integrity, keys
from medreason.runs.outcomes import NoDataError
from medreason.runs.run_folder import EvaluationFolder, RunFolder, State, find_run_folder
from medreason.samples import UNKNOWN, Sample


@dataclass(frozen=True)
class RunRequest:
    """A run, and an evaluation of it."""

    folder: RunFolder
    state: State
    """Of the folder, when the request was made."""
    parts: dict[str, Any]
    """What `train_key` is the digest of."""
    train_key: str
    evaluation_key: str
    training_samples: int
    test_samples: Sequence[Sample] = field(repr=False)
    """The same object for the same selection."""
    test_digest: str = ""
    """Of the test questions alone."""
    validation_samples: Sequence[Sample] = field(repr=False, default=())
    """Asked at each validation while it trains."""

    @property
    def evaluation(self) -> EvaluationFolder:
        return EvaluationFolder(self.folder, self.evaluation_key)


def run_request(config: Config) -> RunRequest:
    """Keys and run folder of a configuration, after every check that needs no model. A run folder
    at `model.path` stands for the model in it.

    Raises:
        NoDataError: no training or test samples.
        ValueError: data or model cannot be used, or the folder records another run.
    """
    config = model_folder.with_model_of_run(config)
    fingerprint = "" if config.model.is_served else _fingerprint(config.model.path)
    model_folder.refuse_other_option(config.model.path, config.choices.get("model", ""))
    samples = data.samples_of(config)
    training_samples, training_digest = _training_samples(config, samples)
    test_samples, test_digest = _test_samples(config, samples)
    _refuse_unusable(config, samples, training_samples, test_samples)
    questions = validation.questions(config, samples)
    asked = validation.digest(config, questions)
    parts = keys.train_parts(config, training_digest, fingerprint, asked)
    train_key = keys.digest(parts)
    evaluation_key = keys.digest(keys.evaluation_parts(config, train_key, test_digest))
    folder = find_run_folder(config.folder / "runs", config.run_name, train_key)
    state = folder.state()
    integrity.refuse_other_state(folder, state, parts)
    validated = [sample for side in questions.values() for sample in side]
    selected = len(training_samples), test_samples, test_digest.partition("-")[0], validated
    return RunRequest(folder, state, parts, train_key, evaluation_key, *selected)


Selection = tuple[list[Sample], str]
"""Samples and their digest."""
_selections: dict[str, Selection] = {}
"""By what decides them: the cells of a sweep select the same ones."""


def _training_samples(config: Config, samples: Sequence[Sample]) -> Selection:
    selected_by = _selection_key("train", config, config.modality.members, config.task.members)
    return _select(config, selected_by, lambda: data.trained_on(config, samples))


def _test_samples(config: Config, samples: Sequence[Sample]) -> Selection:
    """The test samples; their digest covers the samples the options-only baseline counts, too."""
    evaluation = asdict(config.evaluation)
    seed = config.seed if config.evaluation.samples_per_cell is not None else None
    selected_by = _selection_key("test", config, evaluation, seed)
    test_samples, digest = _select(config, selected_by, lambda: data.tested_on(config, samples))
    if config.method.algorithm != "none":
        return test_samples, f"{digest}-{_training_samples(config, samples)[1]}"
    selected_by = _selection_key("baseline", config)
    counted = _select(config, selected_by, lambda: data.read_for_prior(config, samples))
    return test_samples, f"{digest}-{counted[1]}"


def _select(config: Config, key: str, select: Callable[[], list[Sample]]) -> Selection:
    if key not in _selections:
        selected = select()
        images = data.image_digests(config.data, config.folder / "cache", selected)
        _selections[key] = selected, data.digest(selected, images)
    return _selections[key]


def _selection_key(purpose: str, config: Config, *more: object) -> str:
    untrained = config.method.algorithm == "none"
    rows = config.data, asdict(config.validation)
    return json.dumps([purpose, config.outputs, *rows, untrained, more], sort_keys=True)


@functools.cache  # start models do not change while a process runs
def _fingerprint(path: str) -> str:
    model_folder.check(path)
    adapters.check(path)
    return model_folder.fingerprint(path)


def _refuse_unusable(
    config: Config,
    samples: Sequence[Sample],
    training_samples: Sequence[Sample],
    test_samples: Sequence[Sample],
) -> None:
    """Refuse what is known to fail before a model is loaded."""
    if not test_samples:
        raise NoDataError(
            _without_side("test", config, samples)
            or f"no test samples in evaluation.modalities={config.evaluation.modalities} and "
            f"evaluation.tasks={config.evaluation.tasks}; {_test_cells(samples)}"
            f"{_hint(config, samples)}"
        )
    if config.evaluation.encoder:
        embeddings.check(config.evaluation.encoder)
    if config.method.algorithm == "none":
        return
    validation.refuse_unusable(config, samples)
    if len(training_samples) < config.method.prompts_per_step:
        raise NoDataError(
            _without_side("train", config, samples)
            or f"{_too_few(config, samples, len(training_samples))}{_hint(config, samples)}"
        )
    model_folder.refuse_quantized(config.model.path)
    if model_folder.is_adapter(config.model.path):
        raise ValueError(
            f"model.path={config.model.path!r} is an adapter: training starts from a full model; "
            "merge it without rounding (action=export export.precision=float32 export.to=...) and "
            "start from that folder"
        )
    if config.method.algorithm == "grpo":
        _try_rewards(config, training_samples)


def _without_side(side: str, config: Config, samples: Sequence[Sample]) -> str:
    """Why there is nothing to train or test on, whatever the cells; empty where there is."""
    if not samples or any(sample.split == side for sample in samples):
        return ""
    drawn = f"{side}_images"  # phantoms are drawn, not split
    how = "by_patient" if any(sample.patient for sample in samples) else "by_image"
    set_already = config.data.get("split")
    if drawn in config.data:
        remedy = f"set data.{drawn} to 1 or more"
    elif set_already in DIVIDES_ANEW:
        share = config.data.get("test_share")
        remedy = f"data.split={set_already} divides them by data.test_share={share}; set another"
    else:
        remedy = f"bring its {side} files, or set data.split={how} to split those there are"
    return f"the data set has {counted(len(samples), 'row')} and none in {side}; {remedy}"


def _too_few(config: Config, samples: Sequence[Sample], count: int) -> str:
    """What there is to train on in place of a cell that does not fill a step."""
    cells = Counter("/".join(s.cell) for s in samples if s.split == "train")
    shown = [f"{cell} ({n:,})" for cell, n in cells.most_common(_MOST_CELLS)]
    more = f" and {len(cells) - _MOST_CELLS} more" if len(cells) > _MOST_CELLS else ""
    at_once = config.hardware.processes * config.hardware.questions_at_once
    step = count // at_once * at_once
    smaller = f", or method.prompts_per_step={step}" if step else ""
    modality, task = cells.most_common(1)[0][0].split("/")
    return (
        f"modality={config.modality.name} task={config.task.name}: "
        f"{counted(count, 'training sample')}, fewer than "
        f"method.prompts_per_step={config.method.prompts_per_step}; choose other cells, such "
        f"as modality={modality} task={task}{smaller}: the data set has training samples of "
        f"{', '.join(shown)}{more}"
    )


_MOST_CELLS = 12


def _test_cells(samples: Sequence[Sample]) -> str:
    """The modalities and tasks that the test rows have."""
    cells = [sample.cell for sample in samples if sample.split == "test"]
    modalities = ", ".join(sorted({modality for modality, _ in cells}))
    tasks = ", ".join(sorted({task for _, task in cells}))
    return f"its test rows have the modalities {modalities} and the tasks {tasks}"


def _hint(config: Config, samples: Sequence[Sample]) -> str:
    """`data.labels_from` where the data set has that key and needs it."""
    half_known = "labels_from" in config.data and any(UNKNOWN in s.cell for s in samples)
    return "; data.labels_from finds the other half of a cell" if half_known else ""


def _try_rewards(config: Config, samples: Sequence[Sample]) -> None:
    """Score replies that are right, wrong and unreadable, so that a reward that cannot be computed
    fails here and not in step 1."""
    poorest = min(samples, key=lambda sample: sample.explanation is not None)
    wrong = next((letter for letter in poorest.letters if letter != poorest.answer), "?")
    answers = [f"<answer>{answer}</answer>" for answer in (poorest.answer, wrong)]
    texts = [*(f"<think>?</think>{answer}" for answer in answers), ""]
    replies = [parse(text, poorest.options) for text in texts]
    if poorest.explanation is None and any(r.judge == "reasoning" for r in config.reward.values()):
        raise ValueError(
            f"sample {poorest.id} has no explanation, which a judge of its reasoning needs; "
            "use a data set with explanations, or another reward"
        )
    for name, reward in config.reward.items():
        for reply in replies if reward.score else ():
            NamedScore(name, reward.score)(reply, poorest)
