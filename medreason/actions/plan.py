"""`action=plan`: what a command or a sweep would do: jobs, updates, time, disk and memory."""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from medreason import config as configuration
from medreason import data, stats
from medreason.config import Config, Statistics
from medreason.console import counted, first_line
from medreason.data import audit, prepared, release_sizes, validation
from medreason.data.release_sizes import Counts
from medreason.data.rows import Loaded
from medreason.evaluation.controls import questions_of
from medreason.execution import prompt_notes, setting_notes
from medreason.execution.disk import disk_space, less
from medreason.execution.launch import Decision, decide
from medreason.execution.request import RunRequest, run_request
from medreason.execution.throughput import Throughput
from medreason.models import model_folder
from medreason.report.terminal import Terminal
from medreason.runs import keys
from medreason.runs.files import free_bytes
from medreason.runs.outcomes import NoDataError
from medreason.runs.progress import duration
from medreason.runs.run_folder import run_folders
from medreason.samples import Sample
from medreason.training.memory_limits import memory_lines

_ANSWER_BYTES = 2_000  # a row of predictions.parquet with its prompt, compressed
_WITHOUT_QUESTIONS = ("same run", "empty", "refused")
"""States of jobs whose test questions are counted elsewhere, or are none."""
_FINISHED = ("done", *_WITHOUT_QUESTIONS)
_MOST_ROWS = 40  # of jobs on a terminal; more than these are one row a kind


@dataclass(frozen=True)
class Job:
    """One job of the sweep."""

    name: str
    state: str
    """done, to evaluate, to resume, failed before, to do, same run, empty or refused."""
    updates: int = 0
    generations: int = 0
    """Completions, in training and in evaluation."""
    answers: int = 0
    """Those of the evaluation and of validations."""
    questions: int = 0
    """Of the test; each is asked as it is and under the controls."""
    test_answers: int = 0
    seconds: float | None = 0.0
    """None where no comparable run has been measured yet."""
    hours: tuple[float, float] | None = None
    """Estimated for the GPU of its hardware profile where `seconds` is None; None where that GPU is
    not known, or too small."""
    test_seconds: float | None = 0.0
    """Of `seconds`, those of the test; the others are of the training with its validations."""
    test_hours: tuple[float, float] = 0.0, 0.0
    """Of `hours`, those of the test."""
    disk: int = 0
    """Bytes that stay."""
    peak: int = 0
    """Bytes of checkpoints, on top, while it trains."""
    download: int = 0
    """Bytes of the start model that come from the hub."""
    disk_known: bool = True
    """Whether the hub says how large the start model is."""
    reason: str = ""


def run(config: Config) -> None:
    """Print the plan of one command; exits with 1 where it could not be done."""
    if not run_all([config], [""]):
        sys.exit(1)


@dataclass(frozen=True)
class Trials:
    """Of a search: jobs like the one that is planned."""

    count: int = 1
    at_a_time: int = 1

    @property
    def rounds(self) -> int:
        return math.ceil(self.count / self.at_a_time)


def run_all(configs: Sequence[Config], labels: Sequence[str], trials: Trials | None = None) -> bool:
    """Print the plan of all jobs: each, the totals, and what does not fit; whether all fit and none
    is refused.

    `labels` say what tells each of `configs` from the others; empty where nothing does. `trials`
    where the only one is a trial of a search.
    """
    configs = [_undrawn(_with_model_of_run(config)) for config in configs]
    throughput = Throughput(configs[0].folder / "runs")
    seen: dict[tuple[str, str], int] = {}
    questions = _Questions()
    jobs: list[Job] = []
    for i, (config, label) in enumerate(zip(configs, labels, strict=True)):
        jobs.append(_job(config, label or config.run_name, throughput, questions, seen, i))
    jobs = _with_hours(jobs, configs)
    _print(jobs, configs)
    possible = [
        c
        for c, job in zip(configs, jobs, strict=True)
        if job.state not in _WITHOUT_QUESTIONS and not job.reason.startswith(_NOT_HERE)
    ]
    _print_power(possible)
    notes = [note for c in possible for note in _warnings(c)] + _overlap_lines(possible)
    for note in dict.fromkeys(notes):
        Terminal().print(note, highlight=False, markup=False, soft_wrap=True)
    kinds: dict[tuple[str, ...], list[tuple[Config, Job]]] = defaultdict(list)
    for config, job in zip(configs, jobs, strict=True):
        if job.state not in _FINISHED:
            kinds[_kind(config)] += [(config, job)] * (trials.count if trials else 1)
    needs = []
    for line in _needs_of_all(list(kinds.values())):  # one by one, since the first loads torch
        Terminal().print(line, highlight=False, soft_wrap=True)
        needs.append(line)
    totals = [*_data_lines(jobs, configs[0]), *_totals(jobs, configs, trials)]
    for line in totals:  # last, where a terminal shows them
        Terminal().print(line, highlight=False, soft_wrap=True)
    told = [*needs, *totals]
    refused = any(job.state == "refused" for job in jobs)
    return not refused and not any(line.startswith(_MISFIT) for line in told)


_MISFIT = "does not fit"
"""Start of the lines of memory and of disk that are too small."""


def _warnings(config: Config) -> list[str]:
    """What may be lost of the data, or is not asked for by the prompt."""
    of_data = [note for note in data.reading_notes(config) if note.startswith("! ")]
    return [*of_data, *prompt_notes.notes(config), *setting_notes.notes(config)]


def _overlap_lines(configs: Sequence[Config]) -> list[str]:
    """Images and patients on two sides, and questions asked twice, of each data set in all cells
    that `configs` use; by the digests of images that are known, so that none is read."""
    sets: dict[str, list[Config]] = defaultdict(list)
    for config in configs:
        sets[repr((config.data, config.validation))].append(config)
    lines: list[str] = []
    for members in sets.values():
        first, sides = members[0], _sides(members)
        samples = [sample for side in sides for sample in side.values()]
        digests = data.known_digests(first.data, first.folder / "cache", samples)
        loaded = Loaded(samples, [], split_columns=data.split_columns(first))
        split = configuration.handling(first.data)[0].split
        lines += audit.overlap_warnings(loaded, digests, split=split)
    return [f"! {line}" for line in lines]


def _sides(configs: Sequence[Config]) -> list[dict[str, Sample]]:
    """The questions of one data set that any of `configs` trains, validates or tests on, by id."""
    samples = data.samples_of(configs[0])
    train, held_back, test = ({}, {}, {})
    chosen = {_selection(config): config for config in configs}
    for config in chosen.values():
        trained = data.trained_on(config, samples)
        validated = validation.in_domain(config, samples) if trained else []
        for side, members in (
            (train, trained),
            (held_back, validated),
            (test, data.tested_on(config, samples)),
        ):
            side.update((sample.id, sample) for sample in members)
    return [train, held_back, test]


def _selection(config: Config) -> str:
    """The same for the same questions of one data set."""
    trains = config.method.algorithm != "none"
    cells = config.modality.members, config.task.members
    seed = config.seed if config.evaluation.samples_per_cell is not None else None
    return repr((trains and cells, _test_selection(config), seed))


def _with_model_of_run(config: Config) -> Config:
    """With the model in a run folder in place of the folder; its job says what is wrong with it."""
    with suppress(ValueError):
        return model_folder.with_model_of_run(config)
    return config


def _undrawn(config: Config) -> Config:
    """Without drawing phantoms, which is done where a run may be finished: its key has the digests
    of their images."""
    is_phantom = config.data["_target_"] == "medreason.phantom.load"
    if not is_phantom or config.data.get("images") != "none" or run_folders(config.folder / "runs"):
        return config
    return replace(config, data={**config.data, "draw": False})


def _kind(config: Config) -> tuple[str, ...]:
    return config.method.name, config.model.name, str(config.adapter), config.hardware.name


def _with_hours(jobs: Sequence[Job], configs: Sequence[Config]) -> list[Job]:
    """The jobs with hours on the GPU of their hardware profile, where no run was measured."""
    each: dict[tuple[str, ...], tuple[_Hours | None, _Hours | None]] = {}
    timed = []
    for job, config in zip(jobs, configs, strict=True):
        on_gpu = config.hardware.accelerator == "cuda" and config.hardware.device_gb
        if _is_unmeasured(job) and on_gpu:
            key = *_kind(config), str(bool(job.updates))
            if key not in each:
                each[key] = _hours_of_one(config, job)
            update, answer = each[key]
            if answer and (update or not job.updates):
                low, high = (
                    job.updates * (update[i] if update else 0) + job.answers * answer[i]
                    for i in (0, 1)
                )
                of_test = job.test_answers * answer[0], job.test_answers * answer[1]
                job = replace(job, hours=(low, high), test_hours=of_test)
        timed.append(job)
    return timed


_Hours = tuple[float, float]
"""The least and the most."""


def _hours_of_one(config: Config, job: Job) -> tuple[_Hours | None, _Hours | None]:
    """Of one update, and of one answer, on the GPU of the hardware profile; None where the GPU or
    the model is not known, or the GPU too small."""
    from medreason.benchmark import gpu_time  # torch

    if not (gpus := gpu_time.own_gpus(config.hardware)):
        return None, None
    training = _training_samples(config)
    try:
        answer = gpu_time.span(gpu_time.hours(config, training, 0, 1), gpus)
        update = gpu_time.hours(config, training, 1, 0) if job.updates else {}
        return gpu_time.span(update, gpus) if update else None, answer
    except (OSError, ValueError):  # which the lines of memory and hours say
        return None, None


def _training_samples(config: Config) -> list[Sample]:
    """Those that a job trains on; none of a release that is not here."""
    samples = [] if release_sizes.counts(config) else data.samples_of(config)
    return data.trained_on(config, samples)


def _needs_of_all(kinds: Sequence[Sequence[tuple[Config, Job]]]) -> Iterator[str]:
    """Of each kind of training its memory, what to change where it does not fit, and hours on GPUs;
    at last the hours of all."""
    times: list[Mapping[str, tuple[float, float] | None]] = []
    unknown: dict[str, list[str]] = defaultdict(list)
    for kind in kinds:
        config = kind[0][0]
        training = _training_samples(config)
        trains = any(job.updates for _, job in kind)
        if trains:
            yield from memory_lines(config, training)
        elif config.hardware.accelerator == "cuda" and not config.model.is_served:
            names = f"{config.method.name}, {config.model.name}"
            yield f"memory of {names}: not estimated, since nothing is trained"
        if config.hardware.accelerator == "cuda":
            from medreason.benchmark import gpu_time  # torch

            updates, answers = (
                sum(getattr(job, name) for _, job in kind) for name in ("updates", "answers")
            )
            try:
                times.append(gpu_time.hours(config, training, updates, answers))
                cut = gpu_time.smaller_cut(config, training) if trains else {}
                yield gpu_time.time_line(_work(kind), times[-1], cut)
            except (OSError, ValueError) as error:
                if not trains:  # else `memory_lines` has said why
                    unknown[first_line(error)].append(config.model.name)
    for reason, models in unknown.items():
        yield f"hours on GPUs of {', '.join(models)} unknown: {reason}"
    if len(times) == len(kinds) > 1:
        from medreason.benchmark import gpu_time

        yield gpu_time.time_line("all", gpu_time.total(times))


def _work(kind: Sequence[tuple[Config, Job]]) -> str:
    """`3 jobs of sft, qwen2_vl_2b, 2 devices each`"""
    config, devices = kind[0][0], kind[0][0].hardware.processes
    jobs = f"{len(kind)} jobs of " if len(kind) > 1 else ""
    each = f", {devices} devices each" if devices > 1 else ""
    return f"{jobs}{config.method.name}, {config.model.name}{each}"


class _Questions:
    """The questions of evaluations, counted once for the jobs of a sweep that ask the same."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, str], int] = {}

    def count(self, config: Config, test: Sequence[Sample]) -> int:
        """Those of the controls included, as evaluation asks them."""
        controls, answers = config.evaluation.controls, config.evaluation.answers
        key = id(test), f"{controls} {answers}"
        if key not in self._counts:
            self._counts[key] = len(questions_of(test, controls, answers))
        return self._counts[key]


def _job(
    config: Config,
    name: str,
    throughput: Throughput,
    questions: _Questions,
    seen: dict[tuple[str, str], int],
    index: int,
) -> Job:
    try:
        request = run_request(config)
    except NoDataError as error:
        return Job(name, "empty", reason=str(error))
    except ValueError as error:
        return _unread(config, name, str(error), seen, index)
    first = seen.setdefault((request.train_key, request.evaluation_key), index)
    if first != index:
        return Job(name, "same run", reason=f"the same run as job {first}")
    try:
        decision = decide(config, request, request.state)
    except ValueError as error:
        return Job(name, "refused", reason=str(error))
    if decision is Decision.FINISHED:
        return Job(name, "done")
    test = request.test_samples if config.runs.test else []
    answers = questions.count(config, test) if test else 0
    job = _evaluation(name, answers, throughput.evaluation(config))
    job = replace(job, questions=len(test))
    if request.state.trained or config.method.algorithm == "none":
        return job
    return _with_training(job, config, request, throughput, resumes=decision is Decision.RESUME)


def _evaluation(name: str, answers: int, seconds: float | None) -> Job:
    """A job that evaluates, in so many seconds an answer."""
    whole = 0.0 if not answers else None if seconds is None else seconds * answers
    return Job(
        name,
        "to evaluate",
        generations=answers,
        answers=answers,
        test_answers=answers,
        seconds=whole,
        test_seconds=whole,
        disk=answers * _ANSWER_BYTES,
    )


def _unread(
    config: Config, name: str, error: str, seen: dict[tuple[str, str], int], index: int
) -> Job:
    """A job whose data or model cannot be used: refused, or of a release that is not here."""
    if not (counts := release_sizes.counts(config)):
        return Job(name, "refused", reason=error)
    train = keys.digest(keys.train_parts(config, str(config.data), ""))
    evaluation = keys.digest(keys.evaluation_parts(config, train, str(config.data)))
    if (first := seen.setdefault((train, evaluation), index)) != index:
        return Job(name, "same run", reason=f"the same run as job {first}")
    return _published(name, config, counts)


def _published(name: str, config: Config, counts: Counts) -> Job:
    """A job of a release that is not on this machine, from the numbers of its questions."""
    asked = counts.test if config.runs.test else 0
    answers = asked * (1 + len(config.evaluation.controls))
    trains = config.method.algorithm != "none"
    job = Job(
        name,
        "to do",
        questions=asked,
        answers=answers,
        test_answers=answers,
        seconds=None,
        disk=answers * _ANSWER_BYTES,
    )
    job = _with_disk(job, config) if trains else job
    updates = config.updates(counts.training) if trains else 0
    rollouts = config.method.num_generations if config.method.algorithm == "grpo" else 0
    completions = updates * config.method.prompts_per_step * rollouts
    validated = "without validations" if config.validation.every else ""
    reason = "; ".join(filter(None, (_NOT_HERE, counts.note, validated)))
    return replace(job, updates=updates, generations=answers + completions, reason=reason)


_NOT_HERE = "numbers of questions as published, since data.root is not there"


def _with_disk(job: Job, config: Config) -> Job:
    space = disk_space(config)
    if space is None:
        from medreason.models.load import shapes  # torch

        with suppress(OSError):
            space = disk_space(config, shapes(config.model))
    if space is None:
        return replace(job, disk_known=False)
    peak = space.training - space.kept
    return replace(job, disk=job.disk + space.kept, peak=peak, download=space.download)


def _with_training(
    job: Job, config: Config, request: RunRequest, throughput: Throughput, *, resumes: bool
) -> Job:
    updates = config.updates(request.training_samples)
    rollouts = config.method.num_generations if config.method.algorithm == "grpo" else 0
    validations, each = _validations(config, request, updates)
    update, answer = throughput.training(config), throughput.validation(config)
    seconds = None
    if job.seconds is not None and update is not None and (answer is not None or not each):
        seconds = job.seconds + update * updates + (answer or 0.0) * validations * each
    notes = [_left_out(config, request)]
    if each:
        every = config.validated_every(request.training_samples)
        often = "an update" if every == 1 else f"every {every} updates"
        asked = f"{counted(validations, 'validation')} of {counted(each, 'answer')}"
        notes += [f"{asked}, one {often}"]
    failed = request.state.state == "failed"
    return replace(
        _with_disk(job, config),
        state="to resume" if resumes else "failed before" if failed else "to do",
        updates=updates,
        generations=job.generations
        + updates * config.method.prompts_per_step * rollouts
        + validations * each,
        answers=job.answers + validations * each,
        seconds=seconds,
        reason=(request.state.error or "") if failed else "; ".join(filter(None, notes)),
    )


def _validations(config: Config, request: RunRequest, updates: int) -> tuple[int, int]:
    """How many validations a training makes, and the answers of each, controls included."""
    if config.validation.every is None:
        return 0, 0
    asked = questions_of(request.validation_samples, config.validation.controls, ["generated"])
    return math.ceil(updates / config.validated_every(request.training_samples)), len(asked)


def _left_out(config: Config, request: RunRequest) -> str:
    questions = request.training_samples
    count = config.left_out_of_epoch(questions)
    return f"each epoch leaves out {count} of {counted(questions, 'question')}" if count else ""


def _print(jobs: Sequence[Job], configs: Sequence[Config]) -> None:
    """Print the table, and what explains its rows."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("#", "job", "state", "updates", "generations", "time", "disk"):
        side = "left" if head in ("job", "state") else "right"
        table.add_column(head, justify=side, no_wrap=True)
    reasons: dict[str, list[str]] = defaultdict(list)
    for i, job in enumerate(jobs):
        if job.reason:
            reasons[job.reason].append(str(i))
    console = Terminal()
    folds = console.is_terminal and len(jobs) > _MOST_ROWS
    for place, job in _folded(jobs, configs) if folds else enumerate(jobs):
        table.add_row(*map(Text, (str(place), job.name, job.state, *_columns(job))))
    if not console.is_terminal:  # a table is not cut in a file
        console.width = max(console.width, 85 + max(len(job.name) for job in jobs))
    console.print(table)
    explained = *_estimated_for(jobs, configs), *_assumed_lengths(jobs, configs)
    for line in [*explained, *_counts_explained(jobs, configs)]:
        console.print(line, highlight=False, soft_wrap=True)
    if folds:
        console.print("jobs of one kind are one row; `| cat` behind the command shows each")
    for reason, places in reasons.items():  # once, however many jobs it is of
        console.print(f"{_listed(places)}: {reason}", highlight=False, markup=False, soft_wrap=True)


def _estimated_for(jobs: Sequence[Job], configs: Sequence[Config]) -> list[str]:
    """Which GPU the estimates of the table are for, and which key gives those that it lacks."""
    pairs = list(zip(configs, jobs, strict=True))
    profiles = {c.hardware.name: c.hardware for c, job in pairs if job.hours}
    nameless = {
        c.hardware.name: None
        for c, job in pairs
        if _is_unmeasured(job) and c.hardware.accelerator == "cuda" and not c.hardware.device_gb
    }
    if not profiles and not nameless:
        return []
    from medreason.benchmark import gpu_time

    named = [f"{gpu_time.named(each)} (hardware={name})" for name, each in profiles.items()]
    lines = [f"est.: estimated for {', '.join(named)}; nothing was measured yet"] if named else []
    if nameless:
        sizes = "; ".join(f"{gb:g} for {names}" for gb, names in gpu_time.by_memory().items())
        lines.append(
            f"time unknown, since hardware={', '.join(nameless)} names no GPU; "
            f"hardware.device_gb=... gives an estimate: {sizes}"
        )
    return lines


def _assumed_lengths(jobs: Sequence[Job], configs: Sequence[Config]) -> Iterator[str]:
    """How many tokens the hours on GPUs give a reply; see `gpu_time.hours`."""
    timed = [
        (config, job)
        for config, job in zip(configs, jobs, strict=True)
        if job.state not in _FINISHED
        and config.hardware.accelerator == "cuda"
        and not config.model.is_served
    ]
    answers = {c.evaluation.max_new_tokens for c, job in timed if job.answers}
    completions = {
        c.method.trl["max_completion_length"]
        for c, job in timed
        if job.updates and c.method.algorithm == "grpo"
    }
    lengths = []
    if answers:
        sizes = " or ".join(f"{size:,}" for size in sorted(answers))
        lengths.append(f"{sizes} in evaluation (evaluation.max_new_tokens)")
    if completions:
        sizes = " or ".join(f"{max(n // 2, 1):,} to {n:,}" for n in sorted(completions))
        lengths.append(f"{sizes} in a GRPO training (method.trl.max_completion_length)")
    if lengths:
        yield f"tokens of a reply, as hours on GPUs assume: {', '.join(lengths)}"


def _is_unmeasured(job: Job) -> bool:
    return job.seconds is None and job.state not in _FINISHED


def _counts_explained(jobs: Sequence[Job], configs: Sequence[Config]) -> Iterator[str]:
    """What the generations of the table are, and why methods make unlike numbers of updates of the
    same questions."""
    ahead = [(c, j) for c, j in zip(configs, jobs, strict=True) if j.state not in _FINISHED]
    lines = dict.fromkeys(filter(None, (_of_evaluation(c, job) for c, job in ahead)))
    training = [(c, job) for c, job in ahead if job.updates]
    lines |= dict.fromkeys(filter(None, (_of_rollouts(c, job) for c, job in training)))
    yield from lines
    sizes = {c.method.name: c.method.prompts_per_step for c, _ in training}
    by_data = [c for c, _ in training if c.method.trl["max_steps"] <= 0]
    if len(set(sizes.values())) > 1 and len(by_data) == len(training):
        each = ", ".join(f"{name} {size}" for name, size in sizes.items())
        yield (
            f"updates differ, since an update takes other numbers of questions "
            f"(method.prompts_per_step): {each}"
        )


def _of_evaluation(config: Config, job: Job) -> str:
    """`43,865 generations of an evaluation: 8,773 questions x 5: ...`"""
    if not job.questions:
        return ""
    controls = config.evaluation.controls
    times = 1 + len(controls)
    even = controls and job.test_answers == job.questions * times
    each = f" x {times}" if even else ""
    asked = f"as they are and under {', '.join(controls)}" if controls else "as they are"
    return (
        f"{counted(job.test_answers, 'generation')} of an evaluation: "
        f"{counted(job.questions, 'question')}{each}, {asked}"
    )


def _of_rollouts(config: Config, job: Job) -> str:
    """`12,800 generations of a training with grpo: ...`"""
    if config.method.algorithm != "grpo":
        return ""
    questions, completions = config.method.prompts_per_step, config.method.num_generations
    return (
        f"{job.updates * questions * completions:,} generations of a training with "
        f"{config.method.name}: {counted(job.updates, 'update')} x {counted(questions, 'question')}"
        f" x {counted(completions, 'completion')}"
    )


def _folded(jobs: Sequence[Job], configs: Sequence[Config]) -> Iterator[tuple[str, Job]]:
    """The first place and the sums of all jobs of one kind and state."""
    kinds: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, (config, job) in enumerate(zip(configs, jobs, strict=True)):
        kinds[*_kind(config), job.state].append(i)
    for places in kinds.values():
        of_kind = [jobs[i] for i in places]
        seconds = [job.seconds for job in of_kind]
        hours = [job.hours for job in of_kind if job.hours]
        yield (
            str(places[0]) if len(places) == 1 else f"{places[0]}..",
            Job(
                _work([(configs[i], jobs[i]) for i in places]),
                of_kind[0].state,
                updates=sum(job.updates for job in of_kind),
                generations=sum(job.generations for job in of_kind),
                seconds=None if None in seconds else sum(filter(None, seconds)),
                hours=(sum(low for low, _ in hours), sum(high for _, high in hours))
                if len(hours) == len(of_kind)
                else None,
                disk=sum(job.disk for job in of_kind),
                disk_known=all(job.disk_known for job in of_kind),
            ),
        )


def _data_lines(jobs: Sequence[Job], config: Config) -> list[str]:
    """What is to be downloaded of a data set that is not there."""
    if not any(job.reason.startswith(_NOT_HERE) for job in jobs):
        return []
    sizes = release_sizes.downloads(config)
    parts = [f"{name} {_size(size)}" for name, size in sizes.items() if size is not None]
    if unknown := [name for name, size in sizes.items() if size is None]:
        parts.append(f"size unknown for {', '.join(unknown)}")
    where = f"data.root={config.data['root']} is not there"
    made = []
    if config.data["_target_"] == "medreason.data.prepared.read":
        made = [f"`{prepared.to_prepare(config.data['root'])}` makes data.root of it"]
    return [f"{where}; to download, packed: {'; '.join(parts)}", *made]


def _print_power(configs: Sequence[Config]) -> None:
    """What a paired test of two models can show in each cell; once for the same questions."""
    tests = {_test_selection(config): config for config in configs}
    for config in tests.values():
        Terminal().print(_power_table(config, _test_questions(config)), soft_wrap=True)


def _test_selection(config: Config) -> str:
    """The same for as many test questions of the same cells; which of them is up to the seed."""
    cells = config.evaluation.modalities, config.evaluation.tasks
    return repr((config.data, *cells, config.evaluation.samples_per_cell))


def _test_questions(config: Config) -> dict[str, list[str]]:
    """The cluster of each test question, by cell, and of all."""
    cache = config.folder / "cache"
    samples = data.tested_on(config, data.samples_of(config))
    images = data.image_digests(config.data, cache, samples)
    cells: dict[str, list[str]] = {}
    for sample in samples:
        image = images[sample.image]
        cluster = data.cluster(
            config.statistics.clusters, sample.patient, image, data.question_digest(sample, image)
        )
        cells.setdefault("/".join(sample.cell), []).append(cluster)
    return cells | {"all": [cluster for members in cells.values() for cluster in members]}


def _power_table(config: Config, cells: Mapping[str, Sequence[str]]) -> Table:
    settings = config.statistics
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("test", "n", "clusters", "can show", f"n for {settings.difference:g} points"):
        table.add_column(head, justify="left" if head == "test" else "right", no_wrap=True)
    alike: dict[tuple[str, ...], list[str]] = {}
    for cell, clusters in cells.items():
        alike.setdefault(_power_row(settings, clusters), []).append(cell)
    for row, names in alike.items():
        more = f" and {counted(len(names) - 1, 'more cell')}, each" if len(names) > 1 else ""
        table.add_row(f"{names[0]}{more}", *row)
    percent = 100 * settings.discordance
    table.caption = _POWER_NOTE.format(settings, percent=percent)
    table.caption_justify = "left"
    return table


def _power_row(settings: Statistics, clusters: Sequence[str]) -> tuple[str, ...]:
    count = len(set(clusters))
    power = stats.power(
        len(clusters),
        count,
        discordance=settings.discordance,
        wanted=settings.difference,
        design_effect=stats.design_effect(clusters, settings.correlation),
    )
    smallest = power.smallest_difference
    shown = "nothing" if smallest is None else f"{smallest:.1f}"
    return f"{len(clusters):,}", f"{count:,}", shown, f"{power.questions_needed:,}"


_POWER_NOTE = (
    "can show: percent points between two models on the same questions, 80 % power, two-sided 5 %, "
    "before Holm's\nadjustment; assumed: on {percent:g} % of the questions one model is right and "
    "the other wrong\n(statistics.discordance), and answers about one {0.clusters} correlate by "
    "{0.correlation:g} (statistics.correlation)"
)


def _columns(job: Job) -> tuple[str, str, str, str]:
    if job.state in _FINISHED:
        return "-", "-", "-", "-"
    time = _estimated(job) if job.seconds is None else duration(job.seconds)
    disk = _size(job.disk) if job.disk_known else "unknown"
    return f"{job.updates:,}", f"{job.generations:,}", time, disk


def _estimated(job: Job) -> str:
    if not job.hours:
        return "unknown"
    from medreason.benchmark import gpu_time

    return f"est. {gpu_time.shown(job.hours)}"


def _listed(places: Sequence[str]) -> str:
    """`job 2`, `jobs 2, 3` or `jobs 2, 3, 4 and 11 more`, by the numbers of the table."""
    named = f"job{'s' * (len(places) > 1)} {', '.join(places[:3])}"
    return f"{named} and {len(places) - 3} more" if len(places) > 3 else named


def _totals(jobs: Sequence[Job], configs: Sequence[Config], trials: Trials | None) -> list[str]:
    """What the command does in all, with its time and disk; and what is not known of it."""
    times = 1
    if trials:
        times, jobs = trials.count, [*jobs] * trials.count
        configs = [*configs] * trials.count
    counts = Counter(job.state for job in jobs)
    ahead = [job for job in jobs if job.state not in _FINISHED]
    kind = "trial" if times > 1 or trials else "job"
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    first = f"total: {counted(len(jobs), kind)}: {states}"
    if not ahead:
        return [first]
    return [
        first,
        f"total: {counted(sum(c.updates for c in ahead), 'update')}, "
        f"{counted(sum(c.generations for c in ahead), 'generation')}, "
        f"time {_total_time(ahead, _gpus_of(jobs, configs), trials)}",
        *_disk_lines(jobs, configs, trials.at_a_time if trials else 1),
    ]


def _gpus_of(jobs: Sequence[Job], configs: Sequence[Config]) -> str:
    """The GPUs that the hours of jobs are estimated for; empty of none."""
    profiles = {c.hardware.name: c.hardware for c, j in zip(configs, jobs, strict=True) if j.hours}
    if not profiles:
        return ""
    from medreason.benchmark import gpu_time

    return ", ".join(dict.fromkeys(gpu_time.named(each) for each in profiles.values()))


def _total_time(ahead: Sequence[Job], gpus: str, trials: Trials | None) -> str:
    """`20 min 0 s on this machine (training 8 min 0 s, evaluation 12 min 0 s; one after the
    other)`, `estimated 6.1 to 26 h on A100 40 GB`, or `unknown` with what makes it known."""
    notes, share = ["one after the other"] * (len(ahead) > 1), 1.0
    if trials:
        how = f"{trials.at_a_time} at a time, each as fast as alone; without the test of the best"
        notes, share = [how], trials.rounds / trials.count
    known = [job for job in ahead if job.seconds is not None]
    estimated = [job for job in ahead if job.seconds is None and job.hours]
    parts = [_measured_time(known, share)] if known else []
    parts += [_estimated_time(estimated, share, gpus)] if estimated else []
    if unknown := len(ahead) - len(known) - len(estimated):
        parts.append((f"unknown of {counted(unknown, 'job')}" if parts else "unknown", ""))
        notes.append(_MEASURED_LATER)
    if len(parts) == 1:
        ((text, split),) = parts
        notes = [split, *notes] if split else notes
    else:
        text = " and ".join(f"{time} ({split})" if split else time for time, split in parts)
    return f"{text} ({'; '.join(notes)})" if notes else text


def _measured_time(jobs: Sequence[Job], share: float) -> tuple[str, str]:
    """(the time of all, the parts of training and of evaluation where there are both)"""
    whole = share * sum(job.seconds or 0.0 for job in jobs)
    of_test = share * sum(job.test_seconds or 0.0 for job in jobs)
    text = f"{duration(whole)} on this machine"
    if not 0 < of_test < whole:
        return text, ""
    return text, f"training {duration(whole - of_test)}, evaluation {duration(of_test)}"


def _estimated_time(jobs: Sequence[Job], share: float, gpus: str) -> tuple[str, str]:
    """As `_measured_time`, of hours."""
    from medreason.benchmark import gpu_time

    low, high = (share * sum(job.hours[i] for job in jobs if job.hours) for i in (0, 1))
    least, most = (share * sum(job.test_hours[i] for job in jobs) for i in (0, 1))
    text = f"estimated {gpu_time.shown((low, high))} on {gpus}"
    if not (most and any(job.updates for job in jobs)):
        return text, ""
    training = gpu_time.shown((low - least, high - most))
    return text, f"training {training}, evaluation {gpu_time.shown((least, most))}"


_MEASURED_LATER = (
    "known on this machine after a first run of each method with this model and hardware"
)


def _disk_lines(jobs: Sequence[Job], configs: Sequence[Config], at_a_time: int) -> Iterator[str]:
    """What all take, and whether it fits."""
    config, ahead = configs[0], [job for job in jobs if job.state not in _FINISHED]
    disk = sum(job.disk for job in ahead)
    download = max((job.download for job in ahead), default=0)
    needed = disk + download + at_a_time * max((job.peak for job in ahead), default=0)
    free = free_bytes(config.folder)
    unknown = sum(not job.disk_known for job in ahead)
    trainings = "one training" if at_a_time == 1 else f"{at_a_time} trainings at a time"
    yield (
        f"total: disk {'at least ' if unknown else ''}{_size(disk)} kept, {_size(needed)} with the "
        f"checkpoints of {trainings}"
        + (f" and the {_size(download)} of weights that come from the hub" if download else "")
        + f"; {_size(free)} free"
    )
    if unknown:
        yield (
            f"disk without the models of {counted(unknown, 'job')}: the hub is not reached, "
            "and their start model is not in its cache"
        )
    if needed > free:
        yield (
            f"{_MISFIT}: outputs={config.outputs} has {_size(free)} free of {_size(needed)}; "
            f"free some space, set outputs=... to another disk{_less_disk(jobs, configs)}"
        )


def _less_disk(jobs: Sequence[Job], configs: Sequence[Config]) -> str:
    """Overrides that take less of the job that trains on most disk."""
    training = [(job.peak + job.disk, i) for i, job in enumerate(jobs) if job.updates]
    return less(configs[max(training)[1]]) if training else ""


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
