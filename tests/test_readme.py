"""The README names every group and option, and no command that does not exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from medreason.config import CONF, Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("experiment", "steps")
)
EXPERIMENTS = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix(""))
    for path in CONF.glob("experiment/**/*.yaml")
)


def test_a_known_option_is_among_those_looked_for() -> None:
    assert ("method", "rarl") in OPTIONS


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_is_in_the_table(group: str, option: str) -> None:
    (row,) = (line for line in README.splitlines() if line.startswith(f"| `{group}` |"))
    assert f"`{option}`" in row


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_is_named(experiment: str) -> None:
    assert f"`{experiment}`" in README


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {target for line in targets for target in line.split()}
    assert set(re.findall(r"make ([a-z]+)", README)) <= known


def test_overrides_that_are_shown_are_taken(composed: Callable[..., Config]) -> None:
    shown = set(re.findall(r"(?<![\w.])((?:method|model|hardware|prompt)=[a-z0-9_,]+)", README))
    assert shown
    for override in shown:
        group, _, options = override.partition("=")
        for option in options.split(","):
            assert (CONF / group / f"{option}.yaml").exists(), override
