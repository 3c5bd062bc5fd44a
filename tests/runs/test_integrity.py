"""Finished folders that were damaged since: the evaluation is done again, the rest is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import draw_samples, reply, write_run

from medreason.config import Config
from medreason.runs import integrity
from medreason.runs.run_folder import RunFolder

Compose = Callable[..., Config]


@pytest.fixture
def finished(composed: Compose, tmp_path: Path) -> RunFolder:
    """A run with two sealed evaluations."""
    samples = draw_samples(tmp_path / "images", per_cell=1)
    folder = write_run(composed("method=sft"), samples, lambda i, s: reply("A"))
    other = folder.evaluation("evaluation1")
    other.mkdir()
    for path in folder.evaluation("evaluation0").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    for key in ("evaluation0", "evaluation1"):
        integrity.seal(folder, key)
    return folder


@pytest.mark.parametrize("name", ["predictions.parquet", "metrics.json", "sealed.json"])
@pytest.mark.parametrize("damage", ["cut off", "changed", "lost"])
def test_damaged_evaluation_is_not_whole_and_its_neighbour_is(
    finished: RunFolder, name: str, damage: str
) -> None:
    path = finished.evaluation("evaluation0") / name
    found = path.read_bytes()
    assert integrity.is_whole(finished, "evaluation0")
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(found[: len(found) // 2] + (b"" if damage == "cut off" else b"x" * 99))
    assert not integrity.is_whole(finished, "evaluation0")
    assert integrity.is_whole(finished, "evaluation1")


def test_folder_of_another_configuration_is_refused_with_both_values(
    finished: RunFolder, composed: Compose
) -> None:
    integrity.refuse_other_config(finished, composed("method=sft"))
    with pytest.raises(ValueError, match=r"config\.yaml says seed=0, this command 7; .*copied"):
        integrity.refuse_other_config(finished, composed("method=sft", "seed=7"))


@pytest.mark.parametrize("text", ["", "method: [", "- 1"])
def test_configuration_that_was_cut_off_is_refused_with_the_remedy(
    finished: RunFolder, composed: Compose, text: str
) -> None:
    finished.config.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml: .*move the folder away"):
        integrity.refuse_other_config(finished, composed("method=sft"))
