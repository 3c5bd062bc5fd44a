"""GRPO of the tiny model with completions of vLLM and of our own rollout: do both learn alike?

    python experiments/vllm/learning.py OUTPUTS [rollout=SEED ...]

Trains three seeds of each (or those named, as in vllm=0), each in a process of its own; a finished
one is not trained again. Prints the table in README.md of all that are finished.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from scipy.stats import t

from medreason import config as configuration
from medreason.console import show
from medreason.evaluation.predictions import load_metrics
from medreason.metrics import Metric
from medreason.runs.run_folder import RunFolder, run_folders

SETTINGS = (
    *("method=grpo", "modality=xray", "prompt=think", "tracking=none", "evaluation.controls=[]"),
    *("method.prompts_per_step=4", "hardware.per_device_prompts=4", "method.trl.max_steps=40"),
    *("evaluation.modalities=[xray]", "evaluation.max_new_tokens=40", "hardware.threads=1"),
    "runs.show_table=false",
)
ROLLOUTS, SEEDS = ("grouped", "vllm"), (0, 1, 2)
LAST = 10
"""Steps at the end whose rewards are averaged."""


def train(outputs: Path, rollout: str, seed: int) -> None:
    command = [sys.executable, "-m", "medreason", *SETTINGS, f"rollout={rollout}", f"seed={seed}"]
    subprocess.run([*command, f"outputs={outputs}"], check=True, stdout=sys.stderr)


def finished(outputs: Path, rollout: str, seed: int) -> RunFolder | None:
    for run in run_folders(outputs / "runs"):
        config = configuration.read(run.config)
        if (config.rollout.name, config.seed) == (rollout, seed) and run.state().state == "done":
            return run
    return None


def figures(run: RunFolder) -> tuple[float, float, float]:
    """(reward of the first steps, reward of the last ones, accuracy of the test in percent)."""
    rewards = [row["reward"] for row in run.logged() if row.get("reward") is not None]
    (evaluation,) = (path.parent for path in run.path.glob("evaluations/*/metrics.json"))
    accuracy = load_metrics(evaluation)["overall"][Metric.ACCURACY]
    return statistics.mean(rewards[:LAST]), statistics.mean(rewards[-LAST:]), 100 * accuracy


def difference(first: list[float], second: list[float]) -> str:
    """Second minus first, with the 95 % interval of pairs of the same seed."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean, n = statistics.mean(differences), len(differences)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("runs", nargs="*", metavar="ROLLOUT=SEED")
    given = parser.parse_args()
    everything = [f"{rollout}={seed}" for seed in SEEDS for rollout in ROLLOUTS]
    for name in given.runs or everything:
        rollout, _, seed = name.partition("=")
        if not finished(given.outputs, rollout, int(seed)):
            train(given.outputs, rollout, int(seed))
    show("| rollout | seed | reward, first 10 steps | last 10 | test accuracy, % |")
    show("|---|---|---|---|---|")
    columns: dict[str, list[tuple[float, float, float]]] = {rollout: [] for rollout in ROLLOUTS}
    for rollout, rows in columns.items():
        for seed in SEEDS:
            if run := finished(given.outputs, rollout, seed):
                rows.append(figures(run))
                first, last, accuracy = rows[-1]
                show(f"| {rollout} | {seed} | {first:.2f} | {last:.2f} | {accuracy:.1f} |")
    if all(len(rows) == len(SEEDS) for rows in columns.values()):
        pairs = zip(*(zip(*columns[rollout], strict=True) for rollout in ROLLOUTS), strict=True)
        cells = [difference([*ours], [*theirs]) for ours, theirs in pairs]
        show(f"| vllm - grouped | | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
