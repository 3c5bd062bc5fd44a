"""What `import medreason` offers, and the example of medreason/report/README.md."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import commands
import pandas as pd
import pytest
import readme_files
from run_folders import draw_samples, reply, write_run

import medreason
from medreason import config as configuration
from medreason.config import Config, Reward, checks
from medreason.report import table
from medreason.runs.run_folder import EvaluationFolder

EXAMPLE = readme_files.shown_in("medreason/report/README.md")["look.py"]


@pytest.fixture
def outputs(tmp_path: Path, composed: Callable[..., Config]) -> Path:
    """A base model that always says A, and a GRPO run that is right, with one file of rollouts."""
    samples = draw_samples(tmp_path / "images")
    write_run(composed("method=base", "sweep=demo"), samples, lambda *_: reply("A"))
    config = composed("method=grpo", "sweep=demo")
    made = write_run(config, samples, lambda _, s: reply(s.answer), key="1123456789ab")
    _write_rollouts(made)
    return config.folder


def _write_rollouts(evaluation: EvaluationFolder) -> None:
    rollouts = evaluation.run.rollouts
    rollouts.mkdir()
    rows = {"completion": ["a", "b"], "reward/correct": [1.0, 0.0], "advantage": [0.7, -0.7]}
    pd.DataFrame(rows).to_parquet(rollouts / "step-000010.parquet")


def test_example_of_the_readme_runs(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(outputs.parent)
    exec(compile(EXAMPLE, "look.py", "exec"), {})
    shown = capsys.readouterr().out
    assert "qwen2_vl_2b" in shown
    assert "advantage" in shown


def test_frame_is_the_table_of_the_report(outputs: Path, tmp_path: Path) -> None:
    runs = medreason.load_runs(outputs, sweep="demo")
    frame = runs.frame()
    table.write_csv(runs, tmp_path / "table.csv")
    written = pd.read_csv(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(frame, written, check_dtype=False)
    total = frame[frame["modality"] == "all"].set_index("run")["accuracy"]
    assert total.to_dict() == {"base": 0.25, "grpo": 1.0}
    differences = frame[frame["modality"] == "all"].set_index("run")["difference"]
    assert differences["grpo"] == pytest.approx(0.75)  # a fraction, as the accuracies
    settings = frame[["sweep", "method", "model"]].drop_duplicates()
    assert settings.to_numpy().tolist() == [["demo", "base", "tiny"], ["demo", "grpo", "tiny"]]
    assert frame.groupby("method")["seed"].max().dropna().to_dict() == {"grpo": 0}  # of no training


def test_predictions_have_the_controls_and_rollouts_their_step(outputs: Path) -> None:
    (folder,) = (outputs / "runs").glob("grpo-*")
    run = medreason.load_run(folder)
    assert medreason.load_run(run.folder).evaluation == run.evaluation
    answers = medreason.predictions(run)
    assert answers.groupby("control")["correct"].mean()["original"] == run.overall["accuracy"] == 1
    assert set(answers["control"]) == {"original", "blank_image"}
    assert list(medreason.rollouts(run)["step"]) == [10, 10]


def test_runs_are_printed_in_a_line(outputs: Path) -> None:
    base, grpo = medreason.load_runs(outputs)
    assert str(grpo) == f"<Run grpo: 100.0 % of 36 right, {grpo.evaluation.path}>"
    assert repr(base).startswith("<Run base: 25.0 % of 36 right, ")


def test_wrong_names_are_refused_with_those_there_are(outputs: Path) -> None:
    with pytest.raises(ValueError, match=r"sweep=demmo .* there are demo: give sweep='demo'$"):
        medreason.load_runs(outputs, sweep="demmo")
    with pytest.raises(ValueError, match=r"outputs=/nowhere: there is no folder /nowhere/runs"):
        medreason.load_runs("/nowhere")
    with pytest.raises(ValueError, match="is no run folder"):
        medreason.load_run(outputs)
    base = medreason.load_runs(outputs)[0]
    with pytest.raises(ValueError, match=r"base-.* no rollouts: method=base samples none, only GR"):
        medreason.rollouts(base)
    with pytest.raises(ValueError, match="grppo"):
        medreason.compose(["method=grppo"])


def test_composed_is_that_of_the_command_line() -> None:
    config = medreason.compose(["method=grpo", "model=qwen2_vl_2b", "seed=3"])
    assert (config.method.name, config.seed, config.choices["model"]) == ("grpo", 3, "qwen2_vl_2b")


def test_results_are_read_where_own_reward_and_reader_cannot_be_imported(
    tmp_path: Path, composed: Callable[..., Config]
) -> None:
    base = composed("method=grpo", "sweep=own", "tracking=none")
    mine = Reward(score={"_target_": "my_lost_module.short"})
    reader = base.data | {"_target_": "my_lost_module.read"}
    config = replace(base, reward={"mine": mine}, data=reader)
    with pytest.raises(ValueError, match=r"'my_lost_module.read' is not a function that can be"):
        checks.users_functions_are_known(config)
    made = write_run(config, draw_samples(tmp_path / "images"), lambda _, s: reply(s.answer))
    assert configuration.read(made.config) == config
    (run,) = medreason.load_runs(config.folder, sweep="own")
    assert medreason.load_run(made.run.path).overall["accuracy"] == run.overall["accuracy"] == 1
    assert set(run.config.reward) == {"mine"} if run.config else False
    told = commands.medreason(
        "action=report", "sweep=own", f"outputs={config.folder}", "tracking=none"
    )
    assert told.returncode == 0, told.stderr
    assert "grpo" in told.stdout
    assert "my_lost_module" not in told.stdout + told.stderr


def test_import_loads_nothing_heavy() -> None:
    code = "import medreason, sys; print({'torch', 'pandas', 'hydra', 'mlflow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
