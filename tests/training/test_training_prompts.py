"""A row's prompt is made when the row is read, and differs from epoch to epoch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from run_folders import draw_samples
from transformers import TrainerState

from medreason.config import Config
from medreason.training import grpo, sft
from medreason.training.arguments import EpochCounter, sample_in_epoch
from medreason.training.trl_rewards import CompletionReader


def texts(rows: list[dict]) -> list[str]:
    return [row["prompt"][0]["content"] for row in rows]


def test_prompts_and_families_change_with_the_epoch_and_repeat_with_the_seed(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    config, samples = composed("method=rarl"), draw_samples(tmp_path)
    epoch = EpochCounter()
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
    rows = [*sft.dataset(composed("method=sft"), draw_samples(tmp_path)[:2], EpochCounter())]
    assert rows[1]["completion"][0]["content"] == "<answer>B</answer>"
    assert "What does image 1 show? A)lesion" in texts(rows)[1]


def test_shuffled_options_turn_in_each_epoch_and_rewards_follow(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    config = composed("method=grpo", "data.options=shuffled")
    (sample,) = (replace(s, explanation="Seen: clear (A).") for s in draw_samples(tmp_path)[:1])
    sample = replace(sample, options=("clear", "a nodule", "fluid", "air"), answer="A")
    reader = CompletionReader([sample], [0], functools.partial(sample_in_epoch, config))
    epoch, letters = EpochCounter(), set()
    for number in range(12):
        epoch.on_epoch_begin(None, TrainerState(epoch=float(number)), None)  # pyright: ignore
        (row,) = grpo.dataset(config, [sample], epoch)
        _, shown = reader.read(row["sample"], row["epoch"], "", [])
        assert shown.problem in row["prompt"][0]["content"]
        assert shown.answer_text == "clear"
        assert shown.explanation == f"Seen: clear ({shown.answer})."
        letters.add(shown.answer)
    assert letters == set("ABCD")
