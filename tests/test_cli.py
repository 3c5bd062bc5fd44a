"""The command line: options anywhere; what other launchers left decides nothing, and is named."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from medreason import cli, console
from medreason.config import CONF, flags, options

OTHERS = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "ACCELERATE_MIXED_PRECISION": "bf16"}


def test_variables_of_other_launchers_are_dropped_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"MASTER_PORT": "4711", "PATH": "/bin"}  # a node of a Slurm job reads the port
    monkeypatch.setattr(os, "environ", OTHERS | names)
    cli._leave_other_launchers()
    assert os.environ == names
    assert "ACCELERATE_MIXED_PRECISION, LOCAL_RANK, RANK, WORLD_SIZE" in capsys.readouterr().err
    cli._leave_other_launchers()
    assert not capsys.readouterr().err


def test_help_shows_a_report_and_a_judge_of_the_demo() -> None:
    shown = cli._help([CONF])
    for action in ("action=report", "action=judge judge=openai"):
        assert f"{console.command(action.split())} sweep=demo " in shown


def test_command_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    started = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1"}
    monkeypatch.setattr(os, "environ", started)
    with pytest.raises(ValueError, match="one of 2 processes; medreason starts its own"):
        cli._leave_other_launchers()


@pytest.mark.parametrize(
    "typed", ["a=1 -m b=2", "-m a=1 b=2", "a=1 b=2 -m", "a=1 --config-dir mine -m b=2"]
)
def test_options_stand_anywhere_among_the_overrides(typed: str) -> None:
    words = typed.split()
    arguments, rest = get_args_parser().parse_known_intermixed_args(words)
    hydra = get_args_parser().parse_args(cli._for_hydra(words, arguments))
    assert (rest, hydra.overrides, hydra.multirun) == ([], ["a=1", "b=2"], True)


def test_what_goes_on_is_said_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = [
        "method=sft",
        "method.trl.max_steps=20",
        "adapter.r=4",
        "++data.root=x",
        "+adapter.b=1",
    ]
    for_hydra = list(map(options.for_hydra, typed))
    assert for_hydra[1:3] == ["++method.trl.max_steps=20", "++adapter.r=4"]
    monkeypatch.setattr(sys, "argv", ["medreason", "-m", *for_hydra])
    monkeypatch.delenv(console.STARTED_BY, raising=False)
    assert options.started_command().endswith(f" -m medreason -m {' '.join(typed)}")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--hlep", "--hlep: no such flag; did you mean --help?"),
        ("--dry-run", "--dry-run: no such flag; action=plan says what a command would do"),
        ("a=1 --method=sft", "--method=sft: groups and keys are typed without dashes: method=sft"),
        ("--method sft", "typed without dashes: method=..."),
        ("--method.trl.lr=1", "did you mean, without dashes, method.trl.learning_rate?"),
        ("--colour", "--colour: no such flag; --help shows what can be typed"),
        ("--cfg everything", "argument --cfg/-c: invalid choice: 'everything'"),
        ("--config-dir", "argument --config-dir/-cd: expected one argument"),
    ],
)
def test_flag_that_is_none_is_named_with_what_may_be_meant(
    typed: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["medreason", *typed.split()])
    with pytest.raises(ValueError, match=re.escape(message)):
        flags.parse({"method"})


def test_command_to_type_names_an_interpreter_that_has_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(folder))
    assert console.command(["sweep=a b"]) == "python -m medreason 'sweep=a b'"
    monkeypatch.setenv("PATH", str(tmp_path))  # the environment is not activated
    monkeypatch.chdir(folder.parent)
    assert console.command() == f"{folder.name}/{Path(sys.executable).name} -m medreason"
    monkeypatch.chdir(tmp_path)
    typed = console.command(["--version"])
    assert typed == f"{shlex.quote(sys.executable)} -m medreason --version"
    assert subprocess.run(shlex.split(typed), check=False).returncode == 0


def test_python_of_another_environment_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").symlink_to(sys.executable)  # as one environment links to its base
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert console.command().startswith(shlex.quote(sys.executable))


@pytest.mark.parametrize("typed", ["sweep=a,b-1", "sweep=[a,b-1]"])
def test_several_sweeps_of_a_report_are_one_text(typed: str) -> None:
    words = ["action=report", typed, "outputs=o"]
    joined = ["action=report", "sweep='a,b-1'", "outputs=o"]
    assert options.joined_sweeps(words) == joined
    assert options.joined_sweeps(joined) == joined
    options.check(joined, [CONF])
    options.refuse_sweep(joined)
    other = ["action=train", typed]
    assert options.joined_sweeps(other) == other


def test_report_command_names_outputs_that_are_not_the_usual_ones() -> None:
    assert console.report_command("s", "outputs") == "python -m medreason action=report sweep=s"
    assert console.report_command("s", "/o").endswith(" action=report sweep=s outputs=/o")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("demo", "make demo"),
        ("sft ARGS='seed=1 modality=ct'", "make sft ARGS=seed=1\\ modality=ct"),
    ],
)
def test_make_says_what_goes_on_with_its_target(
    target: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = tmp_path / "python"
    shown.write_text('#!/bin/sh\necho "told: $MEDREASON_COMMAND"\n')
    shown.chmod(0o755)
    makefile = Path(__file__).parents[1] / "Makefile"
    words = ["make", "-sf", str(makefile), "-o", "setup", f"RUN={shown}", *shlex.split(target)]
    out = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[0].startswith(f"told: {told} ")
    monkeypatch.setenv(console.STARTED_BY, "make demo")
    assert console.started_command() == "make demo"
