"""What both trainers take: our configuration in TRL's words, and the rows they read."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any

from accelerate import DistributedType, PartialState
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medreason import config as configuration
from medreason.config import Config, Hardware
from medreason.data import options
from medreason.data.images import open_rgb
from medreason.prompts import TrainingPrompt, training_prompt
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample


def arguments(kind: type, config: Config, folder: RunFolder, **derived: object) -> Any:  # noqa: ANN401
    """`kind` is trl.SFTConfig or trl.GRPOConfig.

    Raises:
        ValueError: `method.trl` or `hardware.trl` names a field TRL does not have or we derive.
    """
    cpu = config.hardware.accelerator == "cpu"
    ours: dict[str, Any] = {
        "output_dir": str(folder.checkpoints),
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": cpu,
        "bf16": config.hardware.precision == "bfloat16",
        "gradient_checkpointing": config.hardware.gradient_checkpointing,
        "gradient_accumulation_steps": config.accumulation,
        "remove_unused_columns": False,
        "report_to": "none",  # the recorder writes metrics.jsonl, tracking shows it in MLflow
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": config.runs.checkpoint_steps,
        "dataloader_pin_memory": not cpu,
        **_parallel(config.hardware),
        **derived,
    }
    drawn_by_vllm = config.method.algorithm == "grpo" and config.rollout.name == "vllm"
    given = {
        "method.trl": config.method.trl,
        "hardware.trl": config.hardware.trl,
        "rollout.vllm": {"use_vllm": True, **config.rollout.vllm} if drawn_by_vllm else {},
    }
    for key, theirs in given.items():
        _check(key, theirs, kind, ours)
    built = kind(**ours, **{name: value for part in given.values() for name, value in part.items()})
    if cpu and config.hardware.parallel == "fsdp":
        # accelerate 1.15, whose state these arguments have just made anew, offers FSDP to
        # accelerators alone; torch's works over gloo as well.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return built


def _parallel(hardware: Hardware) -> dict[str, Any]:
    """How processes share the work, and what the optimizer holds its states in."""
    found: dict[str, Any] = {}
    if hardware.processes > 1:
        found["ddp_backend"] = "gloo" if hardware.accelerator == "cpu" else "nccl"
    if hardware.optimizer_states == "8bit":
        found["optim"] = "adamw_bnb_8bit"  # bitsandbytes; embeddings keep states in float32
    if hardware.parallel == "fsdp":
        found["fsdp"] = True
        found["fsdp_config"] = {"version": 2, "cpu_offload": hardware.offload}
        if hardware.gradient_checkpointing:
            found["gradient_checkpointing"] = False
            found["fsdp_config"]["activation_checkpointing"] = True
    if hardware.parallel in ("zero2", "zero3"):
        found["deepspeed"] = _deepspeed(hardware)
    return found


def _deepspeed(hardware: Hardware) -> dict[str, Any]:
    """DeepSpeed's own configuration; `auto` is filled in by transformers from its arguments."""
    offload = {"device": "cpu" if hardware.offload else "none"}
    zero: dict[str, Any] = {"stage": int(hardware.parallel[-1]), "offload_optimizer": offload}
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


def _check(key: str, theirs: dict[str, Any], kind: type, ours: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in theirs:
        if name in ours:
            raise ValueError(f"{key}.{name} is derived by medreason ({ours[name]!r}); remove it")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{key}.{name} is not a field of trl.{kind.__name__}{hint}")


class EpochCounter(TrainerCallback):
    """The number of the epoch that is trained, for what is drawn anew in each."""

    def __init__(self) -> None:
        self.number = 0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.number = int(state.epoch or 0)


def sample_in_epoch(config: Config, sample: Sample, epoch: int) -> Sample:
    """The sample as it is asked in an epoch: `data.options=shuffled` turns the options in each."""
    handling, _ = configuration.handling(config.data)
    if handling.options != "shuffled" or epoch == 0:  # the first order is the one loaded
        return sample
    return options.shuffled(sample, handling.seed, epoch)


def prompt_in_epoch(config: Config, sample: Sample, epoch: EpochCounter) -> TrainingPrompt:
    """The prompt of a sample, as `asked`, in this epoch; the same for both trainers."""
    return training_prompt(
        sample,
        config.prompt.training,
        seed=config.seed,
        epoch=epoch.number,
        open_template=config.prompt.open,
    )


def rows(samples: Sequence[Sample], columns: Callable[[Sample], dict[str, Any]]) -> Dataset:
    """A data set with the columns of each sample, its place in `samples`, and its image.

    Columns and image are made when a row is read: nothing is held in memory, and a prompt can
    differ from epoch to epoch.
    """
    table = Dataset.from_list([{"sample": i} for i in range(len(samples))])

    def read(batch: dict[str, list]) -> dict[str, list]:
        made = [columns(samples[i]) for i in batch["sample"]]
        images = {i: open_rgb(samples[i].image) for i in set(batch["sample"])}  # GRPO repeats rows
        return {
            **{name: [row[name] for row in made] for name in made[0]},
            **batch,
            "image": [images[i] for i in batch["sample"]],
        }

    return table.with_transform(read)
