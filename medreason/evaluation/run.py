"""One evaluation: the answers of a run's model to the test questions of the cells asked for."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

from accelerate import PartialState
from accelerate.utils import gather_object

from medreason import data
from medreason.config import Config
from medreason.evaluation import controls, predictions
from medreason.evaluation.generate import generate, real_image
from medreason.evaluation.predictions import Prediction, predict
from medreason.models.load import load_model, load_processor
from medreason.prompts import evaluation_prompt
from medreason.runs import whole
from medreason.runs.ledger import Folder
from medreason.samples import Sample
from medreason.statistics import fit_prior


def evaluate(
    config: Config,
    samples: Sequence[Sample],
    folder: Folder,
    key: str,
    progress: Callable[..., None],
) -> None:
    """Answer, score and save under `key`; every process answers its share of the samples."""
    began = time.monotonic()
    rows = _answers(config, data.tested_on(config, samples), progress)
    if not PartialState().is_main_process:
        return
    figures = predictions.metrics(
        rows, question_only_priors(config, samples), config.evaluation.controls
    )
    predictions.save(folder.evaluation(key), rows, figures)
    whole.seal(folder, key)
    state = folder.state()
    folder.update(
        evaluations=[*(k for k in state.evaluations if k != key), key],
        evaluate_seconds=state.evaluate_seconds + time.monotonic() - began,
    )


def _answers(
    config: Config, test: Sequence[Sample], progress: Callable[..., None]
) -> list[Prediction]:
    state = PartialState()
    model = load_model(config.model, config.hardware).to(state.device)  # pyright: ignore[reportArgumentType]
    processor = load_processor(config.model)
    ask = functools.partial(
        evaluation_prompt, template=config.prompt.evaluation, open_template=config.prompt.open
    )
    rows = []
    for control in ("none", *config.evaluation.controls):
        phase = "evaluating" if control == "none" else f"evaluating {control}"
        share = controls.asked(control, test)[state.process_index :: state.num_processes]
        completions = generate(
            model,
            processor,
            share,
            [ask(sample) for sample in share],
            image_of=controls.SHOWN.get(control, real_image),
            batch_size=config.hardware.per_device_evaluation,
            max_new_tokens=config.evaluation.max_new_tokens,
            on_batch=lambda done, phase=phase, share=share: progress(phase, done, len(share)),
        )
        rows += [
            predict(sample, control, completion)
            for sample, completion in zip(share, completions, strict=True)
        ]
    return sorted(
        gather_object(rows),
        key=lambda row: (row.control != "none", row.control, row.sample, row.options),
    )


def question_only_priors(
    config: Config, samples: Sequence[Sample]
) -> dict[tuple[str, str], float | None]:
    """Question-only accuracy of each test cell; see `data.read_for_prior`."""
    prior = fit_prior(data.read_for_prior(config, samples))
    cells: dict[tuple[str, str], list[Sample]] = {}
    for sample in data.tested_on(config, samples):
        cells.setdefault(sample.cell, []).append(sample)
    return {cell: prior.accuracy(members) for cell, members in cells.items()}
