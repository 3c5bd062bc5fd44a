"""When a reward has stopped telling completions apart."""

from __future__ import annotations

import pytest

from medreason.rewards.variance import WINDOW, collapse_warning, collapsed_rewards, within_groups


def row(step: int, share: float) -> dict[str, float]:
    return {"step": step, "rewards/format/mean": 0.9, "rewards/format/constant_groups": share}


def test_variance_and_share_of_groups_without_difference() -> None:
    assert within_groups([[0.0, 1.0], [1.0, 1.0]]) == (0.125, 0.5)
    assert within_groups([[1.0], []]) is None


def test_reward_is_collapsed_when_nearly_all_groups_of_the_last_steps_are_constant() -> None:
    early = [row(i, 0.0) for i in range(10)]
    assert collapsed_rewards(early + [row(i, 1.0) for i in range(WINDOW)]) == {
        "format": pytest.approx(0.9)
    }
    assert collapsed_rewards([row(i, 1.0) for i in range(WINDOW - 1)]) == {}
    assert collapsed_rewards([row(i, float(i % 5 > 0)) for i in range(WINDOW)]) == {}
    assert "(mean 0.00): it no longer teaches anything" in collapse_warning("mine", -0.001)
    assert collapsed_rewards([{"step": i, "loss": 1.0} for i in range(WINDOW)]) == {}
