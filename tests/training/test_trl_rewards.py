"""Scores as TRL's reward functions: named by key, parsed once, truncated replies recognised."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medreason.config import Config
from medreason.replies import parse
from medreason.rewards.named_score import NamedScore
from medreason.samples import Sample
from medreason.training.trl_rewards import CompletionReader, Reward, rewards

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


def score(config: Config, texts: list[str], ids: list[list[int]]) -> dict[str, Any]:
    """The values of each reward, the columns and the metrics it logs, by name."""
    functions, _ = rewards(config, CompletionReader([SAMPLE], [END]))
    logged: dict[str, list] = defaultdict(list)
    metrics: dict[str, float] = {}
    values = {
        function.__name__: function(
            completions=[[{"role": "assistant", "content": text}] for text in texts],
            completion_ids=ids,
            sample=[0] * len(texts),
            log_extra=lambda column, values: logged[column].extend(values),
            log_metric=metrics.__setitem__,
        )
        for function in functions
    }
    return values | logged | metrics


def test_each_reward_carries_its_key_and_rollouts_their_sample(
    composed: Callable[..., Config],
) -> None:
    values = score(composed("method=rarl"), [GOOD, "<answer>A</answer>"], [[1, END], [1, END]])
    metrics = ("within_group_variance", "constant_groups")
    assert values == {
        "format": [1.0, 0.0],
        "answer": [1.0, 0.0],
        "reasoning": [1.0, 0.0],
        "sample": ["s0", "s0"],
        "gold": ["B", "B"],
        "answer_read": ["B", "A"],
        **{
            f"rewards/{name}/{metric}": value
            for name in ("format", "answer", "reasoning")
            for metric, value in zip(metrics, (0.25, 0.0), strict=True)
        },
    }


def test_reply_without_an_end_token_is_read_as_truncated(composed: Callable[..., Config]) -> None:
    values = score(composed(), ["<think>The image"], [[1, 2]])
    assert values["correct"] == [0.0]
    assert values["answer_read"] == ["truncated"]


def test_weights_follow_the_configuration(composed: Callable[..., Config]) -> None:
    _, weights = rewards(composed("reward.format.weight=0.5"), CompletionReader([SAMPLE], [END]))
    assert weights == [1.0, 0.5]


@pytest.mark.parametrize("reward", ["med_r1", "med_r1_parity", "rarl_safe"])
def test_scores_can_be_pickled(composed: Callable[..., Config], reward: str) -> None:
    functions, _ = rewards(composed(f"reward={reward}"), CompletionReader([SAMPLE], [END]))
    for function in functions:
        assert pickle.loads(pickle.dumps(function._grade))


def test_gate_lets_reasoning_count_only_where_the_answer_is_right(
    composed: Callable[..., Config],
) -> None:
    texts = [GOOD, GOOD.replace(">B<", ">A<"), GOOD]
    ids = [[1, END]] * 3
    assert score(composed("method=rarl"), texts, ids)["reasoning"] == [1.0, 1.0, 1.0]
    gated = composed("method=rarl", "reward.reasoning.only_when=answer")
    assert score(gated, texts, ids)["reasoning"] == [1.0, 0.0, 1.0]
    assert score(composed("method=rarl", "reward=rarl_safe"), texts, ids)["reasoning"] == [1, 0, 1]


def test_reward_without_difference_in_a_group_says_so(composed: Callable[..., Config]) -> None:
    values = score(composed(), [GOOD, GOOD, "<answer>B</answer>"], [[1, END]] * 3)
    assert values["rewards/correct/constant_groups"] == 1.0
    assert values["rewards/correct/within_group_variance"] == 0.0
    assert values["rewards/format/constant_groups"] == 0.0
    assert values["rewards/format/within_group_variance"] == pytest.approx(2 / 9)


def test_ungraded_reply_is_counted_and_takes_the_mean_of_its_group() -> None:
    grades = iter([[1.0, None, 0.5, None]])
    reward = Reward("judged", lambda _: next(grades), CompletionReader([SAMPLE, SAMPLE], [END]))
    metrics: dict[str, float] = {}
    values = reward(
        completions=[[{"role": "assistant", "content": GOOD}]] * 4,
        completion_ids=[[END]] * 4,
        sample=[0, 0, 0, 1],
        log_extra=lambda *_: None,
        log_metric=metrics.__setitem__,
    )
    assert values == [1.0, 0.75, 0.5, None]  # no reply of the second group was graded
    assert metrics["rewards/judged/ungraded"] == 0.5


OWN = """
def short(reply, sample, *, limit: int = 3):
    values = {"nan": float("nan"), "none": None, "text": "1"}
    if reply.answer == "B":
        return values[sample.source]
    return 1
"""


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("nan", "gave nan, not a number"),
        ("none", "gave None, not a number"),
        ("text", "gave '1', not a number"),
        ("other", r"raised KeyError: 'other' at own_reward\.py, line 5"),
    ],
)
def test_own_score_that_gives_no_number_is_named_with_place_sample_and_reply(
    source: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_reward.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    score = NamedScore("mine", {"_target_": "own_reward.short", "limit": 5})
    reply = parse(GOOD, SAMPLE.options)
    assert score(replace(reply, answer=None), SAMPLE) == 1.0
    where = r"reward\.mine: own_reward\.short \(own_reward\.py, line 2\)"
    with pytest.raises(ValueError, match=rf"{where} {problem}, for a reply to sample s0: '<think>"):
        pickle.loads(pickle.dumps(score))(reply, replace(SAMPLE, source=source))
