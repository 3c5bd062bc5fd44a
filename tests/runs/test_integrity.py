"""Finished folders that were damaged since: the evaluation is done again, the rest is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import draw_samples, reply, write_run

from medreason import config as configuration
from medreason.actions import report
from medreason.config import Config
from medreason.runs import integrity, keys
from medreason.runs.run_folder import RunFolder

Compose = Callable[..., Config]


@pytest.fixture
def finished(composed: Compose, tmp_path: Path) -> RunFolder:
    """A run with two sealed evaluations."""
    samples = draw_samples(tmp_path / "images", per_cell=1)
    for key in ("evaluation0", "evaluation1"):
        folder = write_run(
            composed("method=sft"), samples, lambda i, s: reply("A"), evaluation_key=key
        ).run
    for key in ("evaluation0", "evaluation1"):
        integrity.seal(folder, key)
    return folder


@pytest.mark.parametrize(
    "name", ["predictions.parquet", "metrics.json", "config.yaml", "sealed.json"]
)
@pytest.mark.parametrize("damage", ["cut off", "changed", "lost"])
def test_damaged_evaluation_is_not_whole_and_its_neighbour_is(
    finished: RunFolder, name: str, damage: str
) -> None:
    path = finished.evaluation("evaluation0") / name
    content = path.read_bytes()
    assert integrity.is_whole(finished, "evaluation0")
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] + (b"" if damage == "cut off" else b"x" * 99))
    assert not integrity.is_whole(finished, "evaluation0")
    assert integrity.is_whole(finished, "evaluation1")


def parts_of(config: Config) -> dict[str, Any]:
    return keys.train_parts(config, "data", "model")


JUDGED = ("method=rarl", "reward=rarl_judge", "judge=local", "judge.model=a/b", "rubric=reference")


@pytest.mark.parametrize(
    ("frozen", "override", "words"),
    [
        ((), "seed=7", "seed=0, this command 7"),
        ((), "prompt.open='{question} Briefly.'", r"prompt\.open='.*', this command '{question} B"),
        ((), "rollout=trl", r"rollout\.name='grouped', this command 'trl'"),
        ((), "rollout.dynamic_sampling=2", r"rollout\.dynamic_sampling=0, this command 2"),
        ((), "method.trl.beta=0.5", r"method\.trl\.beta=0\.04, this command 0\.5"),
        ((), "reward.format.weight=0.5", r"reward\.format\.weight=1\.0, this command 0\.5"),
        (("adapter=lora_r8",), "adapter.r=16", r"adapter\.r=8, this command 16"),
        (JUDGED, "judge.model=c/d", r"judge\.model='a/b', this command 'c/d'"),
        (
            JUDGED,
            "rubric.reasoning.instructions='Give a score.'",
            r"rubric\.reasoning\.instructions='.*', this command 'Give a score\.'",
        ),
    ],
)
def test_folder_of_another_configuration_is_refused_with_key_and_both_values(
    composed: Compose, tmp_path: Path, frozen: tuple[str, ...], override: str, words: str
) -> None:
    folder = RunFolder(tmp_path)
    command = composed(*frozen, override)
    configuration.write(composed(*frozen), folder.config)
    integrity.refuse_other_config(folder, parts_of(composed(*frozen)))
    with pytest.raises(ValueError, match=rf"(?s)config\.yaml says {words}.*copied"):
        integrity.refuse_other_config(folder, parts_of(command))


def test_state_of_another_key_is_refused_with_key_and_both_values(
    composed: Compose, tmp_path: Path
) -> None:
    folder, parts = RunFolder(tmp_path), parts_of(composed())
    state = folder.update(train_parts=parts)
    integrity.refuse_other_state(folder, folder.state(), parts)
    with pytest.raises(ValueError, match=r"state\.json says seed=0, this command 7; .*copied"):
        integrity.refuse_other_state(folder, state, parts_of(composed("seed=7")))


def test_where_a_run_was_made_is_not_compared(composed: Compose, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    configuration.write(composed("hardware=cpu_x2", "model.path=another/place"), folder.config)
    integrity.refuse_other_config(folder, parts_of(composed("tracking=none", "sweep=other")))


def test_configuration_of_another_version_is_refused_by_name(
    composed: Compose, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    configuration.write(composed(), folder.config)
    text = folder.config.read_text()
    folder.config.write_text(text.replace("prompts_per_step", "batch"))
    with pytest.raises(ValueError, match=r"config\.yaml.*method\.batch is unknown.*move"):
        integrity.refuse_other_config(folder, parts_of(composed()))


@pytest.mark.parametrize("text", ["", "method: [", "- 1"])
def test_configuration_that_was_cut_off_is_refused_with_the_remedy(
    finished: RunFolder, composed: Compose, text: str
) -> None:
    finished.config.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml: .*move the folder away"):
        integrity.refuse_other_config(finished, parts_of(composed("method=sft")))


@pytest.mark.parametrize(
    "name", ["predictions.parquet", "metrics.json", "config.yaml", "data.json"]
)
@pytest.mark.parametrize("damage", ["cut off", "changed", "lost"])
def test_report_refuses_an_evaluation_that_was_changed_since_and_names_the_remedy(
    finished: RunFolder, composed: Compose, name: str, damage: str
) -> None:
    """A changed number would else stand in its tables."""
    path = finished.evaluation("evaluation0") / name
    content = path.read_bytes()
    match damage:
        case "cut off":
            path.write_bytes(content[: len(content) // 2])
        case "changed":
            path.write_bytes(content + b" ")
        case "lost":
            path.unlink()
    with pytest.raises(ValueError, match=rf"{name}: changed, cut off or lost .*re-run the command"):
        report.run(composed("action=report", "tracking=none"))
