"""From a configuration to a finished run folder: skip, resume or start the worker process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medreason import config as configuration
from medreason import data
from medreason.config import Config
from medreason.data import audit
from medreason.models import adapters, checkpoint
from medreason.replies import parse
from medreason.runs import key, ledger
from medreason.runs.ledger import Folder
from medreason.runs.progress import Display
from medreason.samples import Sample


@dataclass(frozen=True)
class Work:
    """What a configuration asks for: which run and which evaluation of it."""

    folder: Folder
    parts: dict[str, Any]
    train_key: str
    evaluation_key: str

    @property
    def finished(self) -> bool:
        state = self.folder.state()
        return state.trained and self.evaluation_key in state.evaluations


def plan(config: Config) -> Work:
    """Keys and folder of the configured work, after every check that needs no model.

    Raises:
        ValueError: data or model cannot be used, or a finished folder says something else.
    """
    checkpoint.check(config.model.path)
    adapters.check(config.model.path)
    samples = data.load(config.data, config.folder / "cache")
    trained_on, tested_on = data.trained_on(config, samples), data.tested_on(config, samples)
    _refuse_unusable(config, samples, trained_on, tested_on)
    parts = key.train_parts(
        config, data.digest(trained_on), checkpoint.fingerprint(config.model.path)
    )
    train_key = key.digest(parts)
    tested = data.digest([*tested_on, *data.read_for_prior(config, samples)])
    evaluation_key = key.digest(key.evaluation_parts(config, train_key, tested))
    folder = ledger.find(config.folder / "runs", config.run_name, train_key)
    _refuse_other_science(folder, parts)
    return Work(folder, parts, train_key, evaluation_key)


def _refuse_unusable(
    config: Config,
    samples: Sequence[Sample],
    trained_on: Sequence[Sample],
    tested_on: Sequence[Sample],
) -> None:
    """What can be known to fail before a model is loaded."""
    half_known = any("unknown" in sample.cell for sample in samples)
    hint = "; data.labels_from finds the other half of a cell" if half_known else ""
    if not tested_on:
        raise ValueError(
            f"no test samples in evaluation.modalities={config.evaluation.modalities} and "
            f"evaluation.tasks={config.evaluation.tasks}{hint}"
        )
    if config.method.algorithm == "none":
        return
    if len(trained_on) < config.method.prompts_per_step:
        raise ValueError(
            f"modality={config.modality.name} task={config.task.name}: {len(trained_on)} training "
            f"samples, fewer than method.prompts_per_step={config.method.prompts_per_step}; "
            f"choose another cell or a smaller step{hint}"
        )
    if checkpoint.is_adapter(config.model.path):
        raise ValueError(
            f"model.path={config.model.path!r} is an adapter: training goes on from a full model; "
            "merge it with PEFT's merge_and_unload and save that"
        )
    if config.method.algorithm == "grpo":
        _try_rewards(config, trained_on)


def _try_rewards(config: Config, samples: Sequence[Sample]) -> None:
    """Score one reply, so that a reward that cannot be given fails here and not in step 1."""
    poorest = min(samples, key=lambda sample: sample.explanation is not None)
    reply = parse("<think>?</think><answer>A</answer>", poorest.options)
    if poorest.explanation is None and any(r.judge == "reasoning" for r in config.reward.values()):
        raise ValueError(
            f"sample {poorest.id} of {poorest.source} has no explanation, which a judge of its "
            "reasoning needs; use a data set with explanations, or another reward"
        )
    for reward in (reward for reward in config.reward.values() if reward.score):
        configuration.call(reward.score, reply, poorest)


def _refuse_other_science(folder: Folder, parts: dict[str, Any]) -> None:
    """A folder found under a key must hold the work of that key."""
    recorded = folder.state().train_parts
    if recorded and (changed := list(key.differences(recorded, json.loads(json.dumps(parts))))):
        where, there, here = changed[0]
        raise ValueError(
            f"{folder.path / 'state.json'} says {where}={there!r}, this command {here!r}; "
            "the folder was edited or copied: move it away to run again"
        )


def run(config: Config) -> Work:
    """Do what is not done yet of the configured work.

    Raises:
        ValueError: bad input, refused before any training.
        RuntimeError: the worker process failed; the first line of its error and its log are named.
    """
    work = plan(config)
    display = Display(work.folder.path.name)
    with work.folder.locked() as ours:
        if not ours:
            raise ValueError(f"{work.folder.path} is being worked on by another process; skipped")
        state = work.folder.state()
        if state.sweeps.get(config.sweep) != work.evaluation_key:
            sweeps = state.sweeps | {config.sweep: work.evaluation_key}
            state = work.folder.update(sweeps=sweeps)
        if work.finished:
            if state.state != "done":  # another evaluation failed or was cut off since
                work.folder.update(state="done", error=None)
            display.line("done before; shown from its folder")
            return work
        if state.state == "failed" and not config.runs.retry_failed:
            raise ValueError(
                f"{work.folder.path} failed before ({state.error}); "
                "runs.retry_failed=true tries again"
            )
        _refuse_full_disk(config)
        if state.attempts and not state.trained:
            display.line("resumed" if any(work.folder.checkpoints.glob("*")) else "started again")
        configuration.write(config, work.folder.config)
        _write_data(config, work.folder)
        work.folder.update(
            state="running",
            train_key=work.train_key,
            train_parts=work.parts,
            attempts=state.attempts + 1,
            error=None,
        )
        _work(config, work, display)
    return work


def _write_data(config: Config, folder: Folder) -> None:
    """What the run trains and tests on, with the audit's warnings, for its table and MLflow."""
    samples = data.load(config.data, config.folder / "cache")
    train, test = data.trained_on(config, samples), data.tested_on(config, samples)
    ledger.write_json(folder.data, audit.of_run(train, test))


def _work(config: Config, work: Work, display: Display) -> None:
    """Start the worker, show its progress, and leave the folder done or failed."""
    with work.folder.log.open("a") as log:
        process = subprocess.Popen(
            _command(config, work),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(config),
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                display.show(work.folder.progress)
                time.sleep(0.1)
        finally:
            if process.poll() is None:  # interrupted: Ctrl-C, a signal, an error of our own
                _stop(process)
                work.folder.update(state="failed", error="interrupted")
            display.clear()
            work.folder.progress.unlink(missing_ok=True)
    if process.returncode:
        error = work.folder.state().error or _how_it_died(process.returncode)
        work.folder.update(state="failed", error=error)
        raise RuntimeError(f"{work.folder.path.name}: {error} (see {work.folder.log})")


def _command(config: Config, work: Work) -> list[str]:
    worker = ["-m", "medreason.runs.worker", str(work.folder.path), work.evaluation_key]
    if config.hardware.devices == 1:
        return [sys.executable, *worker]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--no-python"]
    return [
        *(sys.executable, *torchrun, f"--nproc-per-node={config.hardware.devices}"),
        *(sys.executable, *worker),
    ]


def _environment(config: Config) -> dict[str, str]:
    threads = config.hardware.threads or max((os.cpu_count() or 1) // config.hardware.devices, 1)
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "MEDREASON_PARENT": str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        **({"CUDA_VISIBLE_DEVICES": ""} if config.hardware.accelerator == "cpu" else {}),
    }


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the worker and all its ranks."""
    for deadly in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, deadly)
            process.wait(timeout=10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _how_it_died(returncode: int) -> str:
    if returncode == -signal.SIGKILL:
        return "the worker was killed (SIGKILL); out of memory is the usual cause"
    if returncode < 0:
        return f"the worker died of {signal.Signals(-returncode).name}"
    return f"the worker ended with exit code {returncode}"


def _refuse_full_disk(config: Config) -> None:
    """Weights, two checkpoints with optimizer states, and room for the rest."""
    if config.method.algorithm == "none":
        return
    needed = 100 * 2**20 + 8 * checkpoint.size_on_disk(config.model.path)
    free = shutil.disk_usage(_existing(config.folder)).free
    if free < needed:
        raise ValueError(
            f"outputs={config.outputs}: {free / 2**30:.1f} GiB free, about {needed / 2**30:.1f} "
            "GiB needed for checkpoints; free some space or set outputs=... to another disk"
        )


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)
