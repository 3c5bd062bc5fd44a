"""One evaluation: the answers of a run's model to the test questions of the cells asked for."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence

from accelerate import PartialState
from accelerate.utils import gather_object

from medreason import data
from medreason.config import Config
from medreason.evaluation import predictions
from medreason.evaluation.answers import answer_rows
from medreason.evaluation.controls import samples_under
from medreason.evaluation.metrics import compute_metrics
from medreason.evaluation.option_likelihood import option_likelihoods
from medreason.evaluation.predictions import Prediction, predict, settle
from medreason.generation.rows import EvaluationRow
from medreason.models.load import load_model, load_processor
from medreason.option_prior import fit_option_prior
from medreason.prompts import evaluation_prompt
from medreason.runs import integrity
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample

_log = logging.getLogger(__name__)


def evaluate(
    config: Config,
    samples: Sequence[Sample],
    folder: RunFolder,
    key: str,
    progress: Callable[..., None],
) -> None:
    """Answer, score and save under `key`; every process answers its share of the samples."""
    began = time.monotonic()
    rows = _answers(config, data.tested_on(config, samples), progress)
    if not PartialState().is_main_process:
        return
    figures = compute_metrics(
        rows, question_only_priors(config, samples), config.evaluation.controls
    )
    figures["answers"] = config.evaluation.answers
    predictions.save(folder.evaluation(key), rows, figures)
    integrity.seal(folder, key)
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
    asked = _asked(config, test)
    # Rows about an image lie together, so they mostly stay in one process.
    asked = asked[_share(len(asked), state.process_index, state.num_processes)]
    size = config.hardware.per_device_evaluation
    shares: list[list[float]] = [[] for _ in asked]
    if "option_likelihood" in config.evaluation.answers:
        closed = [i for i, row in enumerate(asked) if row.sample.options]
        found = option_likelihoods(
            model,
            processor,
            [asked[i] for i in closed],
            batch_size=size,
            tagged=config.prompt.style != "free",
            on_batch=lambda done: progress("evaluating letters", done, len(closed)),
        )
        for i, row in zip(closed, found, strict=True):
            shares[i] = row
    if "generated" in config.evaluation.answers:
        replies = answer_rows(
            model,
            processor,
            asked,
            batch_size=size,
            max_new_tokens=config.evaluation.max_new_tokens,
            graphs=config.hardware.graphs,
            on_batch=lambda done: progress("evaluating", done, len(asked)),
        )
        rows = [
            predict(row.sample, row.control, reply, share, config.evaluation.encoder)
            for row, reply, share in zip(asked, replies, shares, strict=True)
        ]
    else:
        rows = [
            settle(row.sample, row.control, row.prompt, share)
            for row, share in zip(asked, shares, strict=True)
        ]
    return sorted(
        gather_object(rows),
        key=lambda row: (row.control != "original", row.control, row.sample, row.options),
    )


def _asked(config: Config, test: Sequence[Sample]) -> list[EvaluationRow]:
    """The test questions and those of the controls, in the order of their images.

    Raises:
        ValueError: letters alone are asked for, and no question has options.
    """
    if "generated" not in config.evaluation.answers:
        closed = [sample for sample in test if sample.options]
        if not closed:
            raise ValueError(
                f"evaluation.answers={config.evaluation.answers}: none of {len(test)} test "
                "questions has options whose letters could be scored; set evaluation=full"
            )
        if len(closed) < len(test):
            _log.warning("%d questions without options are left out", len(test) - len(closed))
        test = closed
    ask = functools.partial(
        evaluation_prompt, template=config.prompt.evaluation, open_template=config.prompt.open
    )
    asked = [
        EvaluationRow(control, sample, ask(sample))
        for control in ("original", *config.evaluation.controls)
        for sample in samples_under(control, test)
    ]
    return sorted(asked, key=lambda row: str(row.sample.image))


def _share(count: int, process: int, processes: int) -> slice:
    return slice(count * process // processes, count * (process + 1) // processes)


def question_only_priors(
    config: Config, samples: Sequence[Sample]
) -> dict[tuple[str, str], float | None]:
    """Question-only accuracy of each test cell; see `data.read_for_prior`."""
    prior = fit_option_prior(data.read_for_prior(config, samples))
    cells: dict[tuple[str, str], list[Sample]] = {}
    for sample in data.tested_on(config, samples):
        cells.setdefault(sample.cell, []).append(sample)
    return {cell: prior.accuracy(members) for cell, members in cells.items()}
