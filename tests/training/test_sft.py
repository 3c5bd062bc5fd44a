"""What supervised training imitates, and how much of it, so that it stands beside RL fairly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import draw_samples

from medreason.config import Config
from medreason.runs.run_folder import RunFolder
from medreason.training import run, sft

Compose = Callable[..., Config]
LORA = ("adapter=lora_r8", "method.prompts_per_step=4", "hardware.per_device_prompts=2")


@pytest.mark.parametrize(
    ("overrides", "target"),
    [
        (("prompt=think",), "<think>It is dark.</think>\n<answer>B</answer>"),
        (("prompt=think_after",), "<answer>B</answer>\n<think>It is dark.</think>"),
        (("prompt=no_think",), "<answer>B</answer>"),
        (("prompt=think", "method.target=answer"), "<answer>B</answer>"),
        (("prompt=zero_shot",), "B"),
        (("method.target=med_r1_parity",), "None\n\n<answer> B </answer>"),
    ],
)
def test_target_is_the_explanation_and_the_answer_or_the_answer_alone(
    composed: Compose, tmp_path: Path, overrides: tuple[str, ...], target: str
) -> None:
    sample = replace(draw_samples(tmp_path)[1], explanation="It is dark.")
    assert sft.target(composed("method=sft", *overrides), sample) == target


def test_explanations_left_out_leave_the_answer(composed: Compose, tmp_path: Path) -> None:
    assert sft.target(composed("method=sft"), draw_samples(tmp_path)[0]) == "<answer>A</answer>"


def test_an_update_takes_as_many_questions_by_sft_as_by_rl(
    composed: Compose, tmp_path: Path
) -> None:
    samples = draw_samples(tmp_path)
    taken = {}
    for method in ("sft", "grpo"):
        config = composed(f"method={method}", *LORA)
        trainer = run.build(config, samples, RunFolder(tmp_path / method), [])
        batches = iter(trainer.get_train_dataloader())
        if method == "sft":
            micro = itertools.islice(batches, config.accumulation)
            taken[method] = sum(len(batch["input_ids"]) for batch in micro)
        else:  # TRL repeats a question for each of its completions
            taken[method] = len({row["sample"] for row in next(batches)})
    assert taken == {"sft": 4, "grpo": 4}


def test_loss_is_on_the_answer_and_in_the_parity_recipe_on_the_prompt_too(
    composed: Compose, tmp_path: Path
) -> None:
    parity = ("method.target=med_r1_parity", "+method.trl.completion_only_loss=false")
    texts = []
    for name, overrides in (("ours", ()), ("parity", parity)):
        config = composed("method=sft", *LORA, *overrides)
        trainer = run.build(config, draw_samples(tmp_path), RunFolder(tmp_path / name), [])
        labels = next(iter(trainer.get_train_dataloader()))["labels"][0]
        processor: Any = trainer.processing_class
        texts.append(processor.tokenizer.decode(labels[labels >= 0]))
    ours, published = texts
    assert ours.startswith("<answer>")
    assert "Your task" in published
    assert "None\n\n<answer> " in published
