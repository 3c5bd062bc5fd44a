"""Our scores behind TRL's protocol: named, read once, cut-off replies known as such."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from medreason.config import Config
from medreason.samples import Sample
from medreason.training.rewards import Scorer, rewards

END = 9
SAMPLE = Sample(
    id="s0",
    image=Path("x.png"),
    question="Which?",
    options=("CT", "MRI"),
    answer="B",
    explanation="The image is an MRI.",
    modality="mri",
    task="disease",
    source="test",
    patient=None,
    split="train",
)
GOOD = "<think>The image is an MRI.</think>\n<answer>B</answer>"


def score(config: Config, texts: list[str], ids: list[list[int]]) -> dict[str, list]:
    functions, _ = rewards(config, Scorer([SAMPLE], [END]))
    logged: dict[str, list] = defaultdict(list)
    found = {
        function.__name__: function(
            prompts=[],
            completions=[[{"role": "assistant", "content": text}] for text in texts],
            completion_ids=ids,
            sample=[0] * len(texts),
            log_extra=lambda column, values: logged[column].extend(values),
            trainer_state=None,
        )
        for function in functions
    }
    return found | logged


def test_each_reward_carries_its_key_and_rollouts_their_sample(
    composed: Callable[..., Config],
) -> None:
    found = score(composed("method=rarl"), [GOOD, "<answer>A</answer>"], [[1, END], [1, END]])
    assert found == {
        "format": [1.0, 0.0],
        "answer": [1.0, 0.0],
        "reasoning": [1.0, 0.0],
        "sample": ["s0", "s0"],
        "gold": ["B", "B"],
        "answer_read": ["B", "A"],
    }


def test_reply_without_an_end_token_is_read_as_cut_off(composed: Callable[..., Config]) -> None:
    found = score(composed(), ["<think>The image"], [[1, 2]])
    assert found["correct"] == [0.0]
    assert found["answer_read"] == ["truncated"]


def test_weights_follow_the_configuration(composed: Callable[..., Config]) -> None:
    _, weights = rewards(composed("reward.format.weight=0.5"), Scorer([SAMPLE], [END]))
    assert weights == [1.0, 0.5]


@pytest.mark.parametrize("reward", ["med_r1", "med_r1_parity", "rarl"])
def test_scores_can_be_pickled(composed: Callable[..., Config], reward: str) -> None:
    functions, _ = rewards(composed(f"reward={reward}"), Scorer([SAMPLE], [END]))
    for function in functions:
        assert pickle.loads(pickle.dumps(function._score))
