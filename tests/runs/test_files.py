"""Atomic writes: the old content or all of the new, whatever ends the writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from medreason.runs.files import (
    atomic,
    atomic_folder,
    read_json,
    read_parquet,
    remove_unfinished,
    write_json,
    write_parquet,
)

WRITER = """
import os, signal, sys
from pathlib import Path
from medreason.runs.files import atomic
with atomic(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_writer_that_is_killed_leaves_the_old_file_and_one_that_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"a": 1})
    done = subprocess.run([sys.executable, "-c", WRITER, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_json(path) == {"a": 1}
    (left,) = tmp_path.glob(".*.unfinished")
    remove_unfinished(tmp_path)
    assert left.exists()  # it may be another's, who is at work
    os.utime(left, (0, 0))
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_block_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("old")
    with pytest.raises(TypeError), atomic(path) as unfinished, unfinished.open("w") as stream:
        json.dump({"half": object()}, stream)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    both_write = threading.Barrier(2)

    def write(text: str) -> None:
        with atomic(path) as unfinished:
            unfinished.write_text(text)
            both_write.wait()
            assert unfinished.read_text() == text

    other = threading.Thread(target=write, args=("b" * 999,))
    other.start()
    write("a" * 999)
    other.join()
    assert path.read_text() in ("a" * 999, "b" * 999)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cut off or not JSON"),
        ('{"a":', "cut off or not JSON"),
        ("[1]", "holds a list, not an object"),
        ("7", "holds a number, not an object"),
    ],
)
def test_file_that_holds_no_mapping_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json: {words}"):
        read_json(tmp_path / "a.json")


def test_folder_appears_whole_and_replaces_only_where_it_may(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for text in ("first", "second"):
        with atomic_folder(path, replace=True) as unfinished:
            assert unfinished.name == "model"
            unfinished.mkdir()
            (unfinished / "weights").write_text(text)
            assert not path.exists() or (path / "weights").read_text() == "first"
        assert (path / "weights").read_text() == text
    with pytest.raises(OSError, match="not empty"), atomic_folder(path) as unfinished:
        unfinished.mkdir()
    assert (path / "weights").read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_files_of_a_folder_are_as_readable_as_it(tmp_path: Path) -> None:
    """safetensors makes files that their owner alone reads."""
    with atomic_folder(tmp_path / "model") as unfinished:
        unfinished.mkdir()
        save_file({"a": torch.zeros(1)}, unfinished / "a.safetensors")
    (tmp_path / "usual").touch()
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("usual", "model/a.safetensors")]
    assert modes[0] == modes[1]


def test_ranks_write_a_folder_together_and_the_main_process_moves_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1"
    with (
        atomic_folder(path) as main,
        atomic_folder(path, main_process=False) as other,
    ):
        assert main == other
        main.mkdir()
        (other / "rank1").touch()
    assert (path / "rank1").exists()


@pytest.mark.parametrize("place", [0.001, 0.5, 0.9, 1.0])
def test_a_damaged_parquet_file_is_named_wherever_it_is_damaged(
    tmp_path: Path, place: float
) -> None:
    path = tmp_path / "table.parquet"
    texts = [f"text {7919 * i % 1000}" for i in range(5000)]
    write_parquet(path, pa.table({"text": texts}))
    assert read_parquet(path)["text"].to_pylist() == texts
    assert read_parquet(path, ("text",)).column_names == ["text"]
    content = bytearray(path.read_bytes())
    middle = 4 + int(place * (len(content) - 12))
    content[middle : middle + 4] = bytes(255 - byte for byte in content[middle : middle + 4])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"table\.parquet: missing, cut off or damaged"):
        read_parquet(path)
