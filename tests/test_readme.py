"""READMEs name every group and option, and no command, file or link that does not exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import readme_files

from medreason.cli import _help
from medreason.config import CONF, Config
from medreason.sweeps.jobs import first_value

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted(ROOT.glob("**/*.md"))
    if not {".venv", "outputs", ".pytest_cache"} & set(path.relative_to(ROOT).parts)
}
GROUPS = PAGES["conf/README.md"]
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name != "experiment"
)
EXPERIMENTS = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix(""))
    for path in CONF.glob("experiment/**/*.yaml")
)


def code(text: str) -> str:
    """What a page shows to be typed, a command a line, with the variables that it sets."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    shown = [block for language, block in blocks if language in ("", "bash")]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    shown += re.findall(r"(?:^|\n)((?:    .*\n)+)", prose)
    lines = "\n".join([*shown, *re.findall(r"`(python -m medreason[^`]*)`", prose)])
    lines = lines.replace("\\\n", " ")
    for name, value in re.findall(r'^ *([A-Z]+)="(.*)"$', lines, re.MULTILINE):
        lines = lines.replace(f"${name}", value)
    return lines


def commands(text: str) -> list[list[str]]:
    """The arguments of every `python -m medreason` in the code of a page.

    Without those that say how to type one, and those with files of one's own, which
    tests/config/test_own_files.py and tests/data/test_readme_example.py run.
    """
    lines = code(text).splitlines()
    found = [re.search(r"python -m medreason( .*?)(?:&& .*|&)?$", line) for line in lines]
    words = [shlex.split(m[1], comments=True) for m in found if m]
    return [command for command in words if not {"[-m]", "...", "--config-dir"} & {*command}]


def test_help_and_readmes_say_what_the_default_model_is_and_which_to_take(
    composed: Callable[..., Config],
) -> None:
    default = composed()
    assert (default.model.name, default.hardware.name) == ("tiny", "cpu")
    real = composed("model=qwen2_vl_2b", "hardware=gpu")
    assert real.model.path == "Qwen/Qwen2-VL-2B-Instruct"
    pages = ("README.md", "conf/README.md", "medreason/data/README.md")
    texts = [*(PAGES[page].replace("`", "") for page in pages), _help([CONF])]
    for text in map(" ".join, map(str.split, texts)):
        assert "The defaults are model=tiny hardware=cpu" in text
        assert "has only seen drawings" in text
        assert "add model=qwen2_vl_2b hardware=gpu" in text or "as model=qwen2_vl_2b" in text


def test_readmes_agree_on_what_has_run_on_a_gpu() -> None:
    assert "none has been run on one" not in PAGES["conf/README.md"]
    assert "on a GPU nothing was measured" not in PAGES["medreason/training/README.md"]
    table = PAGES["experiments/benchmarks/README.md"].split("under a limit of memory", 1)[1]
    ratios = [float(ratio) for ratio in re.findall(r"\| (1\.\d\d) \|$", table, re.M)[:4]]
    assert (min(ratios), max(ratios), len(ratios)) == (1.0, 1.18, 4)
    assert "0 to 18 % above it in 4 kinds of step" in PAGES["medreason/training/README.md"]
    assert "within 18 % of its estimates" in PAGES["README.md"]


SHOWN = [(page, command) for page, text in PAGES.items() for command in commands(text)]


def test_known_pages_options_and_commands_are_among_those_looked_for() -> None:
    assert {"README.md", "conf/README.md", "experiments/med_r1/README.md"} <= set(PAGES)
    assert ("method", "rarl") in OPTIONS
    assert ("README.md", ["action=report", "sweep=prompts"]) in SHOWN


def test_first_page_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    assert len(PAGES["README.md"].split()) < 1600


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_is_in_the_table(group: str, option: str) -> None:
    (row,) = (line for line in GROUPS.splitlines() if line.startswith(f"| `{group}` |"))
    assert f"`{option}`" in row


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_is_named(experiment: str) -> None:
    assert f"`{experiment}`" in GROUPS


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {target for line in targets for target in line.split()}
    named = {n for text in PAGES.values() for n in re.findall(r"(?:    |`)make ([a-z]+)", text)}
    assert "demo" in named
    assert named <= known


@pytest.mark.parametrize(("page", "command"), SHOWN, ids=lambda value: str(value)[:60])
def test_command_that_is_shown_is_taken(
    page: str, command: list[str], composed: Callable[..., Config]
) -> None:
    overrides = [first_value(word) for word in command if not word.startswith("-")]
    composed(*(word for word in overrides if "hydra" not in word.partition("=")[0]))


@pytest.mark.parametrize("page", PAGES)
def test_other_programs_that_are_shown_are_there(page: str) -> None:
    """Scripts with their options, and the extras that are installed."""
    project = (ROOT / "pyproject.toml").read_text()
    for line in code(PAGES[page]).splitlines():
        for extra in re.findall(r"pip install .*\.\[([\w-]+)\]", line):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
        script = re.search(r"((?:experiments|tests)/[\w/]+\.(?:py|sh))((?: [^#]*)?)", line)
        if script and "::" not in line:
            source = (ROOT / script[1]).read_text()
            assert all(option in source for option in re.findall(r"--[\w-]+", script[2])), line


@pytest.mark.parametrize("page", PAGES)
def test_file_that_is_shown_is_named_and_run_by_a_test(page: str) -> None:
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGES[page], re.DOTALL)
    assert len(readme_files.shown_in(page)) == len(blocks)
    run = ("conf/README.md", "medreason/data/README.md", "medreason/report/README.md")
    assert not blocks or page in run


@pytest.mark.parametrize("page", PAGES)
def test_link_leads_to_a_file_and_heading_that_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES)
def test_page_names_nothing_a_stranger_has_not_got(page: str) -> None:
    assert not re.search(r"\.\./shared|P[A]PERS|D[E]SIGN section|conf/tuned", PAGES[page])


def git(*words: str) -> str | None:
    """What git prints in this repository; None where there is none, or no git."""
    try:
        done = subprocess.run(
            ["git", "-C", ROOT, *words], capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout


COMMIT = r"(?=[0-9a-f]*[a-f])(?=[a-f]*\d)[0-9a-f]{7}"
"""Hashes of letters or digits alone, one of 27, are found behind the word alone."""


def test_every_commit_that_a_page_names_is_in_the_history() -> None:
    """Also in what is put together later: a commit of a branch that was rebased or squashed is not.
    Figures of such a state are named by date, machine and "a state before" the commit that has
    them."""
    known = git("rev-parse", "--show-toplevel", "--is-shallow-repository")
    if known != f"{ROOT}\nfalse\n":
        pytest.skip("no history, or a part of it alone: a shallow clone or no clone at all")
    history = {line[:7] for line in (git("rev-list", "HEAD") or "").split()}
    named = {
        (commit, page)
        for page, text in PAGES.items()
        for commit in re.findall(rf"\b(?:{COMMIT}|(?<=commit )[0-9a-f]{{7}})\b", text)
    }
    assert len(named) > 20
    assert {(commit, page) for commit, page in named if commit not in history} == set()


def test_make_help_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = {word for line in shown.stdout.splitlines() for word in line.split("  ")[0].split()}
    assert {*phony[1].split()} <= named
