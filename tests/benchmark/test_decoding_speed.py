"""The benchmark of drafts compares equal completions, and better drafts save more passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medreason.actions import bench
from medreason.benchmark import drafts
from medreason.config import Config

SMALL = (
    *("action=bench", "bench.what=drafts", "method=grpo", "modality=ct"),
    *("data.train_images=1", "data.test_images=1", "bench.repeats=1"),
    *("method.prompts_per_step=2", "hardware.per_device_prompts=1"),
    *("method.trl.max_completion_length=16", "evaluation.max_new_tokens=8"),
)


def test_curve_goes_from_perfect_to_useless_drafts(
    composed: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drafts, "WRONG", (0.0, 0.4, 1.0))
    bench.run(composed(*SMALL))
    results = json.loads((tmp_path / "outputs/benchmarks/tiny/drafts.json").read_text())
    stages = results["stages"]
    assert [*stages] == ["evaluation", "rollout", "wrong_0.0", "wrong_0.4", "wrong_1.0"]
    for row in stages.values():
        assert row["different_rows"] == 0
        assert row["rows"] > 0
        assert row["speedup"] == row["plain"] / row["drafts"] > 0
    passes = [stages[f"wrong_{share}"]["tokens_per_pass"] for share in (0.0, 0.4, 1.0)]
    assert passes[0] > passes[1] > passes[2] >= 1
    assert "per pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bench.replies=none.parquet", "bench.replies=none.parquet: no such file; name a"),
        ("rollout.draft_tokens=0", "rollout.draft_tokens=0: no drafts to measure; give auto"),
        ("hardware.attention=eager", "hardware.attention=eager takes no drafts; set"),
    ],
)
def test_what_has_no_drafts_is_refused(
    composed: Callable[..., Config], override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bench.run(composed(*SMALL, override))


def test_method_without_rollouts_is_refused(composed: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match=r"bench.what=drafts measures GRPO; method=sft has no"):
        bench.run(composed("action=bench", "bench.what=drafts", "method=sft"))
