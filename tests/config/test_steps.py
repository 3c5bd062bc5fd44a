"""A line says which step sizes a model brings, where that may come as a surprise."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from medreason.config import CONF, steps


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a method of somebody's own, under a name that the tiny model has steps for."""
    (tmp_path / "method").mkdir()
    ours = (CONF / "method/sft.yaml").read_text()
    (tmp_path / "method/sft.yaml").write_text(f"# mine\n{ours}")
    return tmp_path


def line_of(*overrides: str, own: Path | None = None, brief: bool = False) -> str | None:
    words = [f"hydra.searchpath=[{own}]"] if own else []
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = compose("config", overrides=[*words, *overrides], return_hydra_config=True)
    return steps.line(composed, composed.hydra.runtime, brief=brief)


def test_file_that_changes_a_method_of_ones_own_is_named_with_its_values(own: Path) -> None:
    assert line_of("method=sft", own=own) == (
        "model=tiny: conf/model/steps/tiny-sft.yaml sets method.prompts_per_step=8, "
        "method.trl.learning_rate=5e-5; '~model/steps@_global_' keeps the values of method=sft"
    )


def test_line_of_a_sweep_has_no_list_of_values(own: Path) -> None:
    brief = line_of("method=sft", own=own, brief=True)
    assert brief
    assert "tiny-sft.yaml sets 2 values; '~model/steps@_global_'" in brief


def test_value_that_the_command_line_replaces_is_left_out(own: Path) -> None:
    line = line_of("method=sft", "method.prompts_per_step=16", own=own)
    assert line
    assert "learning_rate" in line
    assert "prompts_per_step" not in line


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=grpo",),
        ("model=qwen2_vl_2b",),
        ("method=base",),
        ("~model/steps@_global_",),
        ("action=report",),
        ("method=sft", "method.prompts_per_step=4", "method.trl.learning_rate=1e-3"),
    ],
)
def test_nothing_is_said_where_no_value_comes_from_there(
    overrides: tuple[str, ...], own: Path
) -> None:
    assert line_of(*overrides, own=own) is None


def test_nothing_is_said_of_the_methods_of_this_package() -> None:
    assert line_of("method=sft") is None
