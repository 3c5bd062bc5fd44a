"""`action=plan`: what a command or a sweep would do: cells, updates, time, disk and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medreason import data, stats
from medreason.config import Config, Statistics
from medreason.evaluation.controls import questions_of
from medreason.execution.request import RunRequest, run_request
from medreason.execution.throughput import Throughput
from medreason.models import model_folder
from medreason.runs.files import free_bytes
from medreason.runs.outcomes import NoDataError
from medreason.runs.progress import duration
from medreason.samples import Sample
from medreason.training.memory_limits import memory_lines

_ANSWER_BYTES = 2_000  # a row of predictions.parquet with its prompt, compressed
_IMPOSSIBLE = ("empty", "refused")
_FINISHED = ("done", "same run", "empty", "refused")


@dataclass(frozen=True)
class Cell:
    """One job of the sweep."""

    name: str
    state: str
    """done, to evaluate, to resume, failed before, to do, same run, empty or refused."""
    updates: int = 0
    generations: int = 0
    """Completions, in training and in evaluation."""
    seconds: float | None = 0.0
    """None where no comparable run has been measured yet."""
    disk: int = 0
    """Bytes that stay."""
    peak: int = 0
    """Bytes of checkpoints, on top, while it trains."""
    reason: str = ""


def run(config: Config) -> None:
    """Print the plan of one command."""
    run_all([config], [""])


def run_all(configs: Sequence[Config], labels: Sequence[str]) -> None:
    """Print the plan of all jobs: each cell, the totals, and what does not fit.

    `labels` say what tells each of `configs` from the others; empty where nothing does.
    """
    throughput = Throughput(configs[0].folder / "runs")
    seen: dict[tuple[str, str], int] = {}
    questions = _Questions()
    cells: list[Cell] = []
    for i, (config, label) in enumerate(zip(configs, labels, strict=True)):
        cells.append(_cell(config, label or config.run_name, throughput, questions, seen, i))
    _print(cells, configs[0])
    possible = [c for c, cell in zip(configs, cells, strict=True) if cell.state not in _IMPOSSIBLE]
    _print_power(possible)
    ahead = [c for c, cell in zip(configs, cells, strict=True) if cell.updates]
    for line in _memory(ahead):  # last, since it loads torch
        Console().print(line, highlight=False, soft_wrap=True)


def _memory(configs: Sequence[Config]) -> list[str]:
    """Estimated memory of each kind of training, and what to change where it does not fit."""
    kinds = {
        (c.method.name, c.model.name, str(c.adapter), c.hardware.name): c for c in reversed(configs)
    }
    lines: list[str] = []
    for config in reversed(kinds.values()):
        samples = data.trained_on(config, data.load(config.data, config.folder / "cache"))
        lines += memory_lines(config, samples)
    return lines


class _Questions:
    """The questions of evaluations, counted once for the cells of a sweep that ask the same."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, str], int] = {}

    def count(self, config: Config, test: Sequence[Sample]) -> int:
        """Those of the controls included, as evaluation asks them."""
        controls, answers = config.evaluation.controls, config.evaluation.answers
        key = id(test), f"{controls} {answers}"
        if key not in self._counts:
            self._counts[key] = len(questions_of(test, controls, answers))
        return self._counts[key]


def _cell(
    config: Config,
    name: str,
    throughput: Throughput,
    questions: _Questions,
    seen: dict[tuple[str, str], int],
    index: int,
) -> Cell:
    try:
        request = run_request(config)
    except NoDataError as error:
        return Cell(name, "empty", reason=str(error))
    except ValueError as error:
        return Cell(name, "refused", reason=str(error))
    first = seen.setdefault((request.train_key, request.evaluation_key), index)
    if first != index:
        return Cell(name, "same run", reason=f"as #{first}")
    if request.finished:
        return Cell(name, "done")
    answers = questions.count(config, request.test_samples)
    evaluation = throughput.evaluation(config)
    cell = Cell(
        name,
        "to evaluate",
        generations=answers,
        seconds=None if evaluation is None else evaluation * answers,
        disk=answers * _ANSWER_BYTES,
    )
    if request.state.trained or config.method.algorithm == "none":
        return cell
    return _with_training(cell, config, request, throughput.training(config))


def _with_training(
    cell: Cell, config: Config, request: RunRequest, update_seconds: float | None
) -> Cell:
    updates = _updates(config, request.training_samples)
    rollouts = config.method.num_generations if config.method.algorithm == "grpo" else 0
    seconds = None
    if cell.seconds is not None and update_seconds is not None:
        seconds = cell.seconds + update_seconds * updates
    weights = model_folder.size_on_disk(config.model.path)
    resumes = any(request.folder.checkpoints.glob("checkpoint-*"))
    failed = request.state.state == "failed"
    return replace(
        cell,
        state="to resume" if resumes else "failed before" if failed else "to do",
        updates=updates,
        generations=cell.generations + updates * config.method.prompts_per_step * rollouts,
        seconds=seconds,
        disk=cell.disk + (0 if config.adapter else weights),
        peak=8 * weights,
        reason=(request.state.error or "") if failed else _left_out(config, request),
    )


def _updates(config: Config, samples: int) -> int:
    """Optimizer steps. An incomplete last step of an epoch is made by SFT and dropped by GRPO."""
    if (steps := config.method.trl["max_steps"]) > 0:
        return steps
    steps = samples / config.method.prompts_per_step
    whole = math.ceil(steps) if config.method.algorithm == "sft" else math.floor(steps)
    return math.ceil(whole * config.method.trl["num_train_epochs"])


def _left_out(config: Config, request: RunRequest) -> str:
    questions = request.training_samples
    count = config.left_out_of_epoch(questions)
    return f"each epoch leaves out {count} of {questions} questions" if count else ""


def _print(cells: Sequence[Cell], config: Config) -> None:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("#", "cell", "state", "updates", "generations", "time", "disk", ""):
        side = "left" if head in ("cell", "state", "") else "right"
        table.add_column(head, justify=side, no_wrap=True)
    for i, cell in enumerate(cells):
        table.add_row(*map(Text, (str(i), cell.name, cell.state, *_columns(cell), cell.reason)))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 60 + max(len(c.name) + len(c.reason) for c in cells))
    console.print(table)
    for line in _totals(cells, config):
        console.print(line, highlight=False, soft_wrap=True)


def _print_power(configs: Sequence[Config]) -> None:
    """What a paired test of two models can show in each cell; once for the same questions."""
    tests = {_test_selection(config): config for config in configs}
    for config in tests.values():
        Console().print(_power_table(config, _test_questions(config)), soft_wrap=True)


def _test_selection(config: Config) -> str:
    """The same for as many test questions of the same cells; which of them is up to the seed."""
    cells = config.evaluation.modalities, config.evaluation.tasks
    return repr((config.data, *cells, config.evaluation.samples_per_cell))


def _test_questions(config: Config) -> dict[str, list[str]]:
    """The cluster of each test question, by cell, and of all."""
    cache = config.folder / "cache"
    samples = data.tested_on(config, data.load(config.data, cache))
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
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        table.add_row(f"{names[0]}{more}", *row)
    table.caption, table.caption_justify = _POWER_NOTE.format(settings), "left"
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
    "before Holm's\nadjustment, if they answer {0.discordance:g} of the questions unlike "
    "(statistics.discordance) and the answers of a\n{0.clusters} correlate by {0.correlation:g} "
    "(statistics.correlation)"
)


def _columns(cell: Cell) -> tuple[str, str, str, str]:
    if cell.state in _FINISHED:
        return "-", "-", "-", "-"
    time = "unknown" if cell.seconds is None else duration(cell.seconds)
    return f"{cell.updates:,}", f"{cell.generations:,}", time, _size(cell.disk)


def _totals(cells: Sequence[Cell], config: Config) -> list[str]:
    counts = {
        state: sum(c.state == state for c in cells)
        for state in dict.fromkeys(c.state for c in cells)
    }
    ahead = [cell for cell in cells if cell.state not in _FINISHED]
    known = [cell.seconds for cell in ahead if cell.seconds is not None]
    unknown = len(ahead) - len(known)
    time = duration(sum(known)) if known or not ahead else "unknown"
    if known and unknown:
        time += f" and {unknown} cells unknown: no comparable run has been measured yet"
    disk = sum(cell.disk for cell in ahead)
    needed = disk + max((cell.peak for cell in ahead), default=0)
    free = free_bytes(config.folder)
    lines = [
        f"{len(cells)} cells: " + ", ".join(f"{n} {state}" for state, n in counts.items()),
        f"{sum(c.updates for c in ahead):,} updates, {sum(c.generations for c in ahead):,} "
        f"generations, time {time} (one after the other)",
        f"disk {_size(disk)} kept, {_size(needed)} with the checkpoints of one training; "
        f"{_size(free)} free",
    ]
    if needed > free:
        lines.append(
            f"does not fit: outputs={config.outputs} has {_size(free)} free of {_size(needed)}; "
            "free some space, set outputs=... to another disk, or choose adapter=lora_r8"
        )
    return lines


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
