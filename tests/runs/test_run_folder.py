"""Run folders: a state is whole or not there, and one process works on a folder at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medreason.runs.run_folder import RunFolder, copies, evaluations_by_sweep, find_run_folder


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


def test_copy_beside_its_run_belongs_to_no_sweep(tmp_path: Path) -> None:
    for name in ("grpo-abc123", "a-backup", "moved"):
        key = "abc123" if name != "moved" else "def456"
        RunFolder(tmp_path / name).update(train_key=key, sweeps={"one": ["e"]})
    (tmp_path / "link").symlink_to("grpo-abc123")
    assert copies(tmp_path) == ["a-backup", "link"]
    (run, moved) = evaluations_by_sweep(tmp_path)["one"]
    assert (run.run.path.name, moved.run.path.name) == ("grpo-abc123", "moved")


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("evaluations", "x"), ("evaluations", [1]), ("trained", "no"), ("trained", 1)),
        *(("sweeps", []), ("sweeps", {"s": [3]}), ("sweeps", {"s": "key"}), ("attempts", "a")),
        *(("attempts", True), ("train_parts", []), ("state", "finished"), ("error", 3)),
        *(("train_seconds", "nan"), ("chosen_step", None), ("mlflow_runs", None), ("synced", 3)),
    ],
)
def test_state_with_a_value_of_another_type_is_named_with_the_value(
    tmp_path: Path, name: str, value: object
) -> None:
    folder = RunFolder(tmp_path)
    folder.update(train_seconds=1, evaluate_drafts={"tokens_per_pass": 2.5}, error="out of memory")
    values = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(values | {name: value}))
    message = rf"state\.json: cut off, or .*\({name}={re.escape(repr(value))}\); move the folder"
    with pytest.raises(ValueError, match=message):
        folder.state()


def test_state_that_is_no_text_or_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(ValueError, match=r"state\.json.*move the folder away"):
        RunFolder(tmp_path).state()
    (tmp_path / "state.json").unlink()
    (tmp_path / "state.json").mkdir()
    with pytest.raises(ValueError, match=r"state\.json.*move the folder away"):
        RunFolder(tmp_path).state()


@pytest.mark.parametrize("last", [b'{"step": 3, "lo', b"\xff\xfe\x00", b"[1, 2]", b"3", b"{}"])
def test_rows_of_a_curve_before_one_that_is_none_are_read(tmp_path: Path, last: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n' + last)
    assert [row["step"] for row in folder.logged()] == [1, 2]


@pytest.mark.parametrize("text", ["", "[1]", "{", "{}", "\\xff"])
def test_commit_of_a_damaged_environment_is_not_known(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    assert folder.commit() == ""
    folder.environment.write_bytes(text.encode().decode("unicode_escape").encode("latin-1"))
    assert folder.commit() == ""
    folder.environment.write_text('{"commit": "abc"}')
    assert folder.commit() == "abc"
