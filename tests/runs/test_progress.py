"""The lines of a run where there is no terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from medreason.runs.files import write_json
from medreason.runs.progress import Display


def test_last_line_of_a_run_has_its_place_and_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "metrics.json", {"overall": {"accuracy": 0.4812, "n": 320}})
    Display("[17/121] sft-tiny").done(tmp_path)
    assert capsys.readouterr().err == "[17/121] sft-tiny  done in 0 s: 48.1 % of 320 right\n"
