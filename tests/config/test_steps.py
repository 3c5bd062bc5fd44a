"""A line says which step sizes a model brings, with the values that are in effect."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from medreason.config import CONF, steps


def line_of(*overrides: str) -> str | None:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = compose("config", overrides=list(overrides), return_hydra_config=True)
    return steps.line(composed, composed.hydra.runtime)


def test_file_that_applies_is_named_with_its_values() -> None:
    assert line_of("method=sft") == (
        "model=tiny: conf/model/steps/tiny-sft.yaml sets method.prompts_per_step=8, "
        "method.trl.learning_rate=5e-05; '~model/steps@_global_' keeps the values of method=sft"
    )


def test_line_of_a_sweep_has_no_list_of_values() -> None:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = compose("config", overrides=["method=sft"], return_hydra_config=True)
    brief = steps.line(composed, composed.hydra.runtime, brief=True)
    assert brief
    assert "tiny-sft.yaml sets 2 values; '~model/steps@_global_'" in brief


def test_value_that_a_recipe_or_the_command_line_replaces_is_left_out() -> None:
    line = line_of("experiment=smoke/rarl", "method=grpo", "method.prompts_per_step=16")
    assert line
    assert "tiny-grpo.yaml sets method.trl.num_generations=8" in line
    assert "learning_rate" not in line
    assert "prompts_per_step" not in line


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=qwen2_vl_2b",),
        ("method=base",),
        ("~model/steps@_global_",),
        ("action=report",),
        ("method=sft", "method.prompts_per_step=4", "method.trl.learning_rate=1e-3"),
    ],
)
def test_nothing_is_said_where_no_value_comes_from_there(overrides: tuple[str, ...]) -> None:
    assert line_of(*overrides) is None
