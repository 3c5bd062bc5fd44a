"""Checkpoints that are complete or absent, and that a run with another number of processes reads.

Where a checkpoint goes, from its first file to a resume:
    checkpoints/.checkpoint-40.unfinished/    written here, file by file
            seal()                            + seal.json: sizes, digests, train key, versions
            rename                            one atomic step, behind a barrier of all ranks
    checkpoints/checkpoint-40/                `newest` finds it, checks its seal and its origin
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer_utils import TrainOutput
from trl.trainer.utils import RepeatSampler

from medreason.console import notice
from medreason.generation.drafts import DraftHistory
from medreason.models.load import without_adapter
from medreason.runs.files import atomic_folder, read_json, write_json
from medreason.runs.run_folder import RunFolder
from medreason.training import optimizer_states, selection
from medreason.training.optimizer_states import OptimizerState
from medreason.training.validation import Validator

SEAL = "seal.json"
_PACKAGES = ("trl", "transformers", "torch", "peft")
_SAME_VERSION = ("trl", "transformers")
"""Another version of these may order the rows or name the states in another way."""
_DIGESTED_BYTES = 1 << 20


class PortableCheckpoints(Trainer):
    """Mixed into both trainers; mends what the checkpoints of transformers 5.23 and TRL 1.16 lack.

    - `_save_checkpoint`: transformers writes into the final folder, so a killed run leaves a folder
      that looks like a checkpoint. Here: written aside, sealed, renamed.
    - `_save`: FSDP gathers a tied weight as two tensors, and `save_pretrained` would write both.
    - `_load_from_checkpoint`, `train`: transformers matches no saved name and says nothing
      (`_load_weights`). Under FSDP, weights must be loaded before `train` shards them.
    - `train`, `_save_checkpoint` keep what drafts are guessed from: with other guesses the same
      tokens come in other passes, which round otherwise. `num_tokens` of TRL's SFT goes on, too.
    - `_get_train_sampler`: TRL's RepeatSampler draws the orders of all epochs from one generator,
      which a resumed run would start anew: epoch 3 would repeat the order of epoch 1.
    - `_save_optimizer_and_scheduler`, `_load_optimizer_and_scheduler`: FSDP's own format needs the
      same number of processes. Here: gathered into the format of a single process. Moments written
      with another `hardware.optimizer_states` are converted; transformers loads them as they are,
      and the first step finds none.

    DeepSpeed keeps its own format and its number of processes.
    """

    # Trainer assigns these under wider types.
    model: PreTrainedModel | PeftModel
    optimizer: Optimizer
    lr_scheduler: LRScheduler

    _finished_epochs = 0

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        if isinstance(resume_from_checkpoint, str):
            state = TrainerState.load_from_json(f"{resume_from_checkpoint}/trainer_state.json")
            # `epoch` is a sum of fractions: 2.9999999 stands for the end of the third epoch.
            self._finished_epochs = int((state.epoch or 0.0) + 1e-6)
            self._load_drafts(Path(resume_from_checkpoint))
            counts = [row["num_tokens"] for row in state.log_history if "num_tokens" in row]
            self._total_train_tokens = counts[-1] if counts else 0
            if self.is_fsdp_enabled:
                self._load_weights(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    @property
    def _histories(self) -> list[DraftHistory]:
        """What rollouts and validations of this process draft from."""
        validators = [c for c in self.callback_handler.callbacks if isinstance(c, Validator)]
        histories = [getattr(each, "drafts", None) for each in (self, *validators)]
        return [history for history in histories if history]

    def _save_drafts(self, checkpoint: Path) -> None:
        if histories := self._histories:
            torch.save([each.state_dict() for each in histories], checkpoint / self._drafts_file)

    def _load_drafts(self, checkpoint: Path) -> None:
        file, processes = checkpoint / self._drafts_file, read_json(checkpoint / SEAL)["processes"]
        if not file.exists() or processes != self.accelerator.num_processes:
            return  # begun anew: it costs passes, and changes no token but by rounding
        try:
            states = torch.load(file, weights_only=True)
            for history, state in zip(self._histories, states, strict=True):
                history.load_state_dict(state)
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, UnpicklingError):
            notice(f"{file}: not of this version; drafts are guessed anew")

    @property
    def _drafts_file(self) -> str:
        return f"drafts-{self.accelerator.process_index}.pt"

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        sampler = super()._get_train_sampler(*args, **kwargs)
        assert sampler is not None  # it is for data sets without a length
        if isinstance(sampler, RepeatSampler):
            for _ in range(self._finished_epochs):
                # Draws the order of a whole epoch, and so advances the generator.
                next(iter(sampler))
        return sampler

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not self.is_fsdp_enabled:  # else loaded by `train`, before the weights were sharded
            self._load_weights(resume_from_checkpoint)

    def _load_weights(self, checkpoint: str) -> None:
        """Load into the unsharded model."""
        # `save_pretrained` renames weights to the names on the hub, which are not those in memory
        # (Qwen2-VL: `model.layers` and `model.language_model.layers`). transformers' own resume
        # reads the file with `strict=False`, matches nothing, and would go on from the start
        # weights with the moments of trained ones. `from_pretrained` maps the names back.
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(checkpoint, "default", is_trainable=True)
            return
        saved = type(self.model).from_pretrained(checkpoint, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        for tied, original in without_adapter(self.model).all_tied_weights_keys.items():
            if state_dict and tied in state_dict and original in state_dict:
                # One tensor under both names: `save_pretrained` knows tied weights by storage.
                state_dict[tied] = state_dict[original]
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        assert self.args.output_dir is not None
        name, folder = f"checkpoint-{self.state.global_step}", Path(self.args.output_dir)
        main_process = self.args.should_save
        with atomic_folder(folder / name, main_process=main_process, replace=True) as unfinished:
            self.accelerator.wait_for_everyone()
            # transformers derives the folder from `args.output_dir` and offers no other way.
            self.args.output_dir = str(unfinished.parent)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(folder)
            self._save_drafts(unfinished)
            # Each rank writes its random state, DeepSpeed its part of the optimizer too: the seal
            # lists files, so all of them must be there.
            self.accelerator.wait_for_everyone()
            callbacks = self.callback_handler.callbacks
            validates = any(isinstance(callback, Validator) for callback in callbacks)
            if main_process:
                seal(
                    unfinished,
                    train_key=RunFolder(folder.parent).state().train_key,
                    score=_score(self.state, validates=validates),
                    processes=self.accelerator.num_processes,
                    deepspeed=self.is_deepspeed_enabled,
                )
        if main_process:
            drop_old(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        # Gathering is a collective: every rank takes part, though one alone writes.
        gather = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self.model, self._torch_optimizer, options=gather)
        if self.args.should_save:
            torch.save(_keyed_by_number(state), Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")
        return None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            return super()._load_optimizer_and_scheduler(checkpoint)
        fsdp, optimizer = self.is_fsdp_enabled, self._torch_optimizer
        file, to_8bit = Path(checkpoint) / "optimizer.pt", self.args.optim == "adamw_bnb_8bit"
        # Mapped, gigabytes are read only where they are converted, tensor by tensor.
        saved = torch.load(file, map_location="cpu", mmap=not fsdp, weights_only=True)
        if not fsdp and optimizer_states.in_8bit(saved) == to_8bit:
            return super()._load_optimizer_and_scheduler(checkpoint)
        if fsdp:
            groups: Any = get_optimizer_state_dict(self.model, optimizer)["param_groups"]
            set_optimizer_state_dict(
                self.model,
                optimizer,
                _keyed_by_name(optimizer_states.in_float32(saved, groups), groups),
                options=StateDictOptions(full_state_dict=True),
            )
        elif to_8bit:
            optimizer_states.load_in_8bit(optimizer, saved)
        else:
            groups = optimizer.param_groups
            self.optimizer.load_state_dict(optimizer_states.in_float32(saved, groups))
        schedule = torch.load(file.with_name("scheduler.pt"), weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)
        return None

    @property
    def _torch_optimizer(self) -> Optimizer:
        """The optimizer inside accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)


# torch's distributed functions key the state by parameter name, `Optimizer.state_dict` by the
# parameter's number, counted over all groups. Files hold numbers, which a single process reads.


def _keyed_by_number(state: OptimizerState) -> OptimizerState:
    names = [name for group in state["param_groups"] for name in group["params"]]
    return _rekeyed(state, {name: number for number, name in enumerate(names)})


def _keyed_by_name(state: OptimizerState, groups: Sequence[Mapping[str, Any]]) -> OptimizerState:
    """`groups` are the `param_groups` by name of the optimizer that will load the state."""
    return _rekeyed(state, dict(enumerate(name for group in groups for name in group["params"])))


def _rekeyed(state: OptimizerState, key: Mapping[Any, Any]) -> OptimizerState:
    groups = [
        {**group, "params": [key[parameter] for parameter in group["params"]]}
        for group in state["param_groups"]
    ]
    return {"state": {key[p]: s for p, s in state["state"].items()}, "param_groups": groups}


def seal(
    checkpoint: Path, *, train_key: str, score: float | None, processes: int, deepspeed: bool
) -> None:
    """Write into a complete checkpoint which files it holds and which run wrote it."""
    files = {
        str(path.relative_to(checkpoint)): _fingerprint(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    written = {
        "files": files,
        "train_key": train_key,
        "packages": _versions(),
        "processes": processes,
        "deepspeed": deepspeed,
        "score": score,
    }
    write_json(checkpoint / SEAL, written)


def newest(folder: RunFolder, *, processes: int, deepspeed: bool) -> Path | None:
    """The newest intact checkpoint; a damaged one is reported and the one before it is taken.

    Raises:
        ValueError: another run wrote it, or other versions, or DeepSpeed for another number of
            processes.
    """
    for path in reversed(_in_order(folder.checkpoints)):
        if not is_intact(path):
            notice(f"{path}: incomplete or damaged; using the checkpoint before it")
            continue
        _refuse_foreign(path, folder.state().train_key, processes, deepspeed)
        return path
    return None


def is_intact(checkpoint: Path) -> bool:
    """Whether every file of the seal has its size and the digest of its first and last MiB."""
    try:
        files = read_json(checkpoint / SEAL)["files"]
        return bool(files) and all(
            _fingerprint(checkpoint / name) == fingerprint for name, fingerprint in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _refuse_foreign(checkpoint: Path, train_key: str, processes: int, deepspeed: bool) -> None:
    written, installed = read_json(checkpoint / SEAL), _versions()
    if written["train_key"] != train_key:
        raise ValueError(
            f"{checkpoint} was written by the run of train key {written['train_key']}, this one "
            f"has {train_key}: another model, method or data; put it back, or delete it to train "
            "from the start"
        )
    restart = "; or delete the folder to train from the start"
    for package in _SAME_VERSION:
        if written["packages"][package] != installed[package]:
            raise ValueError(
                f"{checkpoint} was written by {package} {written['packages'][package]}, installed "
                f"is {installed[package]}; install that version to resume{restart}"
            )
    if written["deepspeed"] != deepspeed:
        writer = "DeepSpeed" if written["deepspeed"] else "a run without DeepSpeed"
        raise ValueError(
            f"{checkpoint} was written by {writer}, whose optimizer states the other cannot read; "
            f"choose the hardware it was trained on{restart}"
        )
    if deepspeed and written["processes"] != processes:
        raise ValueError(
            f"{checkpoint} is DeepSpeed's for {written['processes']} processes, this run has "
            f"{processes}; choose hardware with {written['processes']}, or train with "
            f"hardware.parallel=fsdp, whose checkpoints any number reads{restart}"
        )


def _in_order(checkpoints: Path) -> list[Path]:
    return sorted(
        checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])
    )


def drop_old(checkpoints: Path) -> None:
    """Delete all but two: the newest, and the earliest of those with the best score, or where that
    is the newest the one before it. Of the 2B each takes 27 GB; `execution.disk` counts them."""
    paths = _in_order(checkpoints)
    scores = {path: score for path in paths if (score := _read_score(path)) is not None}
    best = max(scores, key=lambda path: scores[path], default=None)
    second = best if best not in (None, paths[-1]) else next(iter(paths[-2:-1]), None)
    for path in paths[:-1]:
        if path != second:
            shutil.rmtree(path)


def copy_weights(checkpoint: Path, folder: Path) -> None:
    """Copy to `folder` what `save_model` wrote into a checkpoint: weights, settings, processor.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    if not is_intact(checkpoint):
        raise ValueError(
            f"{checkpoint} holds the chosen weights and is incomplete or damaged; delete "
            f"{checkpoint.parent} and re-run the same command to train again"
        )
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(*_OF_TRAINING))


_OF_TRAINING = (
    *(SEAL, "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json"),
    "drafts-*.pt",
    *("global_step*", "latest", "zero_to_fp32.py"),  # DeepSpeed's
)
"""Files of a checkpoint that a model has no use for."""


def _read_score(checkpoint: Path) -> float | None:
    try:
        return read_json(checkpoint / SEAL)["score"]
    except (OSError, ValueError, KeyError):
        return None


def _score(state: TrainerState, *, validates: bool) -> float | None:
    """Of a run that `validates`, this step's accuracy, none where it was not validated; else mean
    reward, or minus the mean loss, of the steps since the checkpoint before."""
    if validates:  # beside an accuracy a reward of 1.4 would be the best of all
        return selection.scores(state.log_history).get(state.global_step)
    steps = max(int(state.save_steps or 1), 1)
    rows = [row for row in state.log_history if "loss" in row][-steps:]
    name, sign = ("reward", 1) if any("reward" in row for row in rows) else ("loss", -1)
    # TRL 1.16 logs None for the mean of nothing.
    values = [row[name] for row in rows if row.get(name) is not None]
    return sign * statistics.fmean(values) if values else None


def _fingerprint(path: Path) -> str:
    """Size and a digest of the first and the last MiB."""
    # Not of the whole file: reading tens of gigabytes back would stop training for minutes. What
    # goes wrong in practice, a write that was cut off or a file of another run, shows here.
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as stream:
        digest.update(stream.read(_DIGESTED_BYTES))
        stream.seek(max(size - _DIGESTED_BYTES, 0))
        digest.update(stream.read(_DIGESTED_BYTES))
    return f"{size}-{digest.hexdigest()[:16]}"


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in _PACKAGES}
