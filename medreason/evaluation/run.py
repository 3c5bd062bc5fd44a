"""One evaluation: a run's model answers the test questions of the configured cells."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from medreason import data
from medreason.config import Config
from medreason.evaluation import predictions, vllm_answers
from medreason.evaluation.answers import OnAnswers, OnBatch, answer_rows, question_of
from medreason.evaluation.controls import questions_of
from medreason.evaluation.metrics import add_requests, compute_metrics
from medreason.evaluation.option_likelihood import option_likelihoods
from medreason.evaluation.parts import OnPredictions, Parts
from medreason.evaluation.predictions import Prediction, predict, settle
from medreason.generation import fused_layers
from medreason.generation.context_length import Question, refuse_longer_than_context
from medreason.generation.drafts import DraftHistory, draft_history
from medreason.generation.rows import Completion, EvaluationRow
from medreason.models.load import END_TOKENS, load_model, load_processor
from medreason.option_prior import fit_option_prior
from medreason.prompts import evaluation_prompt
from medreason.runs import integrity, keys
from medreason.runs.run_folder import RunFolder, find_run_folder
from medreason.samples import Sample

_log = logging.getLogger(__name__)

_EARLIER_EVALUATIONS = 2
"""Of a run, whose replies become drafts."""

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how many rows are finished, and of how many."""


class _Callbacks(TypedDict):
    """Of an engine that answers rows."""

    on_batch: OnBatch
    on_answers: OnAnswers


def evaluate(
    config: Config, samples: Sequence[Sample], folder: RunFolder, key: str, progress: Progress
) -> None:
    """Answer, score and save under `key`; every process answers its share of the rows.

    What an interrupted evaluation has answered is not asked again: see `Parts`.
    """
    start = time.monotonic()
    state = PartialState()
    test = data.tested_on(config, samples)
    rows = _test_rows(config, test)
    parts = Parts(folder, key, config)
    missing = parts.missing(rows)
    state.wait_for_everyone()  # nobody writes before all have dealt out the same rows
    own = rows_of_process(missing, state.process_index, state.num_processes)
    drafts = draft_history(config.evaluation.draft_tokens, config.hardware.accelerator)
    earlier = _earlier_predictions(folder) if drafts else []
    with parts.writing():
        if own:
            predict_rows(config, own, progress, parts.add, drafts=drafts, earlier=earlier)
    if not state.is_main_process:
        parts.wait_until_saved()
        return
    gathered = parts.wait_for_all(rows, progress)
    images = data.image_digests(config.data, config.folder / "cache", test)
    with_reply = predictions.without_failures(gathered)
    answered = sorted(
        predictions.with_digests(with_reply, test, images),
        key=lambda row: (row.control != "original", row.control, row.sample, row.options),
    )
    prior = fit_option_prior(data.read_for_prior(config, samples))
    lost = {row.sample for row in gathered} - {row.sample for row in answered}
    priors = prior.accuracies([sample for sample in test if sample.id not in lost])
    controls, clusters = config.evaluation.controls, config.statistics.clusters
    metrics = compute_metrics(answered, priors, controls, clusters)
    metrics["answers"] = config.evaluation.answers
    if config.model.is_served:
        add_requests(metrics, gathered, answered, config.model.endpoint)
    predictions.save(folder.evaluation(key), answered, metrics)
    integrity.seal(folder, key)
    run = folder.state()
    # Of all rows: what was answered before an interruption took as long as the others.
    seconds = (time.monotonic() - start) * len(rows) / max(len(missing), 1)
    folder.update(
        evaluations=[*(other for other in run.evaluations if other != key), key],
        evaluate_seconds=run.evaluate_seconds + (seconds if missing else 0.0),
        evaluate_drafts=drafts.counts.metrics() if drafts else {},
    )
    parts.remove()


def _earlier_predictions(folder: RunFolder) -> list[Path]:
    """What this run and the run of its start model replied in their newest evaluations."""
    start = keys.digest(keys.start_run_parts(folder.state().train_parts.get("model", {})))
    paths: list[Path] = []
    for run in (find_run_folder(folder.path.parent, "base", start), folder):
        files = run.path.glob("evaluations/*/predictions.parquet")
        paths += sorted(files, key=lambda path: path.stat().st_mtime)[-_EARLIER_EVALUATIONS:]
    return list(dict.fromkeys(paths))


def evaluation_row(config: Config, sample: Sample, control: str = "original") -> EvaluationRow:
    """The sample as evaluation asks it: by the configured prompt of closed or open questions."""
    prompt = evaluation_prompt(sample, config.prompt.evaluation, open_template=config.prompt.open)
    return EvaluationRow(control, sample, prompt)


def refuse_long_questions(config: Config, rows: Sequence[EvaluationRow]) -> None:
    """Raise ValueError for questions that the model's context cannot hold with their answers; of a
    served model it is known where `model.path` says what that is."""
    if config.model.is_served and not config.model.path:
        return
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
    config: Config,
    rows: Sequence[EvaluationRow],
    progress: Progress,
    on_predictions: OnPredictions = lambda batch: None,
    *,
    drafts: DraftHistory | None = None,
    earlier: Sequence[Path] = (),
) -> list[Prediction]:
    """The answers of the configured model, in the order of the rows; `on_predictions` gets
    those of each batch as soon as it is finished. The replies in the `earlier` prediction files
    become `drafts`.

    `action=predict` calls this too, so that it answers as evaluation does.
    """
    refuse_long_questions(config, rows)
    generated = "generated" in config.evaluation.answers

    # Not before they are needed: vLLM loads the weights itself, and a server has its own.
    @functools.cache
    def processor() -> ProcessorMixin:
        return load_processor(config.model)

    @functools.cache
    def model() -> PreTrainedModel:
        loaded = load_model(config.model, config.hardware).to(PartialState().device)  # pyright: ignore[reportArgumentType]
        loaded.requires_grad_(requires_grad=False)  # `FusedStep` holds frozen weights once
        if config.hardware.uses_fused_layers:
            fused_layers.fuse(loaded)
        return loaded

    predictions: dict[int, Prediction] = {}
    likelihoods: dict[int, list[float]] = {}

    def finish(batch: dict[int, Prediction]) -> None:
        predictions.update(batch)
        on_predictions([*batch.values()])

    def read(completions: Mapping[int, Completion]) -> None:
        encoder = config.evaluation.encoder
        finish(
            {
                i: predict(rows[i].sample, rows[i].control, c, likelihoods.get(i, []), encoder)
                for i, c in completions.items()
            }
        )

    def score(batch: Mapping[int, list[float]]) -> None:
        likelihoods.update(batch)
        if not generated:
            of_batch = [(i, rows[i], values) for i, values in batch.items()]
            finish({i: settle(r.sample, r.control, r.prompt, v) for i, r, v in of_batch})

    if "option_likelihood" in config.evaluation.answers:
        if config.evaluation.engine == "endpoint":
            _score_served_options(config, rows, progress, score, read)
        else:
            _score_options(config, model(), processor(), rows, progress, score)
    if generated:
        on_batch = functools.partial(_tell, progress, len(rows))
        callbacks: _Callbacks = {"on_batch": on_batch, "on_answers": read}
        match config.evaluation.engine:
            case "endpoint":
                from medreason.evaluation import endpoint_answers  # openai, an extra

                # A row whose options got no reply has failed already.
                left = [i for i in range(len(rows)) if i not in predictions]
                callbacks["on_answers"] = lambda batch: read({left[i]: c for i, c in batch.items()})
                endpoint_answers.answer_rows(config, [rows[i] for i in left], **callbacks)
            case "vllm":
                model.cache_clear()
                vllm_answers.answer_rows(config, processor(), rows, **callbacks)
            case _:
                if drafts:
                    remember_replies(drafts, earlier, rows, processor().tokenizer)
                answer_rows(
                    model(),
                    processor(),
                    rows,
                    batch_size=config.hardware.per_device_evaluation,
                    max_new_tokens=config.evaluation.max_new_tokens,
                    graphs=config.hardware.uses_cuda_graphs,
                    drafts=drafts,
                    **callbacks,
                )
    return [predictions[i] for i in range(len(rows))]


def remember_replies(
    drafts: DraftHistory,
    earlier: Sequence[Path],
    rows: Sequence[EvaluationRow],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Let the replies of earlier evaluations to these questions be drafts."""
    questions = {question_of(row.sample.id, row.prompt) for row in rows}
    end: list[int] = tokenizer(END_TOKENS[0])["input_ids"]
    for path in earlier:
        try:
            replies = [
                reply
                for reply in predictions.read_replies(path)
                if reply.completion and question_of(reply.sample, reply.prompt) in questions
            ]
        except ValueError as error:
            _log.warning("no drafts from there: %s", error)
            continue
        texts = [reply.completion for reply in replies]
        # A reply's own tokens may have been others: such a draft is wrong, which costs time alone.
        tokens: list[list[int]] = tokenizer(texts)["input_ids"] if texts else []
        for reply, ids in zip(replies, tokens, strict=True):
            ended = end if reply.finish_reason == "stop" else []
            drafts.add(question_of(reply.sample, reply.prompt), [[*ids, *ended]])


def _tell(progress: Progress, count: int, done: int) -> None:
    progress("evaluating", done, count)


def _score_served_options(
    config: Config,
    rows: Sequence[EvaluationRow],
    progress: Progress,
    on_likelihoods: Callable[[Mapping[int, list[float]]], None],
    on_failures: Callable[[Mapping[int, Completion]], None],
) -> None:
    """Likelihoods of the options by a served model; `on_failures` gets the rows without any."""
    from medreason.evaluation import endpoint_answers  # openai, an extra

    closed = [i for i, row in enumerate(rows) if row.sample.options]
    endpoint_answers.score_options(
        config,
        [rows[i] for i in closed],
        on_batch=lambda done: progress("evaluating option likelihoods", done, len(closed)),
        on_likelihoods=lambda batch: on_likelihoods({closed[i]: v for i, v in batch.items()}),
        on_answers=lambda batch: on_failures({closed[i]: c for i, c in batch.items()}),
    )


def _score_options(
    config: Config,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[EvaluationRow],
    progress: Progress,
    on_likelihoods: Callable[[Mapping[int, list[float]]], None],
) -> None:
    """Score the rows that have options; `on_likelihoods` gets them by their place in `rows`."""
    closed = [i for i, row in enumerate(rows) if row.sample.options]
    option_likelihoods(
        model,
        processor,
        [rows[i] for i in closed],
        batch_size=config.hardware.per_device_evaluation,
        tagged=config.prompt.style != "free",
        on_batch=lambda done: progress("evaluating option likelihoods", done, len(closed)),
        on_likelihoods=lambda batch: on_likelihoods({closed[i]: v for i, v in batch.items()}),
    )


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


def rows_of_process(
    rows: Sequence[EvaluationRow], process: int, processes: int
) -> list[EvaluationRow]:
    """The rows that a process answers: every so many images with all rows about them.

    Rows are in the order of their images, so neighbours are often of one modality or data set; in
    stripes every process has as many long prompts and slow images as the others.
    """
    images = dict.fromkeys(row.sample.image for row in rows)
    own = set(list(images)[process::processes])
    return [row for row in rows if row.sample.image in own]
