"""Run folders: a state is whole or not there, and one process works on a folder at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medreason.runs.run_folder import RunFolder, find_run_folder


def test_state_changes_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.state().state == "planned"
    folder.update(state="running", attempts=2)
    folder.update(error="out of memory")
    state = RunFolder(tmp_path).state()
    assert (state.state, state.attempts, state.error) == ("running", 2, "out of memory")


def test_sweeps_that_join_at_once_are_all_kept(tmp_path: Path) -> None:
    RunFolder(tmp_path).update(sweeps={"one": ["a"]})
    RunFolder(tmp_path).update(sweeps={"two": ["b"]})
    state = RunFolder(tmp_path).update(sweeps={"one": ["c", "a"]})
    assert state.sweeps == {"one": ["a", "c"], "two": ["b"]}


@pytest.mark.parametrize("text", ["", "{", '{"sta', '{"colour": "red"}'])
def test_state_that_is_cut_off_or_foreign_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ValueError, match=r"state\.json.*move the folder away"):
        RunFolder(tmp_path).state()


def test_folder_is_found_by_its_key_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "renamed-abc123").mkdir()
    assert find_run_folder(tmp_path, "grpo-tiny", "abc123").path.name == "renamed-abc123"
    assert find_run_folder(tmp_path, "grpo-tiny", "def456").path.name == "grpo-tiny-def456"


def test_second_process_does_not_get_the_lock_and_a_dead_one_leaves_none(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from medreason.runs.run_folder import RunFolder\n"
        f"with RunFolder(Path({str(tmp_path)!r})).locked() as held: print(held is not None)"
    )

    def other() -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with RunFolder(tmp_path).locked() as descriptor:
        assert descriptor
        assert other() == "False"
    assert other() == "True"
