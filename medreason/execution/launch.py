"""From a configuration to a finished run folder. `run` tells the story; its steps follow in order.

The launcher decides, holds the run folder and its GPUs, and starts the worker process, which trains
and evaluates (`worker`). Nothing here loads torch.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from medreason import config as configuration
from medreason import data
from medreason.config import Config, machine
from medreason.data import audit
from medreason.execution import gpu_slots, slurm, worker_process
from medreason.execution.request import RunRequest, run_request
from medreason.execution.slurm import Rendezvous
from medreason.judging import grade
from medreason.models import model_folder
from medreason.runs import integrity
from medreason.runs.files import atomic, free_bytes, remove_unfinished, write_json
from medreason.runs.outcomes import BusyError
from medreason.runs.progress import Display
from medreason.runs.run_folder import State

_POLL_SECONDS = 1.0


def run(config: Config, label: str = "") -> tuple[RunRequest, bool]:
    """Train and evaluate what is not done yet; gives the request and whether anything was left.

    `label` names a job of a sweep in each line that is shown, in place of the run folder.

    Raises:
        NoDataError: the cell has no data.
        BusyError: another process is at it.
        ValueError: bad input, refused before any training.
        RuntimeError: the worker process failed; the first line of its error and its log are named.
    """
    request = run_request(config)
    display = Display(request.folder.path.name, label)
    done = request.state.state == "done"
    if done and decide(config, request, request.state) is Decision.FINISHED:
        _join_sweep(config, request)
        display.end(Decision.FINISHED.value)
        return request, False
    rendezvous = slurm.rendezvous(config.hardware)
    if rendezvous and rendezvous.node:
        _join_first_node(config, request, display, rendezvous)
        return request, True
    with _hold_folder(request, display) as descriptor:
        state = _join_sweep(config, request)  # read again: another process may have worked on it
        decision = decide(config, request, state)
        if decision is Decision.FINISHED:  # by that process, or killed on its last line
            request.folder.update(state="done", error=None)
            return request, False
        _check(config, state)
        if decision is not Decision.START:
            display.line(decision.value)
        with gpu_slots.hold(config.hardware, lambda: display.line("waits for a GPU")) as slots:
            _record_start(config, request, state, display)
            _start_and_wait(config, request, display, slots, rendezvous, descriptor)
        display.done(request.folder.evaluation(request.evaluation_key))
    return request, True


@contextmanager
def _hold_folder(request: RunRequest, display: Display) -> Iterator[int]:
    """Hold the run folder, after waiting for a process that is at another evaluation of the run.

    Raises:
        BusyError: another process is at this evaluation.
    """
    for attempt in itertools.count():
        with request.folder.locked() as descriptor:
            if descriptor is not None:
                yield descriptor
                return
        state = request.folder.state()
        if state.state == "running" and state.evaluating == request.evaluation_key:
            raise BusyError(request.folder.path, request.evaluation_key)
        if attempt == 0:
            display.line("waits for the process that works on this run")
        time.sleep(_POLL_SECONDS)


class Decision(Enum):
    """What is left to do of a run; the value is the line that tells a user so."""

    FINISHED = "already finished, using stored results"
    START = "started"
    RESUME = "resumed from its last checkpoint"
    START_AGAIN = "started again, since it ended before its first checkpoint"
    EVALUATE = "already trained, evaluating its weights"
    EVALUATE_AGAIN = "its evaluation was changed or cut off since it was finished; evaluated again"


def decide(config: Config, request: RunRequest, state: State) -> Decision:
    """What is left to do, by what the run folder holds.

    Raises:
        ValueError: the folder was edited since, or failed before and is not to be tried again.
    """
    folder, evaluation_key = request.folder, request.evaluation_key
    if state.trained and folder.config.exists():
        integrity.refuse_other_config(folder, request.parts)
    evaluated = state.trained and evaluation_key in state.evaluations
    if evaluated and integrity.is_whole(folder, evaluation_key):
        return Decision.FINISHED
    if state.state == "failed" and not config.runs.retry_failed:
        raise ValueError(
            f"{folder.path} failed before ({state.error}); runs.retry_failed=true tries again"
        )
    if state.trained:
        return Decision.EVALUATE_AGAIN if evaluated else Decision.EVALUATE
    if not state.attempts:
        return Decision.START
    has_checkpoint = any(folder.checkpoints.glob("checkpoint-*"))
    return Decision.RESUME if has_checkpoint else Decision.START_AGAIN


def _join_sweep(config: Config, request: RunRequest) -> State:
    """Note in the folder that this sweep shows this evaluation of it; gives the state on disk."""
    state = request.folder.state()
    if request.evaluation_key in state.sweeps.get(config.sweep, ()):
        return state
    return request.folder.update(sweeps={config.sweep: [request.evaluation_key]})


def _check(config: Config, state: State) -> None:
    """Refuse what this machine, its disk or the judge's endpoint does not allow."""
    machine.check(config)
    _refuse_full_disk(config)
    if not state.trained:
        _try_reward_judge(config)


def _refuse_full_disk(config: Config) -> None:
    """Weights, two checkpoints with optimizer states, and room for the rest."""
    if config.method.algorithm == "none":
        return
    needed = 100 * 2**20 + 8 * model_folder.size_on_disk(config.model.path)
    free = free_bytes(config.folder)
    if free < needed:
        raise ValueError(
            f"outputs={config.outputs}: {free / 2**30:.1f} GiB free, about {needed / 2**30:.1f} "
            "GiB needed for checkpoints; free some space or set outputs=... to another disk"
        )


def _try_reward_judge(config: Config) -> None:
    """Ask the endpoint that grades a reward once: here it fails before a model is loaded."""
    aspect = next((reward.judge for reward in config.reward.values() if reward.judge), None)
    if aspect and config.method.algorithm == "grpo" and config.judge.kind == "openai":
        cache = config.folder / "cache" / "verdicts"
        grade.check_reachable(config.judge, config.rubric.check(aspect), cache)


def _record_start(config: Config, request: RunRequest, state: State, display: Display) -> None:
    """What the worker reads, and what the folder says of a run that is going on."""
    folder, evaluation = request.folder, request.evaluation
    remove_unfinished(folder.path)
    evaluation.path.mkdir(parents=True, exist_ok=True)
    # The run's own configuration is that of its training, whatever it is evaluated with later.
    for path in (evaluation.config, *([] if state.trained else [folder.config])):
        with atomic(path) as unfinished:
            configuration.write(config, unfinished)
    # With the audit's warnings, for the run's table and MLflow.
    samples = data.load(config.data, config.folder / "cache")
    train, test = data.trained_on(config, samples), data.tested_on(config, samples)
    digests = data.image_digests(config.data, config.folder / "cache", [*train, *test])
    counts = data.row_counts(config.data, config.folder / "cache")
    notes = data.reading_notes(config)
    for note in notes:
        display.line(note)
    digest = data.digest([*train, *test], digests)
    left_out = config.left_out_of_epoch(len(train))
    facts = audit.audit_run(train, test, digest, counts, notes, left_out_of_epoch=left_out)
    write_json(evaluation.data, facts)
    folder.update(
        state="running",
        evaluating=request.evaluation_key,
        train_key=request.train_key,
        train_parts=request.parts,
        evaluations=[key for key in state.evaluations if key != request.evaluation_key],
        attempts=state.attempts + 1,
        error=None,
    )


def _start_and_wait(
    config: Config,
    request: RunRequest,
    display: Display,
    slots: gpu_slots.GpuSlots,
    rendezvous: Rendezvous | None,
    descriptor: int,
) -> None:
    """Start the worker and wait for its end; a failure is recorded in the folder.

    Raises:
        RuntimeError: with the first line of the error and the last lines of the log.
    """
    log = request.folder.log
    start = log.stat().st_size if log.exists() else 0
    try:
        worker_process.run(config, request, display, slots, rendezvous, descriptor)
    except RuntimeError as error:
        request.folder.update(state="failed", error=next(iter(str(error).splitlines()), ""))
        raise RuntimeError(
            f"{request.folder.path.name}: {error} (see {log})"
            f"\n{worker_process.last_lines(log, start)}"
        ) from error


def _join_first_node(
    config: Config, request: RunRequest, display: Display, rendezvous: Rendezvous
) -> None:
    """On a further node of a job: its ranks join those of the first, which owns the run folder."""
    machine.check(config)
    deadline = time.monotonic() + 60 * config.hardware.hang_timeout_minutes
    while request.folder.state().state != "running":
        display.line("waits for the first node")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{request.folder.path.name}: the first node did not start")
        time.sleep(5)
    with gpu_slots.hold(config.hardware, lambda: display.line("waits for a GPU")) as slots:
        worker_process.run(config, request, display, slots, rendezvous)
