"""Checkpoints that any cut of the work can read, and that are whole or not there."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import TrainerState
from trl.trainer.utils import RepeatSampler

from medreason.runs.files import atomic_folder, read_json, write_json
from medreason.runs.run_folder import RunFolder

SEAL = "whole.json"
KEPT = 2
"""The last ones; the best one is kept beside them."""

_PACKAGES = ("trl", "transformers", "torch", "peft")
_EXACT = ("trl", "transformers")
"""Packages whose other version reads rows or states in another way."""
_ENDS = 1 << 20


class Portable:
    """What a Trainer of transformers 5.23 lacks, mixed into both of ours.

    Overrides: `_save_checkpoint` (written aside, sealed, renamed), `_save` (FSDP gathers a tied
    weight once for each of its names), `train` and `_load_from_checkpoint` (by the names they were
    saved under; FSDP's before they are cut), `_get_train_sampler` (TRL's RepeatSampler orders all
    epochs from one stream, which a resume would begin anew), and `_save_optimizer_and_scheduler`
    and `_load_optimizer_and_scheduler` (FSDP writes and reads the optimizer of one process).
    DeepSpeed keeps its own format and its number of processes.
    """

    # transformers leaves these open.
    accelerator: Any
    args: Any
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool
    lr_scheduler: Any
    model: Any
    optimizer: Any
    state: Any

    _epochs_before = 0

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **more: Any) -> Any:  # noqa: ANN401
        if resume_from_checkpoint:
            before = TrainerState.load_from_json(f"{resume_from_checkpoint}/trainer_state.json")
            self._epochs_before = int((before.epoch or 0.0) + 1e-6)
        if resume_from_checkpoint and self.is_fsdp_enabled:
            self._read_weights(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **more)  # pyright: ignore[reportAttributeAccessIssue]

    def _get_train_sampler(self, *args: Any, **more: Any) -> Any:  # noqa: ANN401
        sampler = super()._get_train_sampler(*args, **more)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(sampler, RepeatSampler):
            for _ in range(self._epochs_before):
                next(iter(sampler))  # draws the order of an epoch
        return sampler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ANN401
        if not self.is_fsdp_enabled:
            self._read_weights(resume_from_checkpoint)

    def _read_weights(self, checkpoint: str) -> None:
        """Into the whole model.

        transformers saves full weights under the names of the hub, which are not those in memory,
        and reads them with `strict=False`: a resumed run would go on from its start weights.
        """
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(checkpoint, "default", is_trainable=True)
            return
        read = type(self.model).from_pretrained(checkpoint, dtype=self.model.dtype)
        self.model.load_state_dict(read.state_dict())

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        for copy, original in self.model.all_tied_weights_keys.items():
            if state_dict and copy in state_dict and original in state_dict:
                state_dict[copy] = state_dict[original]
        super()._save(output_dir, state_dict)  # pyright: ignore[reportAttributeAccessIssue]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401
        name, place = f"checkpoint-{self.state.global_step}", Path(self.args.output_dir)
        main_process = self.args.should_save
        with atomic_folder(place / name, main_process=main_process, replace=True) as unfinished:
            self.accelerator.wait_for_everyone()
            self.args.output_dir = str(unfinished.parent)
            try:
                super()._save_checkpoint(model, trial)  # pyright: ignore[reportAttributeAccessIssue]
            finally:
                self.args.output_dir = str(place)
            self.accelerator.wait_for_everyone()
            if main_process:
                seal(
                    unfinished,
                    train_key=RunFolder(place.parent).state().train_key,
                    score=_score(self.state),
                    processes=self.accelerator.num_processes,
                    deepspeed=self.is_deepspeed_enabled,
                )
        if main_process:
            drop_old(place)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)  # pyright: ignore[reportAttributeAccessIssue]
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found = get_optimizer_state_dict(self.model, self._optimizer, options=whole)
        if self.args.should_save:
            torch.save(_numbered(found), Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")
        return None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            return super()._load_optimizer_and_scheduler(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        read, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in ("optimizer.pt", "scheduler.pt")
        )
        whole = StateDictOptions(full_state_dict=True)
        names: Any = get_optimizer_state_dict(self.model, self._optimizer)["param_groups"]
        set_optimizer_state_dict(self.model, self._optimizer, _named(read, names), options=whole)
        self.lr_scheduler.load_state_dict(schedule)
        return None

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        """Below accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)


def _numbered(named: dict[str, Any]) -> dict[str, Any]:
    """torch's optimizer state by names as `Optimizer.state_dict` has it, by numbers."""
    names = [name for group in named["param_groups"] for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    groups = [
        {**group, "params": [number[name] for name in group["params"]]}
        for group in named["param_groups"]
    ]
    return {"state": {number[n]: s for n, s in named["state"].items()}, "param_groups": groups}


def _named(numbered: dict[str, Any], names: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The way back; `names` are the groups of the optimizer that is to take the state."""
    name = [name for group in names for name in group["params"]]
    groups = [
        {**group, "params": [name[i] for i in group["params"]]}
        for group in numbered["param_groups"]
    ]
    return {"state": {name[i]: s for i, s in numbered["state"].items()}, "param_groups": groups}


def seal(
    checkpoint: Path, *, train_key: str, score: float | None, processes: int, deepspeed: bool
) -> None:
    """Note what a finished checkpoint holds and who wrote it."""
    files = {
        str(path.relative_to(checkpoint)): _mark(path)
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


def last(folder: RunFolder, *, processes: int, deepspeed: bool) -> Path | None:
    """The newest whole checkpoint; a torn one is named and passed over.

    Raises:
        ValueError: it was written by another run, by other versions, or by DeepSpeed for other
            processes.
    """
    for path in reversed(_in_order(folder.checkpoints)):
        if not is_whole(path):
            print(f"{path}: torn; the one before it is used")  # noqa: T201
            continue
        _refuse_other(path, folder.state().train_key, processes, deepspeed)
        return path
    return None


def is_whole(checkpoint: Path) -> bool:
    """By size and both ends of each file."""
    try:
        files = read_json(checkpoint / SEAL)["files"]
        return bool(files) and all(_mark(checkpoint / name) == mark for name, mark in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _refuse_other(checkpoint: Path, train_key: str, processes: int, deepspeed: bool) -> None:
    written, versions = read_json(checkpoint / SEAL), _versions()
    if (theirs := written["train_key"]) != train_key:
        raise ValueError(
            f"{checkpoint} was written by the run of train key {theirs}, this one has {train_key}: "
            "another model, method or data; put it back, or delete it to train from the start"
        )
    again = "; or delete the folder to train from the start"
    for package in _EXACT:
        if written["packages"][package] != versions[package]:
            raise ValueError(
                f"{checkpoint} was written by {package} {written['packages'][package]}, installed "
                f"is {versions[package]}; install that version to go on{again}"
            )
    if written["deepspeed"] != deepspeed:
        theirs = "DeepSpeed" if written["deepspeed"] else "a run without DeepSpeed"
        raise ValueError(
            f"{checkpoint} was written by {theirs}, whose optimizer states the other cannot read; "
            f"choose the hardware it was trained on{again}"
        )
    if deepspeed and written["processes"] != processes:
        raise ValueError(
            f"{checkpoint} is DeepSpeed's for {written['processes']} processes, this run has "
            f"{processes}; choose hardware with {written['processes']}, or train with "
            f"hardware.parallel=fsdp, whose checkpoints any number reads{again}"
        )


def _in_order(place: Path) -> list[Path]:
    return sorted(place.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def drop_old(place: Path) -> None:
    """All but the last ones and the one behind the best steps."""
    found = _in_order(place)
    scores = {path: score for path in found if (score := _read_score(path)) is not None}
    best = max(scores, key=lambda path: scores[path], default=None)
    for path in found[:-KEPT]:
        if path != best:
            shutil.rmtree(path)


def _read_score(checkpoint: Path) -> float | None:
    try:
        return read_json(checkpoint / SEAL)["score"]
    except (OSError, ValueError, KeyError):
        return None


def _score(state: Any) -> float | None:  # noqa: ANN401
    """Mean reward, else minus the mean loss, of the steps since the checkpoint before."""
    rows = [r for r in state.log_history if "loss" in r][-max(int(state.save_steps or 1), 1) :]
    if not rows:
        return None
    values = [row["reward"] if "reward" in row else -row["loss"] for row in rows]
    return sum(values) / len(values)


def _mark(path: Path) -> str:
    """Size and a digest of both ends: whole files of many gigabytes are too slow to read."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as stream:
        digest.update(stream.read(_ENDS))
        stream.seek(max(size - _ENDS, 0))
        digest.update(stream.read(_ENDS))
    return f"{size}-{digest.hexdigest()[:16]}"


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in _PACKAGES}
