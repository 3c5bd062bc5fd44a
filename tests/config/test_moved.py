"""Names of earlier versions are refused with the new one, and the new ones exist."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medreason import moved
from medreason.config import CONF, Config, options, target

Compose = Callable[..., Config]


@pytest.mark.parametrize("old", moved.KEYS)
@pytest.mark.parametrize("form", ["{}=1", "+{}=1", "++{}=1", "~{}", "{}=1,2"])
def test_old_key_on_the_command_line_names_the_new_one(old: str, form: str) -> None:
    with pytest.raises(ValueError, match=rf"^{old} is now {moved.KEYS[old]}$"):
        options.check([form.format(old)], [CONF])


def test_key_without_a_successor_says_why() -> None:
    with pytest.raises(ValueError, match=r"rollout.flex_attention is gone, leave it out: .*sdpa"):
        options.check(["rollout.flex_attention=true"], [CONF])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout=hf", "rollout='hf'; .*'hf' is now trl$"),
        ("evaluation=full,likelihood", "evaluation='likelihood'; .*is now option_likelihood$"),
    ],
)
def test_old_option_names_the_new_one(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options.check([override], [CONF])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.fallback=plain", "'plain' is now unshared"),
        ("evaluation.answers=[likelihood]", "'likelihood' is now option_likelihood"),
        ("evaluation.controls=[none]", "'none' is now original, which is always evaluated"),
    ],
)
def test_old_value_names_the_new_one(composed: Compose, override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        composed(override)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("medreason.scores.correct", "medreason.rewards.answer.correct"),
        ("medreason.scores.follows_format", "medreason.rewards.format.follows_format"),
        ("medreason.penalties.repetition", "medreason.rewards.length.repetition"),
        ("medreason.reasoning.consistent", "medreason.rewards.reasoning.consistency"),
        ("medreason.data.phantom.load", "medreason.phantom.load"),
    ],
)
def test_old_target_names_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ValueError, match=rf"^_target_='{old}' is now '{new}'$"):
        target(old)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("from medreason.scores import words", "words is medreason.rewards.words.words"),
        ("from medreason import statistics", "medreason.statistics is now medreason.stats;"),
        ("import medreason.data.phantom", "medreason.data.phantom is now medreason.phantom"),
        ("import medreason.data.phantom.ct", "medreason.data.phantom is now medreason.phantom"),
        ("from medreason.runs import ledger", "medreason.runs.ledger is now medreason.runs.run"),
    ],
)
def test_old_import_names_the_new_module(statement: str, words: str) -> None:
    with pytest.raises(ImportError, match=words):
        exec(statement)


@pytest.mark.parametrize("statement", ["import medreason.nothing", "import statistics, scores"])
def test_other_imports_are_as_ever(statement: str) -> None:
    with pytest.raises(ImportError, match=r"^No module named '(medreason\.nothing|scores)'$"):
        exec(statement)


def test_module_of_a_user_with_an_old_import_is_refused_with_the_new_name(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "from medreason.scores import words\n\n\ndef short(reply, sample):\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"_target_='my_rewards.short' .*medreason.rewards.words"):
        composed("reward.correct.score._target_=my_rewards.short")


def test_every_new_name_exists() -> None:
    for module in moved.MODULES.values():
        assert importlib.util.find_spec(f"medreason.{module}"), module
    for path in moved.FUNCTIONS.values():
        module, _, function = path.rpartition(".")
        assert hasattr(importlib.import_module(f"medreason.{module}"), function), path


def test_recipe_with_an_old_key_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "experiment/mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text("# @package _global_\nrollout:\n  features_gb: 1\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: rollout.features_gb is now rollout.vision"):
        options.check(["experiment=mine"], [CONF, tmp_path])
    judge = tmp_path / "judge/mine.yaml"
    judge.parent.mkdir()
    judge.write_text("name: mine\nsame_as_reward: true\n")
    with pytest.raises(ValueError, match=r"second_judge.same_as_reward is now second_judge.allow"):
        options.check(["judge@second_judge=mine"], [CONF, tmp_path])


def test_command_line_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medreason", "hardware.probe=true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "medreason: hardware.probe is now hardware.memory_check\n"
