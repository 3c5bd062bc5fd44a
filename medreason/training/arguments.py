"""What both trainers take: TRL's arguments from our configuration, and the rows of the data set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from accelerate import DistributedType, PartialState
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, SFTConfig  # pyright: ignore[reportPrivateImportUsage]

from medreason import config as configuration
from medreason.config import Config, Hardware
from medreason.data import options
from medreason.data.images import open_rgb
from medreason.models import device
from medreason.prompts import TrainingPrompt, fill, training_prompt
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample

TRLConfig = TypeVar("TRLConfig", SFTConfig, GRPOConfig)


def trl_arguments(
    kind: type[TRLConfig], config: Config, folder: RunFolder, **derived: Any
) -> TRLConfig:
    """TRL's arguments: those medreason derives, and those `*.trl` of the configuration adds.

    Raises:
        ValueError: `method.trl`, `hardware.trl` or `rollout.vllm` names a field that medreason
            derives for this hardware; `config.trainer_settings` has checked the others.
    """
    on_cpu = config.hardware.accelerator == "cpu"
    derived = {
        "output_dir": str(folder.checkpoints),
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": on_cpu,
        "bf16": config.hardware.precision == "bfloat16",
        "gradient_checkpointing": config.hardware.recomputes,
        # The experiment fixes prompts_per_step; the hardware profile only cuts it, so the same
        # experiment takes the same optimizer steps on any machine.
        "gradient_accumulation_steps": config.accumulation,
        "remove_unused_columns": False,  # rewards read `sample` and `epoch`
        "report_to": "none",  # the recorder writes metrics.jsonl, tracking shows it in MLflow
        "disable_tqdm": True,
        "logging_steps": 1,
        # By default transformers logs the mean of earlier losses in place of a NaN, and hides it.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": config.runs.checkpoint_steps,
        "dataloader_pin_memory": not on_cpu,
        "ddp_timeout": round(device.timeout(config.hardware).total_seconds()),
        **_parallel(config.hardware),
        **derived,
    }
    with_vllm = config.method.algorithm == "grpo" and config.rollout.name == "vllm"
    configured = {
        "method.trl": config.method.trl,
        "hardware.trl": config.hardware.trl,
        "rollout.vllm": {"use_vllm": True, **config.rollout.vllm} if with_vllm else {},
    }
    for key, values in configured.items():
        _refuse_derived(key, values, derived)
    added = {name: value for values in configured.values() for name, value in values.items()}
    arguments = kind(**derived, **added)
    if on_cpu and config.hardware.parallel == "fsdp":
        # Building the arguments has just reset accelerate's state, and accelerate 1.15 enables
        # FSDP on accelerators alone. torch's FSDP runs over gloo too, which is how tests on a CPU
        # cover it: with MULTI_GPU in place of MULTI_CPU accelerate takes the plugin.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return arguments


def _parallel(hardware: Hardware) -> dict[str, object]:
    """Arguments for the processes of a run, and for the optimizer's states."""
    arguments: dict[str, object] = {}
    if hardware.processes > 1:
        arguments["ddp_backend"] = device.backend(hardware)
    if hardware.optimizer_states == "8bit":
        arguments["optim"] = "adamw_bnb_8bit"  # bitsandbytes; embeddings keep float32 states
    if hardware.parallel == "fsdp":
        fsdp: dict[str, object] = {"version": 2, "cpu_offload": hardware.offload}
        if hardware.recomputes:
            # The training argument would gather each layer's weights once more in backward.
            arguments["gradient_checkpointing"] = False
            fsdp["activation_checkpointing"] = True
        arguments |= {"fsdp": True, "fsdp_config": fsdp}
    if hardware.parallel in ("zero2", "zero3"):
        arguments["deepspeed"] = _deepspeed(hardware)
    return arguments


def _deepspeed(hardware: Hardware) -> dict[str, object]:
    """DeepSpeed's own configuration; transformers fills in each `auto` from its arguments."""
    offload = {"device": "cpu" if hardware.offload else "none"}
    zero: dict[str, object] = {"stage": int(hardware.parallel[-1]), "offload_optimizer": offload}
    if hardware.parallel == "zero3":
        zero |= {"offload_param": offload, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def _refuse_derived(key: str, values: Mapping[str, object], derived: Mapping[str, object]) -> None:
    for name in values:
        if name in derived:
            raise ValueError(f"{key}.{name} is derived by medreason ({derived[name]!r}); remove it")


class EpochCounter(TrainerCallback):
    """The number of the current epoch, for prompts and option orders that differ by epoch."""

    def __init__(self) -> None:
        self.number = 0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.number = int(state.epoch or 0)


def sample_in_epoch(config: Config, sample: Sample, epoch: int) -> Sample:
    """The sample as an epoch shows it: `data.options=shuffled` reorders the options each time."""
    handling, _ = configuration.handling(config.data)
    if handling.options != "shuffled" or epoch == 0:  # loading has shuffled them for epoch 0
        return sample
    return options.shuffled(sample, handling.seed, epoch)


def prompt_in_epoch(config: Config, sample: Sample, epoch: EpochCounter) -> TrainingPrompt:
    """The prompt of a sample from `sample_in_epoch`; the same for both trainers."""
    return training_prompt(
        sample,
        config.prompt.training,
        seed=config.seed,
        epoch=epoch.number,
        open_template=config.prompt.open,
    )


def longest_prompt(config: Config, sample: Sample) -> str:
    """The longest of the prompts that the epochs can show."""
    if config.prompt.open and not sample.options:
        return fill(config.prompt.open, sample)
    wordings = itertools.chain.from_iterable(config.prompt.training.values())
    return fill(max(wordings, key=len), sample)


def lazy_rows(samples: Sequence[Sample], columns: Callable[[Sample], dict[str, Any]]) -> Dataset:
    """A data set of each sample's columns, its place in `samples` (`sample`) and its image.

    Columns and image are made when a row is read: no image is held in memory, and a prompt can
    differ from epoch to epoch.
    """
    table = Dataset.from_list([{"sample": i} for i in range(len(samples))])

    def read(batch: dict[str, list]) -> dict[str, list]:
        rows = [columns(samples[i]) for i in batch["sample"]]
        # GRPO reads a row once for each of its completions: decode its image file once.
        images = {i: open_rgb(samples[i].image, samples[i].window) for i in set(batch["sample"])}
        return {
            **{name: [row[name] for row in rows] for name in rows[0]},
            **batch,
            "image": [images[i] for i in batch["sample"]],
        }

    return table.with_transform(read)
