"""Configurations assembled from few compositions are those that Hydra composes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from medreason import config as configuration
from medreason.config import CONF, Config
from medreason.sweeps import jobs as module
from medreason.sweeps.jobs import compose_jobs, split_jobs

CELLS = "modality=ct,mri,xray,ultrasound,dermoscopy,fundus,oct,microscopy"
TASKS = "task=anatomy,disease,grading,modality_recognition,attributes"


@pytest.fixture
def swept(tmp_path: Path) -> Callable[..., tuple[list[list[str]], list[Config]]]:
    """`swept("method=sft,grpo", ...)`: jobs and configurations of a sweep."""

    def build(*overrides: str) -> tuple[list[list[str]], list[Config]]:
        overrides = (f"outputs={tmp_path}", *overrides)
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            plain = [o for o in overrides if "," not in o]
            master = compose("config", overrides=plain, return_hydra_config=True)
            assert isinstance(master, DictConfig)
            master.hydra.overrides.task = list(overrides)
            master.hydra.job.config_name = "config"
            jobs = split_jobs(master)
            return jobs, compose_jobs(master, jobs)

    return build


def each_composed(jobs: list[list[str]], places: list[int]) -> list[Config]:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return [configuration.load(compose("config", overrides=jobs[i])) for i in places]


def test_configurations_are_those_hydra_composes(swept: Callable[..., tuple]) -> None:
    jobs, configs = swept("method=sft,rarl", "modality=ct,oct", "task=all,grading", "seed=0,7")
    assert len(jobs) == 16
    places = [0, 6, 9, 15]
    expected = each_composed(jobs, places)
    assert [configs[i] for i in places] == expected


def test_jobs_of_training_sets_that_one_modality_would_make_equal_are_refused(
    swept: Callable[..., tuple],
) -> None:
    with pytest.raises(ValueError, match="say training_set=ct alone"):
        swept("training_set=ct,mri,oct", "modality=ct")


def test_lists_of_modalities_are_assembled_like_others(swept: Callable[..., tuple]) -> None:
    jobs, configs = swept(
        "modality=[ct,mri],oct,all", "task=[disease,grading],all", "modality.ct=true"
    )
    assert configs == each_composed(jobs, list(range(6)))
    assert [config.modality.name for config in configs[::2]] == ["ct+mri", "ct+oct", "all"]


def test_option_that_sets_values_outside_its_group_is_composed_in_full(
    swept: Callable[..., tuple],
) -> None:
    jobs, configs = swept("modality=ct,oct", "task=all,grading", "model.revision='${modality.ct}'")
    assert [config.model.revision for config in configs] == [
        str("modality=ct" in job) for job in jobs
    ]


def test_a_thousand_cells_take_few_compositions(
    swept: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[str] = []
    compose_one = module._compose
    monkeypatch.setattr(module, "_compose", lambda c, o: composed.append("") or compose_one(c, o))
    start = time.process_time()
    jobs, configs = swept(CELLS, TASKS, f"seed={','.join(map(str, range(25)))}")
    assert len(configs) == len(jobs) == 1000
    assert {(c.modality.name, c.task.name, c.seed) for c in configs} > {("oct", "grading", 24)}
    assert len(composed) <= 14
    assert time.process_time() - start < 30


def test_experiment_brings_its_own_jobs(swept: Callable[..., tuple]) -> None:
    jobs, _ = swept("experiment=smoke/quick")
    assert [job[0] for job in jobs] == ["method=base", "method=sft", "method=grpo", "method=rarl"]


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        (
            [
                ["method=grpo", "method.trl.learning_rate=1e-5", "seed=1", "task=all"],
                ["method=grpo", "method.trl.learning_rate=1e-6", "seed=1", "task=all"],
            ],
            ["learning_rate=1e-5", "learning_rate=1e-6"],
        ),
        (
            [["method=sft", "modality=[ct,mri]"], ["method=base", "modality=ct"]],
            ["sft [ct,mri]", "base ct"],
        ),
        (
            [["+judge.model=a", "model.path=x"], ["+judge.model=b", "model.path=y"]],
            ["model=a path=x", "model=b path=y"],
        ),
        (
            [["a.name=1", "b.name=1"], ["a.name=1", "b.name=2"], ["a.name=2", "b.name=2"]],
            ["a.name=1 b.name=1", "a.name=1 b.name=2", "a.name=2 b.name=2"],
        ),
        ([["seed=1"]], [""]),
    ],
)
def test_label_of_a_job_says_what_differs(jobs: list[list[str]], words: list[str]) -> None:
    assert module.labels(jobs) == words


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("method=sft rollout=vllm", "! rollout=vllm has no effect: method=sft samples no comp"),
        ("method=base,sft rollout=vllm", "! rollout=vllm has no effect: method=base samples no"),
        ("method=base method.trl.max_steps=5", "! method.trl.max_steps=5 has no effect: method="),
        ("method=base,sft method.trl.max_steps=5", ""),
        ("method=sft,grpo rollout=trl", ""),
        ("method=sft judge.model=x", "! judge.model=x has no effect: judge=none grades nothing; l"),
        ("method=grpo method.target=answer", "! method.target=answer has no effect: method=grpo "),
    ],
)
def test_setting_that_no_job_uses_is_said(
    typed: str, told: str, swept: Callable[..., tuple]
) -> None:
    jobs, configs = swept(*typed.split())
    lines = module.idle_lines(configs, jobs)
    assert len(lines) == bool(told)
    assert all(line.startswith(told) for line in lines)


def test_empty_range_is_an_empty_sweep(swept: Callable[..., tuple]) -> None:
    assert swept("seed=range(0,0)")[0] == []


def test_training_whose_start_model_is_asked_with_another_prompt_is_said_with_the_remedy(
    swept: Callable[..., tuple],
) -> None:
    jobs, configs = swept("method=base,sft,rarl", "sweep=s", "data.seed=3", "modality=ct")
    (line,) = module.base_lines(configs, jobs)
    assert line.startswith("! rarl is tested with prompt=rarl, its start model with prompt=think:")
    outputs = configs[0].outputs
    command = f"python -m medreason outputs={outputs} data.seed=3 method=base prompt=rarl sweep=s"
    assert f"`{command}` adds" in line
    for words in ("method=base,sft", "method=sft,rarl"):
        jobs, configs = swept(words)
        assert module.base_lines(configs, jobs) == []
    jobs, configs = swept("method=base,rarl", "prompt=rarl")
    assert module.base_lines(configs, jobs) == []
