"""`action=bench`: this model on this machine: speed against stock TRL, memory against estimate."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from medreason import data
from medreason.config import Config, machine
from medreason.runs.files import write_json
from medreason.samples import Sample


def run(config: Config) -> None:
    """Measure, print a table and write JSON below outputs/benchmarks."""
    machine.check(config)
    speed = config.bench.what != "memory"
    if speed and config.method.algorithm != "grpo":
        raise ValueError(
            f"action=bench measures GRPO; method={config.method.name} has no completions to share; "
            "bench.what=memory takes every method"
        )
    folder = config.folder / "benchmarks" / config.model.name
    folder.mkdir(parents=True, exist_ok=True)
    samples = data.load(config.data, config.folder / "cache")
    if speed:
        _speed(config, samples, folder)
    else:
        _memory(config, samples, folder)


def _speed(config: Config, samples: Sequence[Sample], folder: Path) -> None:
    from medreason.benchmark.speed import measure  # torch and trl, seconds

    found = measure(
        config,
        data.trained_on(config, samples),
        data.tested_on(config, samples),
        folder,
        _say_round,
    )
    write_json(folder / "bench.json", found)
    _print(found)
    print(folder / "bench.json")  # noqa: T201


def _say_round(done: int, rounds: int, tokens: int) -> None:
    part = "warm-up" if done == 0 else f"round {done} of {rounds - 1}"
    print(f"{part}: both ways, {tokens} tokens", file=sys.stderr, flush=True)  # noqa: T201


def _print(found: dict[str, Any]) -> None:
    of, equal, peak = found["of"], found["equal"], found["peak_bytes"]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("stage", "tokens", "TRL, s", "grouped, s", "times", "over its roofline"):
        table.add_column(head, justify="left" if head == "stage" else "right", no_wrap=True)
    for stage, row in found["stages"].items():
        least = found["roofline"].get(stage)
        table.add_row(
            *stage.rsplit("_", 1),
            *(f"{row['trl']:.3f}", f"{row['grouped']:.3f}", f"{row['ratio']:.2f}"),
            f"{row['grouped'] / least:.2f}" if least else "",
        )
    console = Console()
    say = functools.partial(console.print, highlight=False, soft_wrap=True)
    say(
        f"{of['model']}, {of['weights']:,} weights in {of['precision']}, {of['device']}: "
        f"{of['unit']}, medians of {of['repeats']}; {of['prompts_per_step']} x "
        f"{of['num_generations']} completions, evaluation of {of['evaluated_rows']} rows"
    )
    console.print(table)
    say(
        f"on the same completions: log-probabilities at most {equal['logps_max_abs']:.1e} apart, "
        f"gradients {equal['grad_rel']:.1e} relative; answers "
        f"{'the same' if equal['answers'] else 'NOT the same'}; peak memory "
        f"{peak['trl'] / 2**30:.1f} GiB with TRL's stages, {peak['grouped'] / 2**30:.1f} grouped"
    )


def _memory(config: Config, samples: Sequence[Sample], folder: Path) -> None:
    from medreason.benchmark.memory import compare  # torch and trl, seconds

    if config.model.weights == "random" and config.method.algorithm == "grpo":
        trl = {**config.method.trl, "beta": 0.0}  # TRL reads the reference from a folder
        config = replace(config, method=replace(config.method, trl=trl))
    found = compare(config, data.trained_on(config, samples), folder)
    name = "-".join(("memory", config.method.name, config.hardware.name))
    write_json(folder / f"{name}.json", found)
    print(  # noqa: T201
        f"estimated {found['estimate'] / 2**20:.0f} MiB   measured "
        f"{found['measured'] / 2**20:.0f} MiB   {found['ratio']:.2f} times"
    )
