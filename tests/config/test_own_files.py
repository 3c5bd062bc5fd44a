"""The reward and the prompt that conf/README.md shows work as they stand there, and are checked."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import commands
import pytest
import readme_files

README = (Path(__file__).parents[2] / "conf/README.md").read_text()
FILES = readme_files.shown_in("conf/README.md")


def plan(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    small = ("data.train_images=8", "data.test_images=2", "tracking=none")
    environment = os.environ | {"PYTHONPATH": paths}
    return commands.medreason(*words, *small, cwd=folder, env=environment)


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """A folder with the files as the README shows them."""
    assert set(FILES) == {"my_rewards.py", "my/reward/brief.yaml", "my/prompt/look_first.yaml"}
    readme_files.write(FILES, tmp_path)
    return tmp_path


def test_reward_and_prompt_of_the_readme_are_taken(shown: Path) -> None:
    (command,) = re.findall(r"medreason (--config-dir my action=plan .*)", README)
    done = plan(shown, *shlex.split(command))
    assert done.returncode == 0, done.stderr
    assert "1 job: 1 to do" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reply: Reply, sample: Sample, *", "reply: Reply, *", r"takes \(.*; a score takes \(rep"),
        (
            "return 0.0",
            "return sample.options[9]",
            "IndexError: .* at my_rewards.py, line 9",
        ),
        ("def brief", "de brief", "SyntaxError.*my_rewards.py, line "),
    ],
)
def test_wrong_reward_is_refused_by_function_and_line(
    old: str, new: str, message: str, shown: Path
) -> None:
    (shown / "my_rewards.py").write_text(FILES["my_rewards.py"].replace(old, new))
    done = plan(shown, "--config-dir", "my", "action=plan", "reward=brief")
    told = done.stdout + done.stderr
    assert "Traceback" not in told
    assert re.search(message, " ".join(told.split())), told
    assert "my_rewards.py, line" in told


def test_a_new_reward_on_the_command_line_is_told_its_file(tmp_path: Path) -> None:
    done = plan(tmp_path, "action=plan", "+reward.brief.score._target_=my_rewards.brief")
    assert done.returncode == 1
    assert "a file: DIR/reward/brief.yaml" in done.stderr
