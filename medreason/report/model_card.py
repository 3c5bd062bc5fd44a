"""The model card of an export: what it is made of, what it scored, what it is not for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medreason import config as configuration
from medreason.config import Config
from medreason.evaluation import predictions
from medreason.runs.run_folder import RunFolder

_FIGURES = {
    "prior": "options alone (question-only prior)",
    "blank_image": "blank image",
    "shuffled_image": "another patient's image",
    "no_image": "no image",
    "permuted_options": "all rotations of the options",
    "option_invariance": "same option under all rotations",
    "parsed": "replies that could be read",
}


def card(config: Config, model: Path) -> str:
    """Markdown; of a model outside a run folder the origin is what is missing, and said so."""
    folder = RunFolder(model.parent)
    of_run = folder.config.exists()
    trained = configuration.read(folder.config) if of_run else config
    # The origin by name: a path of the machine that made it would tell nobody anything.
    start = trained.model.name
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "tags: [medical, visual-question-answering, medreason]",
        "---",
        f"# {folder.path.name if of_run else start}",
        "",
        "For research on post-training of vision-language models. **Not for diagnosis**, nor for "
        "any decision about a patient: nothing here was tested for that.",
        "",
    ]
    if not of_run:
        return "\n".join(
            [*lines, f"Exported from model `{start}`; no run folder came with it.", ""]
        )
    return "\n".join([*lines, *_origin(trained, folder, start), *_results(folder), *_use(trained)])


def _origin(config: Config, folder: RunFolder, start: str) -> list[str]:
    parts = folder.state().train_parts
    facts = {
        "start model": start,
        "method": config.method.name,
        "data": f"{config.choices.get('data') or config.data['_target_']}",
        "data digest": parts.get("data", "-"),
        "trained on": f"{', '.join(config.modality.members)}; {', '.join(config.task.members)}",
        "rewards": ", ".join(f"{n} x {r.weight:g}" for n, r in config.reward.items())
        if config.method.algorithm == "grpo"
        else "-",
        "adapter": f"LoRA rank {config.adapter['r']}" if config.adapter else "none, all weights",
        "seed": config.seed,
        "train key": folder.state().train_key,
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), ""]


def _results(folder: RunFolder) -> list[str]:
    evaluations = folder.state().evaluations
    if not evaluations:
        return ["No evaluation was run.", ""]
    found: dict[str, Any] = predictions.load_metrics(folder.evaluation(evaluations[-1]))["overall"]
    interval = f"[{100 * found['ci_low']:.1f}, {100 * found['ci_high']:.1f}]"
    shown = {
        f"accuracy, {found['n']} questions, 95 % interval": (
            f"{100 * found['accuracy']:.1f} {interval}"
        ),
        **{
            text: f"{100 * found[name]:.1f}"
            for name, text in _FIGURES.items()
            if found.get(name) is not None
        },
    }
    rows = [f"| {name} | {value} |" for name, value in shown.items()]
    return ["| measured | % |", "|---|---:|", *rows, ""]


def _use(config: Config) -> list[str]:
    return [
        "Asked in training and evaluation, behind the image:",
        "",
        *(f"    {line}" for line in config.prompt.evaluation.splitlines()),
        "",
    ]
