"""`action=bench`: this model on this machine: speed against stock TRL, memory against estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medreason import data, hardware
from medreason.config import Config
from medreason.runs import ledger
from medreason.samples import Sample


def run(config: Config) -> None:
    """Measure, print a table and write JSON below outputs/benchmarks."""
    hardware.check(config)
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
    from medreason import benchmark  # torch and trl, seconds

    found = benchmark.measure(
        config, data.trained_on(config, samples), data.tested_on(config, samples), folder
    )
    ledger.write_json(folder / "bench.json", found)
    for stage, row in found["stages"].items():
        print(  # noqa: T201
            f"{stage:16} trl {row['trl']:8.3f} s   grouped {row['grouped']:8.3f} s   "
            f"{row['ratio']:5.2f} times"
        )
    print(f"equal {found['equal']}")  # noqa: T201
    print(folder / "bench.json")  # noqa: T201


def _memory(config: Config, samples: Sequence[Sample], folder: Path) -> None:
    from medreason.training import footprint  # torch and trl, seconds

    if config.model.weights == "random" and config.method.algorithm == "grpo":
        trl = {**config.method.trl, "beta": 0.0}  # TRL reads the reference from a folder
        config = replace(config, method=replace(config.method, trl=trl))
    found = footprint.compare(config, data.trained_on(config, samples), folder)
    name = "-".join(("memory", config.method.name, config.hardware.name))
    ledger.write_json(folder / f"{name}.json", found)
    print(  # noqa: T201
        f"estimated {found['estimate'] / 2**20:.0f} MiB   measured "
        f"{found['measured'] / 2**20:.0f} MiB   {found['ratio']:.2f} times"
    )
