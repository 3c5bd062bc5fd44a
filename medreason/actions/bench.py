"""`action=bench`: this model on this machine: speed against stock TRL, memory against estimate."""

from __future__ import annotations

from dataclasses import replace

from medreason import data, hardware
from medreason.config import Config
from medreason.runs import ledger


def run(config: Config) -> None:
    """Measure, print a table and write JSON below outputs/benchmarks."""
    hardware.check(config)
    folder = config.folder / "benchmarks" / config.model.name
    folder.mkdir(parents=True, exist_ok=True)
    samples = data.trained_on(config, data.load(config.data, config.folder / "cache"))
    if config.bench.what == "memory":
        if config.model.weights == "random":  # TRL reads the reference from a folder
            trl = {**config.method.trl, "beta": 0.0}
            sampled = config.method.algorithm == "grpo"
            config = replace(config, method=replace(config.method, trl=trl)) if sampled else config
        from medreason.training import footprint  # torch and trl, seconds

        found = footprint.compare(config, samples, folder)
        name = "-".join(("memory", config.method.name, config.hardware.name))
        ledger.write_json(folder / f"{name}.json", found)
        print(  # noqa: T201
            f"estimated {found['estimate'] / 2**20:.0f} MiB   measured "
            f"{found['measured'] / 2**20:.0f} MiB   {found['ratio']:.2f} times"
        )
        return
    from medreason import benchmark  # torch and trl, seconds

    if config.method.algorithm != "grpo":
        raise ValueError(
            f"action=bench measures GRPO; method={config.method.name} has no completions to share; "
            "bench.what=memory takes every method"
        )
    found = benchmark.measure(config, samples, folder)
    ledger.write_json(folder / "bench.json", found)
    for stage, row in found["stages"].items():
        print(  # noqa: T201
            f"{stage:16} trl {row['trl']:8.3f} s   grouped {row['grouped']:8.3f} s   "
            f"{row['ratio']:5.2f} times"
        )
    print(f"equal {found['equal']}")  # noqa: T201
    print(folder / "bench.json")  # noqa: T201
