"""A row's prompt is drawn when it is read, anew in each epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from run_folders import draw_samples
from transformers import TrainerState

from medreason.config import Config
from medreason.training import grpo, sft
from medreason.training.arguments import Epoch


def texts(rows: list[dict]) -> list[str]:
    return [row["prompt"][0]["content"] for row in rows]


def test_prompts_and_families_change_with_the_epoch_and_repeat_with_the_seed(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    config, samples = composed("method=rarl"), draw_samples(tmp_path)
    epoch = Epoch()
    rows = grpo.dataset(config, samples, epoch)
    first = [*rows]
    assert {row["family"] for row in first} == {"explanation", "open_ended", "short"}
    assert [row["sample"] for row in first] == [*range(len(samples))]
    assert all(row["image"].size == (40, 30) for row in first)
    assert texts([*rows]) == texts(first)
    epoch.on_epoch_begin(None, TrainerState(epoch=1.0), None)  # pyright: ignore
    assert texts([*rows]) != texts(first)
    epoch.on_epoch_begin(None, TrainerState(), None)  # pyright: ignore
    assert texts([*rows]) == texts(first)


def test_supervised_rows_have_the_reply_to_imitate(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    rows = [*sft.dataset(composed("method=sft"), draw_samples(tmp_path)[:2], Epoch())]
    assert rows[1]["completion"][0]["content"] == "<answer>B</answer>"
    assert "What does image 1 show? A)lesion" in texts(rows)[1]
