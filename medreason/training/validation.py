"""Validation while a training runs: greedy answers of the model as it stands, by evaluation's code.

Its numbers join `TrainerState.log_history` before the step is logged and before its checkpoint is
written: a resumed run has each of them once, and asks again only what no checkpoint knows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOTrainer, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.models.utils import unwrap_model_for_generation

from medreason import data
from medreason.config import Config
from medreason.evaluation import predictions
from medreason.evaluation.answers import answer_rows
from medreason.evaluation.controls import questions_of
from medreason.evaluation.metrics import compute_metrics
from medreason.evaluation.predictions import Prediction, predict
from medreason.evaluation.run import evaluation_row, rows_of_process
from medreason.generation.drafts import draft_history
from medreason.generation.prepared_inputs import PreparedInputs
from medreason.generation.rows import Completion, EvaluationRow
from medreason.metrics import Metric
from medreason.models.load import load_processor, without_adapter
from medreason.option_prior import fit_option_prior
from medreason.samples import Sample
from medreason.training import selection

_SHOWN = (
    *(Metric.N, Metric.CLUSTERS, Metric.ACCURACY, Metric.CI_LOW, Metric.CI_HIGH),
    *(Metric.ABOVE_PRIOR, Metric.PARSED),
)


class Validator(TrainerCallback):
    """Asks the validation questions every `validation.every` updates, and after the last.

    `questions`: see `data.validation.questions`; `train` are the samples that the options-only
    baseline is fitted to; `targets` are replies that the model learns. `trainer` is set once it is
    built.
    """

    trainer: SFTTrainer | GRPOTrainer

    def __init__(
        self,
        config: Config,
        questions: Mapping[str, Sequence[Sample]],
        train: Sequence[Sample],
        progress: Callable[..., None],
        targets: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._every = config.validated_every(len(train))
        self._questions = questions
        self._progress = progress
        samples = [sample for members in questions.values() for sample in members]
        assert all(sample.split == "validation" for sample in samples)
        self._images = data.image_digests(config.data, config.folder / "cache", samples)
        self._prior = fit_option_prior(train)
        self._processor = load_processor(config.model)
        self.drafts = draft_history(config.evaluation.draft_tokens, config.hardware.accelerator)
        """It keeps the replies of the validation before; the first one drafts from `targets`, or
        from what the rollouts say."""
        if self.drafts and targets:
            tokenizer = self._processor.tokenizer
            ends = [tokenizer.eos_token_id]
            self.drafts.add_texts([*ids, *ends] for ids in tokenizer([*targets])["input_ids"])
        self._rows = validation_rows(config, questions)
        self._prepared = PreparedInputs()
        self._read: dict[tuple[str, str], tuple[Completion, Prediction]] = {}
        """By sample and control: most replies of a validation are said again in the next one."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        settings = self._config.validation
        if state.global_step % self._every and state.global_step != state.max_steps:
            return
        state.log_history.append({"step": state.global_step, **self._validate()})
        is_best = selection.best_step(state.log_history) == state.global_step
        over = selection.is_over(state.log_history, settings.patience)
        control.should_save |= over or (is_best and settings.select == "best")
        control.should_training_stop |= over

    def _validate(self) -> dict[str, float]:
        start = time.monotonic()
        rollouts = getattr(self.trainer, "drafts", None)
        # Under FSDP the ranks make the same passes, and each has other rollouts.
        if self.drafts and rollouts and not self._ranks_ask_all:
            self.drafts.table = rollouts.table
        with (
            unwrap_model_for_generation(  # gathers the weights of ZeRO-3
                self.trainer.model_wrapped,  # pyright: ignore[reportArgumentType]
                self.trainer.accelerator,
                gradient_checkpointing_kwargs=self.trainer.args.gradient_checkpointing_kwargs,  # pyright: ignore[reportArgumentType]
            ) as model,
            undisturbed(model),
            outer_weights_gathered(model),
            self.trainer.accelerator.autocast(),
        ):
            answers = self._answer(model, self._rows)
        metrics: dict[str, float] = {}
        for side, samples in self._questions.items():
            metrics |= self._metrics(side, samples, answers)
        if self.drafts:
            # Not among the numbers of a side: how drafts do says nothing about the answers.
            counts = self.drafts.take_counts()
            metrics |= {f"validation_{name}": value for name, value in counts.items()}
        return metrics | {"validation/seconds": time.monotonic() - start}

    def _answer(
        self, model: PreTrainedModel | PeftModel, rows: Sequence[EvaluationRow]
    ) -> list[Prediction]:
        """The answers to all rows, on every process; each asks its share.

        Where FSDP gathers the weights of each layer from all processes, they must run the same
        layers at the same time: there each asks all rows. ZeRO-3's are whole by now: `_validate`
        has gathered them.
        """
        accelerator, settings = self.trainer.accelerator, self._config
        own = rows
        if not self._ranks_ask_all:
            own = rows_of_process(rows, accelerator.process_index, accelerator.num_processes)
        base = without_adapter(model)  # an adapter's layers are within those of its base
        assert isinstance(base, PreTrainedModel)
        completions = answer_rows(
            base,
            self._processor,
            own,
            batch_size=settings.hardware.per_device_evaluation,
            max_new_tokens=settings.validation.max_new_tokens,
            graphs=settings.hardware.uses_cuda_graphs,
            images_ahead=settings.hardware.accelerator == "cuda",
            drafts=self.drafts,
            prepared=self._prepared,
            on_batch=lambda done: self._progress("validating", done, len(own)),
        )
        answers = list(map(self._predicted, own, completions))
        return answers if self._ranks_ask_all else gather_object(answers)

    @property
    def _ranks_ask_all(self) -> bool:
        return self._config.hardware.parallel == "fsdp"

    def _predicted(self, row: EvaluationRow, completion: Completion) -> Prediction:
        known = self._read.get((row.sample.id, row.control))
        if known is None or known[0] != completion:
            answer = predict(row.sample, row.control, completion)
            (answer,) = predictions.with_digests([answer], [row.sample], self._images)
            known = completion, answer
            self._read[row.sample.id, row.control] = known
        return known[1]

    def _metrics(
        self, side: str, samples: Sequence[Sample], answers: Sequence[Prediction]
    ) -> dict[str, float]:
        """The numbers of one side that there are, by what they are called in metrics.jsonl."""
        ids = {sample.id for sample in samples}
        # In one order, however many processes answered.
        own = sorted((a for a in answers if a.sample in ids), key=lambda a: a.sample)
        if not own:
            return {}
        controls = self._config.validation.controls
        metrics = compute_metrics(
            own, self._prior.accuracies(samples), controls, self._config.statistics.clusters
        )
        shown = {f"{side}/{name}": metrics["overall"].get(name) for name in (*_SHOWN, *controls)}
        shown |= {
            f"{side}/accuracy/{cell}": values[Metric.ACCURACY]
            for cell, values in metrics["cells"].items()
        }
        return {name: value for name, value in shown.items() if value is not None}


def validation_rows(
    config: Config, questions: Mapping[str, Sequence[Sample]]
) -> list[EvaluationRow]:
    """The questions of all sides and those of the controls, in the order of their images."""
    asked = [
        question
        for samples in questions.values()
        for question in questions_of(samples, config.validation.controls, ["generated"])
    ]
    rows = [evaluation_row(config, sample, control) for control, sample in asked]
    return sorted(rows, key=lambda row: str(row.sample.image))


def as_evaluation(config: Config) -> Config:
    """The configuration of an evaluation with the limits of validation, to check questions by."""
    limit, controls = config.validation.max_new_tokens, config.validation.controls
    evaluation = replace(
        config.evaluation, max_new_tokens=limit, controls=controls, answers=["generated"]
    )
    return replace(config, evaluation=evaluation)


@contextmanager
def outer_weights_gathered(model: nn.Module) -> Iterator[None]:
    """Gather what FSDP shards outside the layers, such as the embeddings: the shared path calls
    parts of the model, and only the forward of the whole model would gather it."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Random states and the modules' training flags are afterwards as they were before.

    Not `model.train()`: it would switch on what a trainer keeps in evaluation mode.
    """
    flags = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in flags:
            module.training = training
