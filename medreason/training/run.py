"""One training: from the base model to the weights in the run folder, resumed where it stopped."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import GRPOTrainer, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from medreason.config import Config
from medreason.console import counted, notice
from medreason.evaluation import vllm_answers
from medreason.evaluation.run import refuse_long_questions
from medreason.generation.context_length import Question, refuse_longer_than_context
from medreason.models.load import load_model, load_processor
from medreason.runs.files import atomic, atomic_folder, read_json, write_json
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training import (
    adapter,
    checkpoints,
    grpo,
    memory_check,
    memory_limits,
    selection,
    sft,
)
from medreason.training.arguments import longest_prompt
from medreason.training.divergence import DivergenceCheck, explained
from medreason.training.interruption import Interruption
from medreason.training.recorder import Recorder
from medreason.training.update_check import UpdateCheck
from medreason.training.validation import Validator, as_evaluation, validation_rows

_TARGETS = 200
"""Replies that the first validation drafts from, at most."""


def train(
    config: Config,
    samples: Sequence[Sample],
    folder: RunFolder,
    progress: Callable[..., None],
    questions: Mapping[str, Sequence[Sample]] = MappingProxyType({}),
) -> None:
    """Train, save the weights to `folder.model`, and delete the checkpoints.

    `questions` are asked while it trains: `data.validation.questions`.
    """
    began = time.monotonic()
    config = _with_questions_at_once(config, samples)
    _refuse_long_questions(config, samples)
    if questions:
        refuse_long_questions(as_evaluation(config), validation_rows(config, questions))
    _refuse_what_vllm_cannot_load(config)
    checkpoint = checkpoints.newest(  # which refuses some, before a model is loaded
        folder,
        processes=config.hardware.processes,
        deepspeed=config.hardware.parallel in ("zero2", "zero3"),
    )
    earlier = folder.state().train_seconds if checkpoint else 0.0

    def seconds() -> float:
        return earlier + time.monotonic() - began

    interruption = Interruption(config.updates_per_rollout)
    recorder = Recorder(folder, progress, seconds)
    trainer = _prepare(config, samples, folder, recorder, progress, questions, interruption)
    with interruption.listening() if config.runs.grace_seconds else nullcontext():
        trained = _run(config, trainer, checkpoint)
        chosen = _save(config, trainer, folder, trained=trained)
        _record_end(trainer, folder, chosen, seconds())
    # The evaluation follows in this process and needs the memory. Trainers refer to themselves in
    # cycles, so they are freed by a collection alone.
    del trainer
    gc.collect()
    torch.cuda.empty_cache()
    unset_hf_deepspeed_config()  # else from_pretrained shards what is evaluated


def _refuse_what_vllm_cannot_load(config: Config) -> None:
    """Before our model is loaded, of whose architecture TRL may say less."""
    own = config.rollout.name == "vllm" and config.rollout.vllm.get("vllm_mode") == "colocate"
    if own and config.method.algorithm == "grpo":
        vllm_answers.refuse_model(config, "rollout=vllm", "rollout=grouped")
    if config.evaluation.engine == "vllm":
        vllm_answers.refuse_model(config, *vllm_answers.ASKED_AND_OTHER)


def _prepare(
    config: Config,
    samples: Sequence[Sample],
    folder: RunFolder,
    recorder: Recorder,
    progress: Callable[..., None],
    questions: Mapping[str, Sequence[Sample]],
    interruption: Interruption,
) -> SFTTrainer | GRPOTrainer:
    """The trainer with all that listens to it, after a trial step where one is asked for."""
    update_check = UpdateCheck(folder)
    validator = (
        Validator(config, questions, samples, progress, _targets(config, samples))
        if questions
        else None
    )
    callbacks: list[TrainerCallback] = [recorder, update_check, *([validator] if validator else [])]
    # The last one looks at the weights that any of the others wants saved.
    callbacks += [interruption, DivergenceCheck()]
    trainer = build(config, samples, folder, callbacks)
    if validator:
        validator.trainer = trainer
    _log_parameters(trainer, folder)
    left_out = config.left_out_of_epoch(len(samples))
    if left_out and trainer.accelerator.is_main_process:
        notice(
            f"each epoch leaves out {left_out} of {counted(len(samples), 'question')}, every time "
            "others: they do not fill a step of "
            f"method.prompts_per_step={config.method.prompts_per_step}"
        )
    if config.hardware.memory_check:
        _check_memory(config, trainer, samples)
    recorder.rollout_logs = update_check.rollout_logs = getattr(trainer, "_logs", None)
    return trainer


def _targets(config: Config, samples: Sequence[Sample]) -> list[str]:
    """Some replies that SFT imitates, from all over the samples."""
    if config.method.algorithm != "sft":
        return []
    return [sft.target(config, sample) for sample in samples[:: -(-len(samples) // _TARGETS)]]


def _with_questions_at_once(config: Config, samples: Sequence[Sample]) -> Config:
    """The configuration with a number for `hardware.per_device_prompts=auto` and a choice for
    `hardware.gradient_checkpointing=auto`, the same on all ranks, whose machines may have other
    cards: what the smallest takes."""
    config, chosen = memory_limits.with_questions_at_once(config, samples)
    if chosen is None:
        return config
    cuts = gather_object([(config.hardware.questions_at_once, config.hardware.recomputes)])
    fewest, again = min(cuts)[0], any(again for _, again in cuts)
    if PartialState().is_main_process:
        other = fewest != config.hardware.questions_at_once
        notice(f"{chosen}; another rank's device takes {fewest} at most" if other else chosen)
    return replace(
        config,
        hardware=replace(
            config.hardware,
            per_device_prompts=str(fewest),
            gradient_checkpointing=str(again).lower(),
        ),
    )


def _run(config: Config, trainer: SFTTrainer | GRPOTrainer, checkpoint: Path | None) -> bool:
    """Train to the end; False where the checkpoint is of the last step, or of a training that was
    stopped for good, so that nothing is left to do and its weights are not loaded."""
    if checkpoint:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        patience = config.validation.patience
        stopped = patience is not None and selection.is_over(state.log_history, patience)
        # Of both transformers would make one more step.
        if stopped or 0 < state.max_steps <= state.global_step:
            trainer.state = state
            return False
    with explained(trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return True


def _save(
    config: Config, trainer: SFTTrainer | GRPOTrainer, folder: RunFolder, *, trained: bool
) -> int:
    """Write `folder.model`; returns the step that its weights are of."""
    last = trainer.state.global_step
    best = selection.best_step(trainer.state.log_history)
    chosen = best if best is not None and config.validation.select == "best" else last
    main_process = trainer.accelerator.is_main_process
    with atomic_folder(folder.model, main_process=main_process, replace=True) as unfinished:
        trainer.accelerator.wait_for_everyone()
        if trained and chosen == last:
            trainer.save_model(str(unfinished))  # the processor too; writes on rank 0 alone
        elif main_process:
            checkpoints.copy_weights(folder.checkpoints / f"checkpoint-{chosen}", unfinished)
        if main_process and config.hardware.precision == "bfloat16" and not config.adapter:
            save_in_bfloat16(unfinished)
        trainer.accelerator.wait_for_everyone()
    return chosen


def _record_end(
    trainer: SFTTrainer | GRPOTrainer, folder: RunFolder, chosen: int, seconds: float
) -> None:
    """The run is trained: say so and why it is of step `chosen`, and delete the checkpoints."""
    if trainer.accelerator.is_main_process:
        history, last = trainer.state.log_history, trainer.state.global_step
        folder.update(
            trained=True,
            train_seconds=seconds,
            chosen_step=chosen,
            chosen_because=selection.explained(history, chosen, last),
        )
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def save_in_bfloat16(folder: Path) -> None:
    """Rewrite a folder's weights in the precision in which evaluation loads them: the same answers
    from half the disk."""
    for file in folder.glob("*.safetensors"):
        tensors = {
            name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor.clone()
            for name, tensor in load_file(file).items()
        }
        with atomic(file) as unfinished:
            save_file(tensors, unfinished, metadata={"format": "pt"})
    for index in folder.glob("*.safetensors.index.json"):
        values = read_json(index)
        sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
        values["metadata"]["total_size"] = sum(sizes)
        write_json(index, values)
    settings = (folder / "config.json").read_text(encoding="utf-8")
    write_json(
        folder / "config.json",
        json.loads(settings.replace('"dtype": "float32"', '"dtype": "bfloat16"')),
    )


def build(
    config: Config, samples: Sequence[Sample], folder: RunFolder, callbacks: list[TrainerCallback]
) -> SFTTrainer | GRPOTrainer:
    """The trainer of the configured method, with its model."""
    method = sft.trainer if config.method.algorithm == "sft" else grpo.trainer
    trainer = method(
        config,
        samples,
        load_model(config.model, config.hardware, full_precision=not config.adapter),
        load_processor(config.model),
        folder,
        callbacks,
    )
    if (ddp := trainer.accelerator.ddp_handler) is not None:  # none in a process alone
        ddp.gradient_as_bucket_view = True  # gradients in DDP's buckets, not beside them
    # accelerate chooses from arguments and environment variables, and falls back without an error.
    kind = trainer.accelerator.distributed_type
    expected = {"fsdp": DistributedType.FSDP, "ddp": kind}.get(
        config.hardware.parallel, DistributedType.DEEPSPEED
    )
    assert kind == expected, f"hardware.parallel={config.hardware.parallel!r} became {kind}"
    if config.model.quantization != "none":
        assert trainer.model is not None
        adapter.train_in_float32(trainer.model)
    return trainer


def _refuse_long_questions(config: Config, samples: Sequence[Sample]) -> None:
    """Raise ValueError for samples that the model's context cannot hold with their completions."""
    if config.method.algorithm == "sft":
        questions = [Question(s, longest_prompt(config, s), sft.target(config, s)) for s in samples]
        refuse_longer_than_context(config.model, questions)
        return
    tokens = config.method.trl["max_completion_length"]
    questions = [Question(s, longest_prompt(config, s), tokens) for s in samples]
    refuse_longer_than_context(config.model, questions, "method.trl.max_completion_length")


def _log_parameters(trainer: SFTTrainer | GRPOTrainer, folder: RunFolder) -> None:
    """Write the number of trainable parameters to log and state."""
    assert trainer.model is not None
    trainable, total = adapter.count_parameters(trainer.model)
    if trainer.accelerator.is_main_process:
        notice(f"trainable parameters: {trainable:,} of {total:,}")
        folder.update(trainable_parameters=trainable, parameters=total)


def _check_memory(
    config: Config, trainer: SFTTrainer | GRPOTrainer, samples: Sequence[Sample]
) -> None:
    if not config.hardware.tries_longest_step:
        notice("no trial step: hardware.parallel is not ddp")
        return
    peak, _ = memory_check.trial_step(config, trainer, samples)
    if trainer.accelerator.is_main_process:
        notice(f"trial step of the longest samples: peak {peak / 2**30:.2f} GiB")


def trained_model(config: Config, folder: RunFolder) -> Config:
    """The configuration with the run's weights as its model; method=base keeps the base model."""
    if config.method.algorithm == "none":
        return config
    return replace(config, model=replace(config.model, path=str(folder.model), revision=None))
