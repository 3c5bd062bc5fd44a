"""`gpu.sh` goes on after a failure, says one line a check, and leaves logs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments/benchmarks/gpu.sh"
LINE = re.compile(r"(ok|FAIL|SKIP) +\d+ s  (.+?): (.*)")
STUB = """#!/bin/bash
echo "$@" >> {calls}
case "$*" in
    *adapter=qlora*) echo; echo 'ValueError: quantized'; exit 1 ;;
    *memory_limit_gb=0.3*) echo 'out of memory in a trial step'; exit 1 ;;
    *bench.tokens*) echo 'step 4 2.0 1.0 2.00 1.50' ;;
esac
echo 'its last line'
"""


def lines(
    part: str, folder: Path, script: str = STUB, **environment: str
) -> tuple[int, dict[str, tuple[str, str]], str]:
    """(exit status, check -> (verdict, detail), all that was printed) with a stub as Python."""
    stub = folder / "python"
    stub.write_text(script.format(calls=folder / "calls"))
    stub.chmod(0o755)
    variables = os.environ | {"PYTHON": str(stub)} | environment
    command = ["bash", str(SCRIPT), part, str(folder)]
    process = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert not process.stderr
    matches = filter(None, map(LINE.fullmatch, process.stdout.splitlines()))
    return process.returncode, {m[2]: (m[1], m[3]) for m in matches}, process.stdout


def test_check_goes_on_after_a_failure_and_says_one_line_each(tmp_path: Path) -> None:
    status, checks, shown = lines("check", tmp_path)
    assert status == 1
    # The stub writes no results to compare.
    assert [name for name, (verdict, _) in checks.items() if verdict == "FAIL"] == ["QLoRA-RARL"]
    assert checks["QLoRA-RARL"] == ("FAIL", "ValueError: quantized")
    assert checks["full GRPO"] == ("ok", "its last line")
    assert checks["a memory limit that is too small stops training"][0] == "ok"
    assert len(shown.splitlines()) == len(checks) + 1  # the commit
    logs = sorted((tmp_path / "logs").glob("check-*.log"))
    assert len(logs) == len(checks)
    assert "quantized" in next(log for log in logs if "QLoRA" in log.name).read_text()


def test_memory_limit_that_stops_nothing_is_a_failure(tmp_path: Path) -> None:
    fits = STUB.replace("out of memory in a trial step'; exit 1", "all well'")
    _, checks, _ = lines("check", tmp_path, fits)
    assert checks["a memory limit that is too small stops training"][0] == "FAIL"


def test_measure_caps_the_memory_and_shows_tables(tmp_path: Path) -> None:
    status, checks, shown = lines("measure", tmp_path)
    assert status == 1
    assert checks["QLoRA-RARL under 10 GB"][0] == "FAIL"
    assert shown.count("   step 4 2.0 1.0 2.00 1.50") == 5
    calls = (tmp_path / "calls").read_text()
    for limit, method in ((40, "grpo"), (16, "rarl"), (10, "rarl")):
        assert re.search(
            rf"bench.what=memory method={method} .*memory_limit_gb={limit}$", calls, re.M
        )


def test_checks_end_with_the_time_of_their_part(tmp_path: Path) -> None:
    status, checks, _ = lines(
        "check",
        tmp_path,
        STUB.replace("*adapter=qlora*) echo", "*method=sft*) sleep 20"),
        BUDGET="4",
    )
    assert status == 1
    assert checks["SFT"][0] == "FAIL"
    assert re.fullmatch(r"longer than [34] s", checks["SFT"][1])
    assert checks["LoRA-RARL"] == ("SKIP", "the 4 s of this part are over")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["check", "measure"])
def test_every_check_runs_on_a_cpu(tmp_path: Path, part: str) -> None:
    small = {"MODEL": "tiny", "TOKENS": "2,4", "LONG": "6", "SIZE": "56"}
    command = ["bash", str(SCRIPT), part, str(tmp_path)]
    variables = os.environ | {"PYTHON": sys.executable, "HARDWARE": "cpu"} | small
    process = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    verdicts = [m[1] for m in map(LINE.fullmatch, process.stdout.splitlines()) if m]
    assert len(verdicts) > 7
    assert set(verdicts) == {"ok"}, process.stdout
    assert process.returncode == 0
