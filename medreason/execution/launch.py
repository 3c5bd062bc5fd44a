"""From a configuration to a finished run folder. `run` tells the story; its steps follow in order.

The launcher decides, holds the run folder and its GPUs, and starts the worker process, which trains
and evaluates (`worker`). Nothing here loads torch.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path

from medreason import config as configuration
from medreason import data
from medreason.config import Config, Hardware, hub, machine
from medreason.console import first_line
from medreason.data import audit, images, validation
from medreason.execution import (
    disk,
    gpu_slots,
    prompt_notes,
    setting_notes,
    slurm,
    worker_process,
)
from medreason.execution.request import RunRequest, run_request
from medreason.execution.slurm import Rendezvous
from medreason.judging import grade
from medreason.models import model_folder
from medreason.report.names import arm_key, data_name
from medreason.runs import integrity, interrupts, lock, openings
from medreason.runs.files import atomic, read_json, remove_unfinished, write_json
from medreason.runs.interrupts import InterruptedRunError
from medreason.runs.openings import Opening
from medreason.runs.outcomes import BusyError
from medreason.runs.progress import Display
from medreason.runs.run_folder import State
from medreason.samples import Sample

_POLL_SECONDS = 1.0
_MUCH_LARGER = 16
_RETRY_AFTER_SECONDS = 120.0
"""The longest that a server may ask to wait before an attempt."""


def run(config: Config, label: str = "", said: Path | None = None) -> tuple[RunRequest, bool]:
    """Train and evaluate what is not done yet; gives the request and whether anything was left.

    `label` names a job of a sweep in each line that is shown, in place of the run folder; `said` is
    where its jobs note the lines of data and settings that one of them has shown.

    Raises:
        NoDataError: the cell has no data.
        BusyError: another process is at it.
        ValueError: bad input, refused before any training.
        RuntimeError: the worker process failed; the first line of its error and its log are named.
    """
    interrupts.raise_if_asked()
    config = _without_device(model_folder.with_model_of_run(config))
    if not any((config.folder / "runs").glob(f"{glob.escape(config.run_name)}-*")):
        machine.check(config)  # before images are drawn; a finished run is shown on any machine
    request = run_request(config)
    display = Display(request.folder.path.name, label, said)
    done = request.state.state == "done"
    if done and decide(config, request, request.state) is Decision.FINISHED:
        _join_sweep(config, request)
        _record_opening(config, request)
        display.end(Decision.FINISHED.value)
        return request, False
    rendezvous = slurm.rendezvous(config.hardware)
    if rendezvous and rendezvous.node:
        _join_first_node(config, request, display, rendezvous)
        return request, True
    _check(config, request)  # before there is a folder: what is refused leaves none
    with _hold_folder(request, display, config.sweep) as descriptor:
        # Read again: another process may have worked on it.
        decision = decide(config, request, request.folder.state())
        state = _join_sweep(config, request)
        if decision is Decision.FINISHED:  # by that process, or killed on its last line
            request.folder.update(state="done", error=None)
            _record_opening(config, request)
            return request, False
        if state.trained and config.method.algorithm != "none":
            _refuse_damaged_weights(request)
        if decision is not Decision.START:
            display.line(in_words(decision, config))
        with gpu_slots.hold(config.hardware, lambda: display.wait("a GPU")) as slots:
            _record_start(config, request, state, display)
            _start_and_wait(config, request, display, slots, rendezvous, descriptor)
        _record_opening(config, request)
        if config.runs.test:
            display.done(request.folder.evaluation(request.evaluation_key))
        else:
            because = request.folder.state().chosen_because
            display.end(f"trained, not tested{because and f'; {because}'}")
    return request, True


def _without_device(config: Config) -> Config:
    """The configuration as it is, but for a served model on one process of the CPU, whatever the
    profile: it waits for the server alone, and for as long as a request may be repeated."""
    if not config.model.is_served:
        return config
    endpoint = config.model.endpoint
    minutes = endpoint.attempts * (endpoint.timeout_s + _RETRY_AFTER_SECONDS) / 60
    profile = Hardware(
        *("cpu", "cpu"),
        *(1, "1", 1),
        precision="float32",
        threads=config.hardware.threads,
        hang_timeout_minutes=max(config.hardware.hang_timeout_minutes, 2 * minutes),
    )
    return replace(config, hardware=profile)


@contextmanager
def _hold_folder(request: RunRequest, display: Display, sweep: str) -> Iterator[int]:
    """Hold the run folder, after waiting for a process that is at another evaluation of the run.

    Raises:
        BusyError: another process is at this evaluation.
    """
    folder = request.folder
    while True:
        with folder.locked(f"sweep={sweep}") as descriptor:
            if descriptor is not None:
                yield descriptor
                return
        state, owner = folder.state(), lock.owner(folder.path)
        if state.state == "running" and state.evaluating == request.evaluation_key:
            raise BusyError(folder.path, request.evaluation_key, owner)
        display.wait(f"{owner}, which works on this run")
        time.sleep(_POLL_SECONDS)


class Decision(Enum):
    """What is left to do of a run; the value is the line that tells a user so."""

    FINISHED = "already finished, using stored results"
    START = "started"
    RESUME = "resumed from its last checkpoint"
    START_AGAIN = "started again, since it has no checkpoint"
    EVALUATE = "already trained, evaluating its weights"
    EVALUATE_START = "start model, nothing to train"
    EVALUATE_AGAIN = "its evaluation was changed or cut off since it was finished; evaluated again"


def in_words(decision: Decision, config: Config) -> str:
    """The decision as a line; an evaluated model of a run is called by its run."""
    if decision is Decision.EVALUATE_START and config.weights_of:
        return f"the model of {config.weights_of}, nothing to train"
    return decision.value


def decide(config: Config, request: RunRequest, state: State) -> Decision:
    """What is left to do, by what the run folder holds.

    Raises:
        ValueError: the folder was edited since, or failed before and is not to be tried again.
    """
    folder, evaluation_key = request.folder, request.evaluation_key
    if folder.config.exists():
        integrity.refuse_other_config(folder, request.parts)
    if state.trained and not config.runs.test:
        return Decision.FINISHED
    evaluated = state.trained and evaluation_key in state.evaluations
    if evaluated and integrity.is_whole(folder, evaluation_key):
        return Decision.FINISHED
    if state.state == "failed" and not config.runs.retry_failed:
        raise ValueError(
            f"{folder.path} failed before ({state.error}); runs.retry_failed=true tries again"
        )
    if evaluated:
        return Decision.EVALUATE_AGAIN
    untrained = config.method.algorithm == "none"
    if state.trained:
        return Decision.EVALUATE_START if untrained else Decision.EVALUATE
    if not state.attempts:
        return Decision.START
    if untrained:
        return Decision.EVALUATE_START
    has_checkpoint = any(folder.checkpoints.glob("checkpoint-*"))
    return Decision.RESUME if has_checkpoint else Decision.START_AGAIN


def _join_sweep(config: Config, request: RunRequest) -> State:
    """Note in the folder that this sweep shows this evaluation of it; gives the state on disk."""
    state = request.folder.state()
    if request.evaluation_key in state.sweeps.get(config.sweep, ()):
        return state
    return request.folder.update(sweeps={config.sweep: [request.evaluation_key]})


def _record_opening(config: Config, request: RunRequest) -> None:
    """Count that this sweep has seen the test results of this arm."""
    if not config.runs.test:
        return
    openings.record(
        config.folder,
        Opening(
            sweep=config.sweep,
            data=data_name(config),
            questions=request.test_digest,
            arm=arm_key(config),
            method=config.method.name,
            run=request.folder.path.name,
            evaluation=request.evaluation_key,
            trained=config.method.algorithm != "none",
            validated=bool(request.validation_samples),
        ),
    )


def _check(config: Config, request: RunRequest) -> None:
    """Refuse what this machine, its disk, a server or the judge's endpoint does not allow."""
    machine.check(config)
    if config.model.is_served:
        from medreason.generation import served_model  # openai, an extra, and a second to import

        served_model.probe(config.model)
    elif request.state.trained:  # an adapter's base may be on the hub
        if not Path(model_folder.resolve(config.model.path)).exists():
            hub.read_cache_if_unreached(f"model.path={config.model.path}")
    else:
        model_folder.check_hub(config.model.path, config.model.revision)
        files = request.folder.checkpoints.rglob("*")
        disk.refuse_full(config, present=sum(file.stat().st_size for file in files))
        _try_reward_judge(config)


def _refuse_damaged_weights(request: RunRequest) -> None:
    """Raise ValueError where the model of a finished training cannot be loaded any more."""
    try:
        model_folder.check(str(request.folder.model), "the run's weights")
    except ValueError as error:
        raise ValueError(
            f"{error}; put it back, or move {request.folder.path} away to train again"
        ) from error


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
    samples = data.samples_of(config)
    train, test = data.trained_on(config, samples), data.tested_on(config, samples)
    held_back = validation.in_domain(config, samples) if train else []
    digests = data.image_digests(config.data, config.folder / "cache", [*train, *held_back, *test])
    counts = data.row_counts(config.data, config.folder / "cache", config.validation)
    notes = [*data.reading_notes(config), *validation.notes(config, samples)]
    notes += [*prompt_notes.notes(config), *setting_notes.notes(config)]
    for note in [*notes, *_size_note(config, [*train, *test])]:
        display.line_once(note)
    digest = data.digest([*train, *test], digests)
    left_out = config.left_out_of_epoch(len(train))
    facts = audit.audit_run(
        *(train, test, digest, digests, counts, notes),
        validation=held_back,
        left_out_of_epoch=left_out,
        split=configuration.handling(config.data)[0].split,
        split_columns=data.split_columns(config),
    )
    for leak in facts["leaks"]:
        display.line_once(f"! {leak}")
    if facts["repeats"]:
        display.line_once(facts["repeats"])
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


def _size_note(config: Config, samples: Sequence[Sample]) -> list[str]:
    """That the images are far larger than what the tiny model sees of them, where they are."""
    if model_folder.resolve(config.model.path) != str(model_folder.EMBEDDED) or not samples:
        return []
    image = samples[0].image
    processor = read_json(model_folder.EMBEDDED / "processor_config.json")["image_processor"]
    width, height = images.size_of(image) if image.is_file() else (0, 0)
    if width * height < _MUCH_LARGER * processor["size"]["longest_edge"]:
        return []
    return [
        f"images such as {image.name} have {width} x {height} pixels, model=tiny sees 112 x 112: "
        "action=prepare prepare.size=112 makes them small once, data=prepared reads them"
    ]


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
        KeyboardInterrupt, InterruptedRunError: with what the folder keeps.
    """
    log = request.folder.log
    start = log.stat().st_size if log.exists() else 0
    try:
        worker_process.run(config, request, display, slots, rendezvous, descriptor)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{request.folder.path} {_kept(config, request)}") from interrupt
    except InterruptedRunError as error:
        kept = _kept(config, request)
        raise InterruptedRunError(
            f"{request.folder.path.name}: {error}; it {kept}; re-run the same command to resume"
        ) from error
    except RuntimeError as error:
        request.folder.update(state="failed", error=first_line(error))
        lines = [f"{request.folder.path.name}: {error} (see {log})"]
        lines += filter(None, [worker_process.last_lines(log, start)])
        raise RuntimeError("\n".join(lines)) from error


def _kept(config: Config, request: RunRequest) -> str:
    """What an interrupted run does not do again."""
    if config.method.algorithm == "none":
        return "keeps the answers so far"
    if (request.folder.model / "config.json").exists() or request.folder.state().trained:
        return "keeps its weights and the answers so far"
    steps = [
        int(p.name.rpartition("-")[2]) for p in request.folder.checkpoints.glob("checkpoint-*")
    ]
    return f"keeps the checkpoint of step {max(steps)}" if steps else "has no checkpoint yet"


def _join_first_node(
    config: Config, request: RunRequest, display: Display, rendezvous: Rendezvous
) -> None:
    """On a further node of a job: its ranks join those of the first, which owns the run folder."""
    machine.check(config)
    deadline = time.monotonic() + 60 * config.hardware.hang_timeout_minutes
    while request.folder.state().state != "running":
        display.wait("the first node")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{request.folder.path.name}: the first node did not start")
        time.sleep(5)
    with gpu_slots.hold(config.hardware, lambda: display.wait("a GPU")) as slots:
        worker_process.run(config, request, display, slots, rendezvous)
