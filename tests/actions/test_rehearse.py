"""Every recipe of the papers can be rehearsed: two are to their end, the others to their launch."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest
from commands import medreason
from hydra import compose, initialize_config_dir

from medreason import config as configuration
from medreason.actions import rehearse
from medreason.config import CONF
from medreason.console import install_command
from medreason.execution.request import run_request
from medreason.sweeps.jobs import first_value, split_jobs

RECIPES = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix(""))
    for paper in ("med_r1", "rarl")
    for path in (CONF / "experiment" / paper).glob("*.yaml")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of rehearsals: their data, small and prepared."""
    folder = tmp_path_factory.mktemp("rehearsal")
    rehearse.write_data(folder, train_images=4, test_images=1)
    for step in rehearse.steps("med_r1/sft", folder):
        if step.name.startswith("prepare"):
            assert medreason(*step.words).returncode == 0
    return folder


def test_no_recipe_is_forgotten() -> None:
    assert rehearse.every_recipe() == RECIPES
    assert len(RECIPES) == 19


@pytest.mark.parametrize("recipe", RECIPES)
def test_rehearsal_composes_and_its_last_job_can_be_launched(recipe: str, folder: Path) -> None:
    words = next(step.words for step in rehearse.steps(recipe, folder) if step.name == recipe)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        single = [first_value(word) for word in words]
        hydra = compose("config", overrides=single, return_hydra_config=True)
        hydra.hydra.overrides.task = words
        *_, last = [words] if recipe == "rarl/search" else split_jobs(hydra)
        config = configuration.load(compose("config", overrides=last))
    request = run_request(config)
    assert {sample.split for sample in request.test_samples} == {"test"}
    assert config.method.algorithm == "none" or config.updates(request.training_samples) == 2
    assert config.model.name == "tiny" or recipe == "med_r1/released"


@pytest.mark.parametrize(
    ("recipe", "others", "reported"),
    [
        (
            "med_r1/think_against_no_think",
            ["training_set=ct", "hydra/launcher=basic"],
            ["no_think minus think"],
        ),
        ("rarl/rl", [], ["rarl"]),
    ],
)
def test_rehearsal_ends_in_a_report(
    recipe: str, others: list[str], reported: list[str], folder: Path
) -> None:
    for step in rehearse.steps(recipe, folder, others):
        if not step.name.startswith("prepare"):
            result = medreason(*step.words)
            assert result.returncode == 0, result.stderr
            assert "another version" not in result.stdout + result.stderr  # of a release
    (page,) = (folder / "reports").glob(f"{recipe.replace('/', '_')}/index.html")
    for words in reported:
        assert words in page.read_text()


def test_what_cannot_be_rehearsed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "python -m medreason experiment=smoke/demo" in rehearse.obstacle("smoke/demo")
    monkeypatch.setattr(rehearse, "find_spec", lambda name: None)
    assert install_command("search") in rehearse.obstacle("rarl/search")
    with pytest.raises(ValueError, match=r"smoke/demo is not of a paper.*med_r1/grpo_think"):
        rehearse.run(["experiment=smoke/demo"])
    monkeypatch.setattr(rehearse, "find_spec", importlib.util.find_spec)
    assert rehearse.obstacle("rarl/rarl") == ""


def test_a_rehearsal_that_fails_shows_the_command_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, int("experiment=rarl/sft" in command))

    monkeypatch.setattr(subprocess, "run", ended)
    monkeypatch.setattr(rehearse, "write_data", lambda folder: None)
    with pytest.raises(SystemExit, match="failed: rarl/sft"):
        rehearse.run(["experiment=rarl/sft,rarl/rl", f"outputs={tmp_path}", "seed=1"])
    printed = capsys.readouterr()
    assert "python -m medreason experiment=rarl/sft outputs=" in printed.err
    assert "seed=1" in printed.err
    assert "rarl/rl: rehearsed" in printed.err
    assert "1 of 2 recipes rehearsed" in printed.out
