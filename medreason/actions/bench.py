"""`action=bench`: this model on this machine, grouped against stock TRL in one run."""

from __future__ import annotations

from medreason import data, hardware
from medreason.config import Config
from medreason.runs import ledger


def run(config: Config) -> None:
    """Measure, print a table and write bench.json below outputs/benchmarks."""
    from medreason import benchmark  # torch and trl, seconds

    if config.method.algorithm != "grpo":
        raise ValueError(
            f"action=bench measures GRPO; method={config.method.name} has no completions to share"
        )
    hardware.check(config)
    folder = config.folder / "benchmarks" / config.model.name
    folder.mkdir(parents=True, exist_ok=True)
    samples = data.trained_on(config, data.load(config.data, config.folder / "cache"))
    found = benchmark.measure(config, samples, folder)
    ledger.write_json(folder / "bench.json", found)
    for stage, row in found["stages"].items():
        print(  # noqa: T201
            f"{stage:16} trl {row['trl']:8.3f} s   grouped {row['grouped']:8.3f} s   "
            f"{row['ratio']:5.2f} times"
        )
    print(f"equal {found['equal']}")  # noqa: T201
    print(folder / "bench.json")  # noqa: T201
