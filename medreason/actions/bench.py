"""`action=bench`: this model on this machine: speed against stock TRL, with drafts against without,
memory against estimate."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from medreason import data
from medreason.config import Config, machine
from medreason.console import notice, show
from medreason.execution import gpu_slots
from medreason.models import model_folder
from medreason.report.terminal import Terminal
from medreason.runs.files import write_json
from medreason.samples import Sample
from medreason.training.memory_limits import with_questions_at_once

_HEADINGS = ("stage", "tokens", "baseline, s", "grouped, s", "speedup", "x roofline")

_DRAFT_HEADINGS = (
    *("stage", "rows", "differ", "per pass", "accepted"),
    *("plain, s", "drafts, s", "speedup"),
)


def run(config: Config) -> None:
    """Measure, print a table and write JSON below outputs/benchmarks.

    Raises:
        ValueError: the method has nothing to measure, or the profile takes several devices.
    """
    config = replace(config, model=model_folder.of_run(config.model))
    _refuse_unmeasurable(config)
    gpu_slots.hold_one(config.hardware)
    folder = config.folder / "benchmarks" / config.model.name
    folder.mkdir(parents=True, exist_ok=True)
    samples = data.samples_of(config)
    config, chosen = with_questions_at_once(config, data.trained_on(config, samples))
    if chosen:
        notice(chosen)
    match config.bench.what:
        case "speed":
            _speed(config, samples, folder)
        case "drafts":
            _drafts(config, samples, folder)
        case _:
            _memory(config, samples, folder)


def _refuse_unmeasurable(config: Config) -> None:
    if config.hardware.processes > 1:
        raise ValueError(
            f"action=bench measures one device; hardware={config.hardware.name} takes "
            f"{config.hardware.processes}; set hardware.devices=1 hardware.nodes=1 "
            "hardware.parallel=ddp hardware.offload=false"
        )
    machine.check(config)
    if config.bench.what != "memory" and config.method.algorithm != "grpo":
        raise ValueError(
            f"bench.what={config.bench.what} measures GRPO; method={config.method.name} has no "
            "completions to sample; bench.what=memory takes every method"
        )


def _speed(config: Config, samples: Sequence[Sample], folder: Path) -> None:
    from medreason.benchmark.speed import measure  # torch and trl, seconds

    results = measure(
        config,
        data.trained_on(config, samples),
        data.tested_on(config, samples),
        folder,
        _notice_round,
    )
    write_json(folder / "bench.json", results)
    _print(results)
    show(folder / "bench.json")


def _notice_round(done: int, rounds: int, tokens: int) -> None:
    part = "warm-up" if done == 0 else f"round {done} of {rounds - 1}"
    notice(f"{part}: both engines, {tokens} tokens")


def _print(results: dict[str, Any]) -> None:
    setup, equality, peak = results["setup"], results["equality"], results["peak_bytes"]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
    for stage, row in results["stages"].items():
        least = results["roofline"].get(stage)
        table.add_row(
            *stage.rsplit("_", 1),
            *(f"{row['baseline']:.3f}", f"{row['grouped']:.3f}", f"{row['speedup']:.2f}"),
            f"{row['grouped'] / least:.2f}" if least else "",
        )
    console = Terminal()
    write = functools.partial(console.print, highlight=False, soft_wrap=True)
    write(
        f"{setup['model']}, {setup['parameters']:,} parameters in {setup['precision']}, "
        f"{setup['device']}: {setup['unit']}, medians of {setup['repeats']}; "
        f"{setup['prompts_per_step']} x {setup['num_generations']} completions, evaluation of "
        f"{setup['evaluated_rows']} rows; baseline: stock TRL"
    )
    console.print(table)
    write(
        "on the same completions: log-probabilities differ by at most "
        f"{equality['logps_max_abs']:.1e}, gradients by {equality['grad_rel']:.1e} relative; "
        f"answers {'the same' if equality['answers'] else 'NOT the same'}; peak memory "
        f"{peak['baseline'] / 2**30:.1f} GiB baseline, {peak['grouped'] / 2**30:.1f} GiB grouped"
    )


def _drafts(config: Config, samples: Sequence[Sample], folder: Path) -> None:
    if config.rollout.draft_tokens == "0":
        raise ValueError("rollout.draft_tokens=0: no drafts to measure; give auto or a number")
    replies = config.bench.replies
    if replies and not Path(replies).is_file():
        raise ValueError(
            f"bench.replies={replies}: no such file; name a predictions.parquet of the start model"
        )
    from medreason.benchmark.drafts import measure  # torch and trl, seconds

    results = measure(
        config,
        data.trained_on(config, samples),
        data.tested_on(config, samples),
        lambda stage: notice(f"both ways: {stage}"),
    )
    write_json(folder / "drafts.json", results)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in _DRAFT_HEADINGS:
        table.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
    for stage, row in results["stages"].items():
        acceptance = row.get("draft_acceptance")
        table.add_row(
            *(stage, str(row["rows"]), str(row["different_rows"])),
            f"{row['tokens_per_pass']:.2f}",
            "" if acceptance is None else f"{acceptance:.0%}",
            *(f"{row['plain']:.2f}", f"{row['drafts']:.2f}", f"{row['speedup']:.2f}"),
        )
    Terminal().print(table)
    show(folder / "drafts.json")


def _memory(config: Config, samples: Sequence[Sample], folder: Path) -> None:
    from medreason.benchmark.memory import compare  # torch and trl, seconds

    if config.model.weights == "random" and config.method.algorithm == "grpo":
        trl = {**config.method.trl, "beta": 0.0}  # TRL loads a reference model from a folder
        config = replace(config, method=replace(config.method, trl=trl))
    results = compare(config, data.trained_on(config, samples), folder)
    name = "-".join(("memory", config.method.name, config.hardware.name))
    write_json(folder / f"{name}.json", results)
    show(
        f"estimated {results['estimate'] / 2**20:.0f} MiB   measured "
        f"{results['measured'] / 2**20:.0f} MiB   {results['ratio']:.2f} times"
    )
