"""`action=judge` over run folders: grades beside the accuracy, requested once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_folders import reply, write_run

from medreason import data
from medreason.actions import judge
from medreason.config import Config
from medreason.evaluation import predictions
from medreason.runs import integrity
from medreason.runs.run_folder import RunFolder, unsynced
from medreason.samples import Sample

sys.path.insert(0, str(Path(__file__).parents[1] / "judging"))
from server import Server, serving

Compose = Callable[..., Config]
SMALL = ("data.train_images=0", "data.test_images=1")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def asks(server: Server, group: str = "judge", model: str = "m") -> list[str]:
    """The overrides that choose the test's server as a judge."""
    name = group.partition("@")[2] or group
    settings = (f"{name}.base_url={server.url}", f"{name}.model={model}")
    return [f"{group}=openai", *settings]


def run_of(config: Config, key: str = "0123456789ab") -> RunFolder:
    samples = [s for s in data.load(config.data, config.folder / "cache") if s.split == "test"]
    return write_run(config, samples[:10], thought, key=key)


def thought(i: int, sample: Sample) -> str:
    """The first gives no reasoning."""
    return "<answer>A</answer>" if i == 0 else reply("A", f"It is bright {i}.")


def test_grades_stand_beside_the_accuracy_and_are_requested_once(
    composed: Compose, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(composed("method=base", *SMALL))
    integrity.seal(run.run, "evaluation0")
    config = composed(
        "action=judge", *SMALL, *asks(server), *asks(server, "judge@second_judge", "n")
    )
    judge.run(config)
    assert integrity.is_whole(run.run, "evaluation0")  # the same training command is still finished
    assert unsynced(run, config.sweep)
    path = run.path
    judgements = json.loads((path / "judgements.json").read_text())
    reasoning = judgements["summary"]["reasoning"]
    assert reasoning["n"] == 10
    assert reasoning["without_text"] == 1  # scores 0, without a call
    assert reasoning["first"]["score"] == pytest.approx(100 * 9 * 2 / (3 * 10))
    assert reasoning["first"]["calls"] == reasoning["second"]["calls"] == 9
    assert reasoning["weighted_kappa"] is None  # the server gives 2 to all
    assert "answer" not in judgements["summary"]  # closed questions need no judge
    assert predictions.load_metrics(path)["overall"]["judged_reasoning"] == pytest.approx(0.6)
    calls = sum(server.calls.values())
    judge.run(config)
    assert sum(server.calls.values()) == calls == 18


def test_judge_of_the_training_reward_is_refused_unless_allowed(
    composed: Compose, server: Server
) -> None:
    run_of(composed("method=rarl", "reward=rarl_judge", *SMALL, *asks(server)))
    with pytest.raises(
        ValueError, match=r"trained on the grades of judge\.model='m'.*allow_reward_judge"
    ):
        judge.run(composed("action=judge", *SMALL, *asks(server)))
    assert not server.calls
    judge.run(composed("action=judge", *SMALL, *asks(server, model="other")))
    judge.run(composed("action=judge", *SMALL, *asks(server), "judge.allow_reward_judge=true"))


def test_nothing_to_judge_and_no_judge_are_refused(composed: Compose) -> None:
    with pytest.raises(ValueError, match="no evaluated runs of sweep=runs"):
        judge.run(composed("action=judge"))
    run_of(composed("method=base", *SMALL))
    with pytest.raises(ValueError, match="judge=none cannot grade"):
        judge.run(composed("action=judge", *SMALL))
