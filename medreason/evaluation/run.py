"""One evaluation: a run's model answers the test questions of the configured cells."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from accelerate import PartialState
from accelerate.utils import gather_object

from medreason import data
from medreason.config import Config
from medreason.evaluation import predictions
from medreason.evaluation.answers import answer_rows
from medreason.evaluation.controls import questions_of
from medreason.evaluation.metrics import compute_metrics
from medreason.evaluation.option_likelihood import option_likelihoods
from medreason.evaluation.predictions import Prediction, predict, settle
from medreason.generation.context_length import Question, refuse_longer_than_context
from medreason.generation.rows import EvaluationRow
from medreason.models.load import load_model, load_processor
from medreason.option_prior import fit_option_prior
from medreason.prompts import evaluation_prompt
from medreason.runs import integrity
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how many rows are finished, and of how many."""


def evaluate(
    config: Config, samples: Sequence[Sample], folder: RunFolder, key: str, progress: Progress
) -> None:
    """Answer, score and save under `key`; every process answers its share of the rows."""
    start = time.monotonic()
    state = PartialState()
    test = data.tested_on(config, samples)
    rows = _test_rows(config, test)
    # Rows about an image lie together, so they mostly stay in one process.
    share = _share(len(rows), state.process_index, state.num_processes)
    gathered: list[Prediction] = gather_object(predict_rows(config, rows[share], progress))
    if not state.is_main_process:
        return
    images = data.image_digests(config.data, config.folder / "cache", test)
    answered = sorted(
        predictions.with_digests(gathered, test, images),
        key=lambda row: (row.control != "original", row.control, row.sample, row.options),
    )
    priors = option_prior_accuracies(config, samples)
    controls, clusters = config.evaluation.controls, config.statistics.clusters
    metrics = compute_metrics(answered, priors, controls, clusters)
    metrics["answers"] = config.evaluation.answers
    predictions.save(folder.evaluation(key), answered, metrics)
    integrity.seal(folder, key)
    run = folder.state()
    folder.update(
        evaluations=[*(other for other in run.evaluations if other != key), key],
        evaluate_seconds=run.evaluate_seconds + time.monotonic() - start,
    )


def evaluation_row(config: Config, sample: Sample, control: str = "original") -> EvaluationRow:
    """The sample as evaluation asks it: by the configured prompt of closed or open questions."""
    prompt = evaluation_prompt(sample, config.prompt.evaluation, open_template=config.prompt.open)
    return EvaluationRow(control, sample, prompt)


def refuse_long_questions(config: Config, rows: Sequence[EvaluationRow]) -> None:
    """Raise ValueError for questions that the model's context cannot hold with their answers."""
    generated = "generated" in config.evaluation.answers
    tokens, key = (config.evaluation.max_new_tokens, "evaluation.max_new_tokens")
    refuse_longer_than_context(
        config.model,
        [
            Question(row.sample, row.prompt, tokens if generated else 1)
            for row in rows
            if row.control == "original"
        ],
        key if generated else "",
    )


def refuse_long_tests(config: Config, samples: Sequence[Sample]) -> None:
    """`refuse_long_questions` for the test questions, before hours of training."""
    refuse_long_questions(config, _test_rows(config, data.tested_on(config, samples)))


def predict_rows(
    config: Config, rows: Sequence[EvaluationRow], progress: Progress
) -> list[Prediction]:
    """The answers of the model at `model.path`, in the order of the rows.

    `action=predict` calls this too, so that it answers as evaluation does.
    """
    refuse_long_questions(config, rows)
    model = load_model(config.model, config.hardware).to(PartialState().device)  # pyright: ignore[reportArgumentType]
    processor = load_processor(config.model)
    likelihoods: list[list[float]] = [[] for _ in rows]
    if "option_likelihood" in config.evaluation.answers:
        closed = [i for i, row in enumerate(rows) if row.sample.options]
        of_closed = option_likelihoods(
            model,
            processor,
            [rows[i] for i in closed],
            batch_size=config.hardware.per_device_evaluation,
            tagged=config.prompt.style != "free",
            on_batch=lambda done: progress("evaluating option likelihoods", done, len(closed)),
        )
        for i, values in zip(closed, of_closed, strict=True):
            likelihoods[i] = values
    if "generated" not in config.evaluation.answers:
        return [
            settle(row.sample, row.control, row.prompt, values)
            for row, values in zip(rows, likelihoods, strict=True)
        ]
    completions = answer_rows(
        model,
        processor,
        rows,
        batch_size=config.hardware.per_device_evaluation,
        max_new_tokens=config.evaluation.max_new_tokens,
        graphs=config.hardware.uses_cuda_graphs,
        on_batch=lambda done: progress("evaluating", done, len(rows)),
    )
    return [
        predict(row.sample, row.control, completion, values, config.evaluation.encoder)
        for row, completion, values in zip(rows, completions, likelihoods, strict=True)
    ]


def _test_rows(config: Config, test: Sequence[Sample]) -> list[EvaluationRow]:
    """The test questions and those of the controls, in the order of their images.

    Raises:
        ValueError: option likelihoods alone are to answer, and no question has options.
    """
    questions = questions_of(test, config.evaluation.controls, config.evaluation.answers)
    if not questions:
        raise ValueError(
            f"evaluation.answers={config.evaluation.answers}: none of {len(test)} test "
            "questions has options whose letters could be scored; set evaluation=full"
        )
    if left_out := len(test) - sum(control == "original" for control, _ in questions):
        _log.warning("%d questions without options are left out", left_out)
    rows = [evaluation_row(config, sample, control) for control, sample in questions]
    return sorted(rows, key=lambda row: str(row.sample.image))


def _share(count: int, process: int, processes: int) -> slice:
    return slice(count * process // processes, count * (process + 1) // processes)


def option_prior_accuracies(
    config: Config, samples: Sequence[Sample]
) -> dict[tuple[str, str], float | None]:
    """Accuracy of the options-only baseline in each test cell; see `data.read_for_prior`."""
    prior = fit_option_prior(data.read_for_prior(config, samples))
    cells: dict[tuple[str, str], list[Sample]] = {}
    for sample in data.tested_on(config, samples):
        cells.setdefault(sample.cell, []).append(sample)
    return {cell: prior.accuracy(members) for cell, members in cells.items()}
