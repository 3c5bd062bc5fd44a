"""Same key, same work: what decides weights or answers is in a key, where it runs is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medreason.config import Config
from medreason.runs import keys

Compose = Callable[..., Config]


def train_key(config: Config) -> str:
    return keys.digest(keys.train_parts(config, "data", "model"))


def evaluation_key(config: Config) -> str:
    return keys.digest(keys.evaluation_parts(config, "train", "data"))


@pytest.mark.parametrize(
    "override",
    [
        "hardware=cpu_x2",
        "hardware.per_device_prompts=2",
        "tracking=none",
        "sweep=other",
        "outputs=elsewhere",
        "evaluation=quick",
        "runs.checkpoint_steps=7",
        "rollout.fallback=unshared",
        "model.path=another/place",  # the same weights, as their fingerprint says
    ],
)
def test_train_key_ignores_where_and_how_it_runs(composed: Compose, override: str) -> None:
    assert train_key(composed()) == train_key(composed(override))


@pytest.mark.parametrize(
    "override",
    [
        "method=sft",
        "method.prompts_per_step=4",
        "method.trl.beta=0",
        "modality=ct",
        "task=disease",
        "prompt=no_think",
        "reward.format.weight=0.5",
        "prompt.open='{question}?'",
        "rollout=trl",
        "rollout.dynamic_sampling=2",
        "adapter=qlora",
        "adapter=lora_r8",
        "seed=1",
        "model.max_pixels=50176",
    ],
)
def test_train_key_changes_with_the_science(composed: Compose, override: str) -> None:
    assert train_key(composed()) != train_key(composed(override))


def test_base_model_is_one_run_for_all_cells(composed: Compose) -> None:
    cells = [composed("method=base", f"modality={m}", "seed=1") for m in ("all", "ct")]
    assert train_key(cells[0]) == train_key(cells[1])


def test_reward_does_not_change_the_key_of_sft(composed: Compose) -> None:
    assert train_key(composed("method=sft")) == train_key(
        composed("method=sft", "reward=med_r1_parity")
    )


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("evaluation.controls=[]", False),
        ("evaluation.max_new_tokens=16", False),
        ("evaluation.tasks=[disease]", False),
        ("evaluation.samples_per_cell=3", False),
        ("prompt.evaluate='{question}?'", False),
        ("prompt.open='{question}?'", False),
        ("prompt.reasoning='{question}?'", True),  # not used
        ("evaluation.answers=[option_likelihood]", False),
        ("hardware.per_device_evaluation=3", True),
        ("evaluation.draft_tokens=4", True),
        ("rollout.draft_tokens=0", True),
        ("seed=5", True),
    ],
)
def test_evaluation_key_follows_what_decides_the_answers(
    composed: Compose, override: str, same: bool
) -> None:
    assert (evaluation_key(composed()) == evaluation_key(composed(override))) is same


def test_differences_name_the_leaf_and_both_values() -> None:
    different = list(keys.differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}}))
    assert different == [("a.b", 1, 3)]


def test_every_part_stands_in_every_key(composed: Compose) -> None:
    trained = [keys.train_parts(composed(f"method={m}"), "d", "m") for m in ("sft", "grpo")]
    assert trained[0].keys() == trained[1].keys()
    assert trained[0].keys() >= {"rollout", "reward", "judge", "rubric", "adapter", "prompt"}
    generated, likelihood = (
        keys.evaluation_parts(composed(f"evaluation={e}"), "train", "data")
        for e in ("full", "option_likelihood")
    )
    assert generated.keys() == likelihood.keys()
    assert generated["evaluation"]["answers"] == ["generated"]
    assert generated["evaluation"]["encoder"] is None


def test_judge_decides_the_weights_only_where_a_reward_asks_it(composed: Compose) -> None:
    plain = [composed("judge=local", f"judge.model={model}") for model in ("a/b", "c/d")]
    assert train_key(plain[0]) == train_key(plain[1])
    asking = ("method=rarl", "reward=rarl_judge", "judge=local", "rubric=reference")
    asked = [composed(*asking, f"judge.model={model}") for model in ("a/b", "c/d")]
    assert train_key(asked[0]) != train_key(asked[1])
