"""What goes to TRL and PEFT is checked by the names and types of their own classes, from source."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
from trl.trainer import grpo_trainer, sft_trainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.sft_config import SFTConfig

from medreason.config import Config
from medreason.config.annotations import accepts, fields_of
from medreason.config.upstream import DERIVED, LIMITS, SAME_STEPS, WORDS
from medreason.models.load import meta_model
from medreason.runs.run_folder import RunFolder
from medreason.training import adapter
from medreason.training.arguments import trl_arguments

Compose = Callable[..., Config]
CLASSES = (SFTConfig, GRPOConfig, peft.LoraConfig)


@pytest.mark.parametrize("class_", CLASSES)
def test_fields_read_from_source_are_those_of_the_class(class_: type) -> None:
    fields = {field.name: field for field in dataclasses.fields(class_)}
    assert fields_of(class_.__name__).keys() == fields.keys()
    for name, field in fields.items():
        if isinstance(field.default, bool | int | float | str | None):
            assert accepts(fields_of(class_.__name__)[name], field.default), name


def test_what_is_known_of_fields_is_true_of_this_trl() -> None:
    known = {name for class_ in CLASSES for name in fields_of(class_.__name__)}
    assert DERIVED.keys() | LIMITS.keys() | SAME_STEPS.keys() <= known
    sources = {"GRPOConfig": grpo_trainer, "SFTConfig": sft_trainer}
    for field, words in WORDS.items():
        source = inspect.getsource(sources[field.partition(".")[0]]).replace("'", '"')
        assert all(f'"{word}"' in source for word in words), field


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+method.trl.lr=3", "method.trl.lr is not a field of trl.GRPOConfig; .*trl.learning_rate"),
        ("+hardware.trl.dataloader_num_worker=3", "did you mean .*dataloader_num_workers"),
        ("+method.trl.packing=true", "field of trl.GRPOConfig; it is one of SFTConfig"),
        (
            "method=sft +method.trl.beta=0.1",
            "field of trl.SFTConfig; it is one of GRPOConfig: leave it out; beside methods without "
            "it, give the one that has it a command of its own with the same sweep=",
        ),
        ("+method.trl.bf16=true", "bf16 is derived .*leave it out and set hardware.precision"),
        ("+method.trl.logging_steps=2", "logging_steps is derived by medreason; leave it out$"),
        ("+hardware.trl.dataloader_drop_last=true", "=True: the rows of a step .*leave it out"),
        ("+method.trl.train_sampling_strategy=group_by_length", "rows of a step .*leave it out"),
        ("+method.trl.accelerator_config={split_batches:true}", "rows of a step .*leave it out"),
        ("+adapter.use_dorra=true", "adapter.use_dorra is not a field of peft.* adapter.use_dora"),
        ("method.trl.learning_rate=abc", "learning_rate='abc': trl.GRPOConfig takes a number"),
        ("method.trl.learning_rate='1e-5'", "='1e-5': .*takes a number; write it without quotes"),
        ("method.trl.learning_rate=-1", "learning_rate=-1; it must be 0 or more"),
        ("method.trl.learning_rate=nan", "learning_rate=nan; it must be 0 or more"),
        ("method.trl.max_grad_norm=inf", "max_grad_norm=inf; it must be 0 or more"),
        ("method.trl.max_steps=0", "max_steps=0; .* or -1 for method.trl.num_train_epochs"),
        ("method.trl.max_steps=-5", "max_steps=-5; "),
        ("method.trl.max_steps=2.5", "max_steps=2.5: trl.GRPOConfig takes a whole number"),
        ("method.trl.max_steps=true", "max_steps=True: trl.GRPOConfig takes a whole number"),
        (
            "method.trl.num_generations=abc",
            "num_generations='abc': trl.GRPOConfig takes a whole number",
        ),
        ("method.trl.top_p=1.5", "top_p=1.5; it must be above 0, and at most 1"),
        ("method.trl.lr_scheduler_type=cosin", "='cosin': trl.GRPOConfig knows linear, cosine, "),
        ("method.trl.loss_type=grop", "loss_type='grop': trl.GRPOConfig knows grpo, "),
        ("method.trl.scale_rewards=off", "scale_rewards='off': .* group, batch, none"),
        ("method.trl.mask_truncated_completions=off", "='off': .*takes true or false"),
        ("+hardware.trl.torch_compile=yes", "torch_compile='yes': .*takes true or false"),
        (
            "method=sft method.trl.max_steps=null",
            "=None: trl.SFTConfig takes a whole number",
        ),
        ("adapter=lora_r8 adapter.use_dora=no", "use_dora='no': peft.* takes true or false"),
        ("adapter=lora_r8 adapter.r=0", "adapter.r=0; it must be at least 1"),
        ("adapter=lora_r8 adapter.lora_dropout=1", "lora_dropout=1; .*below 1"),
        ("adapter=lora_r8 +adapter.bias=lora", r"bias='lora': .*'none', 'all', 'lora_only'"),
        ("adapter=lora_r8 +adapter.modules_to_save=None", "='None': .*; write null"),
    ],
)
def test_setting_that_cannot_be_is_refused_before_anything_is_loaded(
    composed: Compose, override: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        composed(*override.split())


@pytest.mark.parametrize("method", ["base", "sft", "grpo", "rarl"])
def test_values_of_each_method_pass_and_base_takes_those_of_all(
    composed: Compose, method: str
) -> None:
    composed(f"method={method}", "method.trl.max_steps=3", "adapter=lora_all")
    composed("method=base", "method.trl.beta=0.1", "method.trl.loss_type=dapo")


def test_typed_values_arrive_in_the_classes(composed: Compose, tmp_path: Path) -> None:
    config = composed(
        *("method=grpo", "adapter=lora_r8", "adapter.use_dora=true", "+adapter.use_rslora=true"),
        *("method.trl.learning_rate=3e-4", "method.trl.mask_truncated_completions=true"),
        *("+method.trl.steps_per_generation=2", "+hardware.trl.dataloader_num_workers=2"),
        *("hardware.per_device_prompts=2", "+method.trl.min_p=null"),
    )
    arguments = trl_arguments(GRPOConfig, config, RunFolder(tmp_path))
    for name, value in {**config.method.trl, **config.hardware.trl}.items():
        arrived = getattr(arguments, name)
        assert (name, arrived) == (name, value)
        assert isinstance(arrived, bool) == isinstance(value, bool)
    settings = adapter.lora_config(config, meta_model(config.model))
    assert settings
    assert (settings.r, settings.use_dora, settings.use_rslora) == (8, True, True)


def test_setting_that_hardware_derives_is_refused_when_arguments_are_made(
    composed: Compose, tmp_path: Path
) -> None:
    config = composed("+hardware.trl.optim=adamw_torch", "hardware.optimizer_states=8bit")
    with pytest.raises(ValueError, match=r"hardware\.trl\.optim is derived by medreason"):
        trl_arguments(GRPOConfig, config, RunFolder(tmp_path))
