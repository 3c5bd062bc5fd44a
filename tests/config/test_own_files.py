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

from medreason.config import CONF, options

README = (Path(__file__).parents[2] / "conf/README.md").read_text()
FILES = readme_files.shown_in("conf/README.md")


def plan(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    small = ("data.train_images=8", "data.test_images=2", "tracking=none")
    environment = os.environ | {"PYTHONPATH": paths}
    return commands.medreason(*words, *small, cwd=folder, env=environment)


LATE = """
def late(reply, sample):
    return 0.0 if len(reply.text.split()) < 3 else None
"""


def test_reward_that_fails_in_training_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "my_late.py").write_text(LATE)
    (tmp_path / "my/reward").mkdir(parents=True)
    file = "late:\n  score: {_target_: my_late.late}\n  weight: 1.0\n"
    (tmp_path / "my/reward/late.yaml").write_text(file)
    words = ["--config-dir", "my", "method=grpo", "reward=late", "method.trl.max_steps=1"]
    small = ["method.prompts_per_step=4", "method.trl.num_generations=2", "hardware.threads=1"]
    done = plan(tmp_path, *words, *small, "method.trl.max_completion_length=24", "model=tiny")
    said = [line for line in done.stderr.splitlines() if "reward.late" in line]
    assert done.returncode == 1
    assert len(said) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == said[0]
    told = (
        r"medreason: grpo-\S+: reward\.late: my_late\.late \(my_late\.py, line 2\) gave None, "
        r"not a number, for a reply to sample \S+: '.+'; mend the function, or drop the reward "
        r"with ~reward\.late \(see \S+/train\.log\)"
    )
    assert re.fullmatch(told, said[0]), said[0]
    assert "Traceback" not in done.stderr
    (log,) = tmp_path.glob("outputs/runs/grpo-*/train.log")
    assert "Traceback" in log.read_text()


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


def test_told_command_that_adds_the_start_model_keeps_the_folder_of_own_files(shown: Path) -> None:
    done = plan(shown, "--config-dir", "my", "action=plan", "-m", "sweep=s", "method=base,rarl")
    command = r"`python -m medreason --config-dir my .*method=base prompt=rarl sweep=s` adds"
    assert re.search(command, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reply: Reply, sample: Sample, *", "reply: Reply, *", r"takes \(.*; a score takes \(rep"),
        ("sample: Sample, *, ", "", r"get the reply and the sample; write \(reply, sample, \*, "),
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


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "prompt/own.yaml",
            'train: "{question} say"',
            'prompt.train: "{question} say" is no list; write train: ["{question} say"]',
        ),
        (
            "prompt/own.yaml",
            'evaluate: ["{question} b"]',
            'prompt.evaluate: ["{question} b"]; it takes a text: write evaluate: "{question} b"',
        ),
        ("prompt/own.yaml", "evaluate: {question}", "prompt.evaluate takes no keys; in a file, a"),
        (
            "prompt/own.yaml",
            "families: {a: b}",
            '.families.a: "b" is no list; write a: ["b"]',
        ),
        (
            "reward/own.yaml",
            "format: 0.5",
            "reward.format: 0.5 is no mapping of keys; for the weight of the reward, write format: "
            "{weight: 0.5}",
        ),
        (
            "reward/own.yaml",
            "format: {weight: high}",
            'reward.format.weight: "high"; it takes a n',
        ),
        (
            "reward/own.yaml",
            "brief: {score: my.brief}",
            'reward.brief.score: "my.brief" is no mapping of keys; for a function, write score: '
            "{_target_: my.brief}",
        ),
        (
            "reward/own.yaml",
            "brief: {_target_: my.brief, words: 3}",
            "reward.brief._target_ is unknown; did you mean reward.brief.score._target_?",
        ),
        (
            "reward/own.yaml",
            "format: {wieght: 1}",
            "reward.format.wieght is unknown; did you mean reward.format.weight?",
        ),
        (
            "experiment/own.yaml",
            "# @package _global_\nprompt: think",
            "prompt: think is an option; a file chooses it in its defaults list: `- override "
            "/prompt: think`",
        ),
    ],
)
def test_value_of_another_type_in_an_own_file_is_refused_with_what_to_write(
    file: str, content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(content)
    group = file.partition("/")[0]
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{re.escape(message)}"):
        options.check([f"{group}=own"], [CONF, tmp_path])


def test_remedies_for_own_files_are_taken(tmp_path: Path) -> None:
    written = {
        "prompt/own.yaml": """defaults: [think, _self_]
train: ["{question} say <answer>"]
evaluate: "{question} b"
families: {a: ["{question} c"]}""",
        "reward/own.yaml": "defaults: [med_r1, _self_]\nformat: {weight: 0.5}",
        "experiment/own.yaml": """# @package _global_
defaults: [override /prompt: own, override /reward: own]""",
    }
    for name, content in written.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    shown = commands.medreason(
        "--config-dir", tmp_path, "--cfg", "job", "experiment=own", cwd=tmp_path
    )
    assert shown.returncode == 0, shown.stderr
    assert "evaluate: '{question} b'" in shown.stdout
    assert "weight: 0.5" in shown.stdout


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("reward.format=0.5", "for the weight of the reward, type reward.format.weight=0.5"),
        ("reward.format={weight:high}", "reward.format.weight=high; it takes a number"),
        ("method.trl=5", "method.trl=5 is no mapping of keys; set a key of it, method.trl.NAME"),
        ("second_judge=openai", "a judge is chosen by judge@second_judge=openai"),
        ("evaluation.controls=null", "evaluation.controls=null; it takes a list of texts"),
        ("prompt.evaluate.a=3", "prompt.evaluate takes no keys"),
    ],
)
def test_value_of_another_type_on_the_command_line_is_refused(typed: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        options.check([typed], [CONF])


def test_a_new_reward_on_the_command_line_is_told_its_file(tmp_path: Path) -> None:
    done = plan(tmp_path, "action=plan", "+reward.brief.score._target_=my_rewards.brief")
    assert done.returncode == 1
    assert "a file: DIR/reward/brief.yaml" in done.stderr
