"""CPU seconds of rollouts and evaluations now and in the build before drafts, measured in turn.

    python experiments/benchmarks/before_drafts.py OUTPUTS [--rounds 5] [--rows 3840]

`OUTPUTS` are those of `make demo`, whose start model's replies are the drafts of its trained
models' evaluations. Each figure is of a process of one thread with the code of one commit; the
older one is checked out into a temporary folder. Fails where a completion differs.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BEFORE, HERE = "d5119e0", Path(__file__).parents[2]
METHODS = ("sft", "grpo", "rarl")
QUESTIONS, COMPLETIONS, STEPS, TOKENS = 8, 8, 20, 64


def evaluation(outputs: Path, method: str, rows: int) -> tuple[float, str]:
    """(CPU seconds, digest of the replies) of a run's model on the first rows of its test."""
    from medreason.evaluation import run

    (folder,) = outputs.glob(f"runs/{method}-*")
    config, samples = _configured(outputs, f"model.path={folder / 'model'}")
    asked, drafts = run._test_rows(config, samples["test"])[:rows], dict[str, Any]()
    if "drafts" in inspect.signature(run.predict_rows).parameters:
        from medreason.generation.drafts import draft_history

        (base,) = outputs.glob("runs/base-*")
        earlier = sorted(base.glob("evaluations/*/predictions.parquet"))
        drafts = {"drafts": draft_history("auto", "cpu"), "earlier": earlier}
    began = time.process_time()
    answers = run.predict_rows(config, asked, lambda *_: None, **drafts)
    return time.process_time() - began, _digest(answer.completion for answer in answers)


def rollout(outputs: Path) -> tuple[float, str]:
    """(median CPU seconds of a step, digest of the token ids) of the start model's first steps."""
    from medreason.evaluation.run import evaluation_row
    from medreason.generation.generate import greedy_settings, model_inputs
    from medreason.generation.sampling import sample_completions
    from medreason.models.load import load_model, load_processor

    config, samples = _configured(outputs, "method=grpo")
    model, processor = load_model(config.model, config.hardware), load_processor(config.model)
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    settings = greedy_settings(tokenizer, TOKENS)
    settings.do_sample, settings.temperature, history = True, 1.0, None
    if "drafts" in inspect.signature(sample_completions).parameters:
        from medreason.generation.draft_step import takes_drafts
        from medreason.generation.drafts import draft_history

        assert takes_drafts(model)  # its attention is then that of a training
        history = draft_history("auto", "cpu")
    order = sorted(samples["train"], key=lambda sample: _digest([sample.id]))
    seconds, texts = list[float](), list[str]()
    for step in range(1 + STEPS):
        asked = order[step * QUESTIONS :][:QUESTIONS]
        rows, ids = [evaluation_row(config, each) for each in asked], [each.id for each in asked]
        prompts = [row.prompt for row in rows]
        inputs = model_inputs(model.eval(), processor, asked, prompts, rows[0].image_of)
        drafts = dict[str, Any]()
        if history:
            drafts["drafts"] = history.of_rows([each for each in ids for _ in range(COMPLETIONS)])
        began = time.process_time()
        groups = sample_completions(
            model, inputs, completions=COMPLETIONS, settings=settings, seeds=ids, **drafts
        )
        seconds.append(time.process_time() - began)
        texts += [str([*completion.ids]) for group in groups for completion in group]
    return statistics.median(seconds[1:]), _digest(texts)  # the first step is a warm-up


def _configured(outputs: Path, *overrides: str) -> tuple[Any, dict[str, Any]]:
    """(configuration, samples by split) of the demo with overrides."""
    from hydra import compose, initialize_config_dir

    from medreason import config as configuration
    from medreason import data
    from medreason.config import CONF
    from medreason.models import device

    given = ["experiment=smoke/demo", "hardware.threads=1", f"outputs={outputs}", *overrides]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = configuration.load(compose("config", overrides=given))
    if hasattr(device, "tune_for_cpu"):  # as the worker of today does
        device.tune_for_cpu(config.hardware)
    samples = data.load(config.data, outputs / "cache")
    of_split = {"train": data.trained_on(config, samples), "test": data.tested_on(config, samples)}
    return config, of_split


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def measured(tree: Path, *work: str) -> tuple[float, str]:
    """What `work` (arguments of `--alone`) gives in a process with the code of `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--alone", *work]
    output = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, check=True)
    seconds, digest = json.loads(output.stdout.splitlines()[-1])
    return seconds, digest


def compared(before: Path, rounds: int, *work: str) -> str:
    """A row of the table."""
    figures: list[tuple[float, float]] = []
    for _ in range(rounds):
        (old, said_before), (new, said) = (measured(tree, *work) for tree in (before, HERE))
        if said != said_before:
            raise SystemExit(f"{' '.join(work[1:])}: completions differ from those of {BEFORE}")
        figures.append((old, new))
    old, new = (statistics.median(each) for each in zip(*figures, strict=True))
    speedup = statistics.median(old / new for old, new in figures)
    name = " ".join([work[0], *work[2:3]])
    return f"| {name} | {rounds} | {old:.3g} | {new:.3g} | {speedup:.2f} |"


def main() -> None:
    from medreason.console import show

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default="3840")
    given = parser.parse_args()
    outputs = str(given.outputs.resolve())
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(["git", "-C", HERE, "worktree", "add", "-qd", before, BEFORE], check=True)
        try:
            show("| work | rounds | before, s | now, s | speedup |\n|---|---|---|---|---|")
            show(compared(before, given.rounds, "rollout", outputs))
            for method in METHODS:
                work = ("evaluation", outputs, method, given.rows)
                show(compared(before, given.rounds, *work))
        finally:
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", before], check=True)


def alone(work: str, outputs: str, *rest: str) -> None:
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the workers of both do
    folder = Path(outputs)
    result = evaluation(folder, rest[0], int(rest[1])) if work == "evaluation" else rollout(folder)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        alone(*sys.argv[2:])
    else:
        main()
