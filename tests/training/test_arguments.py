"""TRL's own classes take what we hand them, and a field they do not know is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trl import GRPOConfig, SFTConfig
from trl.trainer.utils import RepeatSampler

from medreason.actions import plan
from medreason.config import Config
from medreason.runs.run_folder import RunFolder
from medreason.training.arguments import trl_arguments

KINDS = {"sft": SFTConfig, "grpo": GRPOConfig, "rarl": GRPOConfig}


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("model", ["tiny", "qwen2_vl_2b"])
def test_every_method_builds_its_trl_config(
    composed: Callable[..., Config], tmp_path: Path, method: str, model: str
) -> None:
    config = composed(f"method={method}", f"model={model}")
    rows = config.method.num_generations * config.hardware.questions_at_once
    built = trl_arguments(
        KINDS[method], config, RunFolder(tmp_path), per_device_train_batch_size=rows
    )
    assert built.learning_rate == config.method.trl["learning_rate"]
    assert built.gradient_accumulation_steps == config.accumulation


def test_papers_recipe_reaches_the_large_models_unchanged(
    composed: Callable[..., Config],
) -> None:
    trl = composed("method=grpo", "model=qwen2_vl_2b").method.trl
    assert (trl["learning_rate"], trl["beta"], trl["num_generations"]) == (1e-6, 0.04, 4)


def test_what_is_always_derived_is_refused_in_time(composed: Callable[..., Config]) -> None:
    for name in ("seed", "output_dir", "per_device_train_batch_size"):
        with pytest.raises(ValueError, match=rf"hardware\.trl\.{name} is derived"):
            composed("method=sft", f"+hardware.trl.{name}=1")


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        (("method=grpo",), 2),
        (("method=grpo", "hardware=cpu_x2", "hardware.per_device_prompts=2"), 2),
        (("method=grpo", "+method.trl.steps_per_generation=3"), 1),
        (("method=sft",), 0),
        (("method=base",), 0),
    ],
)
def test_questions_that_an_epoch_of_grpo_leaves_out_are_those_of_trls_sampler(
    composed: Callable[..., Config], overrides: tuple[str, ...], left_out: int
) -> None:
    config = composed("method.prompts_per_step=4", "hardware.per_device_prompts=1", *overrides)
    assert config.left_out_of_epoch(10) == left_out
    if left_out:
        batch = config.method.trl.get("steps_per_generation") or 4
        sampler = RepeatSampler(range(10), mini_repeat_count=2, batch_size=batch)  # pyright: ignore
        assert len(set(sampler)) == 10 - left_out


def test_plan_says_how_many_questions_an_epoch_leaves_out(
    composed: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    plan.run(
        composed(
            *("action=plan", "method=grpo", "modality=ct", "task=disease"),
            *("data.train_images=10", "data.test_images=1", "method.prompts_per_step=4"),
        )
    )
    assert "each epoch leaves out 2 of 10 questions" in capsys.readouterr().out
