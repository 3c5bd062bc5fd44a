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


class _ScoringCallbacks(TypedDict):
    """Of an engine that scores options."""

    on_batch: OnBatch
    on_likelihoods: Callable[[Mapping[int, list[float]]], None]


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
    # Of all rows: what was answered before an interruption took as long as the others.
    if missing and state.is_main_process:
        parts.keep_seconds((time.monotonic() - start) * len(rows) / len(missing))
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
    if missing:
        seconds = (time.monotonic() - start) * len(rows) / len(missing)
    else:
        seconds = parts.kept_seconds()
    folder.update(
        evaluations=[*(other for other in run.evaluations if other != key), key],
        evaluate_seconds=run.evaluate_seconds + seconds,
        seconds_of=run.seconds_of | ({key: seconds} if seconds else {}),
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
    loaded, answers = _Loaded(config), _Answers(config, rows, on_predictions)
    if "option_likelihood" in config.evaluation.answers:
        _score_options(config, loaded, progress, answers)
    if answers.generated:
        _generate(config, loaded, progress, answers, drafts, earlier)
    return [answers.predictions[i] for i in range(len(rows))]


class _Loaded:
    """Processor and weights, not before they are needed: vLLM loads the weights itself, and a
    server has its own."""

    def __init__(self, config: Config) -> None:
        self._config = config

    @functools.cached_property
    def processor(self) -> ProcessorMixin:
        return load_processor(self._config.model)

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        hardware = self._config.hardware
        model = load_model(self._config.model, hardware).to(PartialState().device)  # pyright: ignore[reportArgumentType]
        model.requires_grad_(requires_grad=False)  # `FusedStep` holds frozen weights once
        if hardware.uses_fused_layers:
            fused_layers.fuse(model)
        return model

    def unload_model(self) -> None:
        self.__dict__.pop("model", None)


class _Answers:
    """The predictions of rows by their place, made of what an engine gives as it gives it."""

    def __init__(
        self, config: Config, rows: Sequence[EvaluationRow], on_predictions: OnPredictions
    ) -> None:
        self.predictions: dict[int, Prediction] = {}
        self.generated = "generated" in config.evaluation.answers
        self.rows = rows
        self._encoder = config.evaluation.encoder
        self._on_predictions = on_predictions
        self._likelihoods: dict[int, list[float]] = {}

    def read(self, completions: Mapping[int, Completion]) -> None:
        """Completions are the predictions of their rows."""
        self._finish(
            {
                i: predict(row.sample, row.control, c, self._likelihoods.get(i, []), self._encoder)
                for i, c in completions.items()
                for row in [self.rows[i]]
            }
        )

    def score(self, likelihoods: Mapping[int, list[float]]) -> None:
        """Option likelihoods stand beside the completion that is to come, or are the prediction."""
        self._likelihoods.update(likelihoods)
        if not self.generated:
            of_rows = [(i, self.rows[i], values) for i, values in likelihoods.items()]
            self._finish({i: settle(r.sample, r.control, r.prompt, v) for i, r, v in of_rows})

    def _finish(self, batch: dict[int, Prediction]) -> None:
        self.predictions.update(batch)
        self._on_predictions([*batch.values()])


def _generate(
    config: Config,
    loaded: _Loaded,
    progress: Progress,
    answers: _Answers,
    drafts: DraftHistory | None,
    earlier: Sequence[Path],
) -> None:
    """Let the configured engine answer the rows."""
    tell = functools.partial(_tell, progress, len(answers.rows))
    callbacks: _Callbacks = {"on_batch": tell, "on_answers": answers.read}
    match config.evaluation.engine:
        case "endpoint":
            _ask_server(config, answers, tell)
        case "vllm":
            loaded.unload_model()
            vllm_answers.answer_rows(config, loaded.processor, answers.rows, **callbacks)
        case _:
            if drafts:
                remember_replies(drafts, earlier, answers.rows, loaded.processor.tokenizer)
            answer_rows(
                loaded.model,
                loaded.processor,
                answers.rows,
                batch_size=config.hardware.per_device_evaluation,
                max_new_tokens=config.evaluation.max_new_tokens,
                graphs=config.hardware.uses_cuda_graphs,
                images_ahead=config.hardware.accelerator == "cuda",
                drafts=drafts,
                **callbacks,
            )


def _ask_server(config: Config, answers: _Answers, on_batch: OnBatch) -> None:
    """A row whose options got no reply has failed already, and is not asked again."""
    from medreason.evaluation import endpoint_answers  # openai, an extra

    left = [i for i in range(len(answers.rows)) if i not in answers.predictions]
    endpoint_answers.answer_rows(
        config,
        [answers.rows[i] for i in left],
        on_batch=on_batch,
        on_answers=lambda batch: answers.read({left[i]: c for i, c in batch.items()}),
    )


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
            question = question_of(reply.sample, reply.prompt)
            drafts.add(question, [[*ids, *ended]], row=reply.control)


def _tell(progress: Progress, count: int, done: int) -> None:
    progress("evaluating", done, count)


def _score_options(
    config: Config,
    loaded: _Loaded,
    progress: Progress,
    answers: _Answers,
) -> None:
    """Likelihoods of the options of the rows that have some; of a served model those rows whose
    request failed are predictions already."""
    closed = [i for i, row in enumerate(answers.rows) if row.sample.options]
    closed_rows = [answers.rows[i] for i in closed]
    callbacks: _ScoringCallbacks = {
        "on_batch": lambda done: progress("evaluating option likelihoods", done, len(closed)),
        "on_likelihoods": lambda batch: answers.score({closed[i]: v for i, v in batch.items()}),
    }
    if config.evaluation.engine == "endpoint":
        from medreason.evaluation import endpoint_answers  # openai, an extra

        def on_answers(failed: Mapping[int, Completion]) -> None:
            answers.read({closed[i]: completion for i, completion in failed.items()})

        endpoint_answers.score_options(config, closed_rows, on_answers=on_answers, **callbacks)
        return
    option_likelihoods(
        loaded.model,
        loaded.processor,
        closed_rows,
        batch_size=config.hardware.per_device_evaluation,
        tagged=config.prompt.style != "free",
        images_ahead=config.hardware.accelerator == "cuda",
        **callbacks,
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
