"""An option that no file stands for is refused, wherever it is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medreason.config import CONF, options


def test_groups_and_options_are_those_of_the_folder() -> None:
    known = options.options([CONF])
    assert "smoke/demo" in known["experiment"]
    assert known["model/steps"] == ["tiny-grpo", "tiny-rarl", "tiny-sft"]
    assert "steps/tiny-grpo" not in known["model"]
    assert "hydra" not in known


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("experiment=smoke/dmeo", "experiment='smoke/dmeo'; known: .*did you mean 'smoke/demo'"),
        ("+experiment=smoke/dmeo", "did you mean 'smoke/demo'"),
        ("modality=[ct,xry]", "modality='xry'; known: .*did you mean 'xray'"),
        ("experiment=null", "experiment=null chooses no option; leave .*smoke/demo"),
        ("experiment=", "experiment=''; known: "),
        ("method=gprp", "method='gprp'; known: 'base', .*did you mean 'grpo'"),
        ("method=sft,gprp", "method='gprp'"),
        ("method=choice(sft,'gprp')", "method='gprp'"),
        ("method=sft,null", "method=null"),
        ("judge@second_judge=opnai", "judge@second_judge='opnai'; .*did you mean 'openai'"),
        ("model/steps@_global_=tiny-grp", "did you mean 'tiny-grpo'"),
        ("seed=0 task=al", "task='al'; .*did you mean 'all'"),
    ],
)
def test_option_without_a_file_is_refused(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options.check(override.split(), [CONF])


@pytest.mark.parametrize(
    "override",
    [
        *("method=sft,grpo", "method=glob(*)", "experiment=smoke/demo.yaml", "model='${other}'"),
        *("modality=[ct,xray]", "task=[disease],all", "~adapter", "~judge=none", "seed=1,2"),
        *("hydra/launcher=not_ours", "~model/steps@_global_", "prompt.train=[method]", "a=[["),
    ],
)
def test_what_is_right_or_for_hydra_to_refuse_passes(override: str) -> None:
    options.check([override], [CONF])


@pytest.mark.parametrize("option", options.options([CONF])["experiment"])
def test_every_recipe_names_files_alone(option: str) -> None:
    options.check([f"experiment={option}"], [CONF])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("defaults:\n  - override /rewards: x\n  - override /reward: rarll\n", "reward='rarll'"),
        (
            "defaults:\n  - override /model/steps@_global_: tiny-x\n",
            "model/steps@_global_='tiny-x'",
        ),
        ("defaults:\n  - override /rollout: hf\n", "'hf' is now trl"),
        ("defaults:\n  - smoke/dmeo\n", "experiment='smoke/dmeo'"),
        ("defaults:\n  - other\n", r"other\.yaml: method='gprp'"),
        ("hydra:\n  sweeper:\n    params:\n      method: base,gprp\n", "method='gprp'"),
        ("hydra:\n  sweeper:\n    params:\n      hardware.probe: true,false\n", "memory_check"),
        ("defaults:\n  - override /prompt: [think, no_think]\n", r"prompt=\[think,no_think\]: "),
        ("defaults: [", "while parsing"),
    ],
)
def test_recipe_is_read_for_the_options_it_names(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{content}")
    (tmp_path / "experiment/other.yaml").write_text("defaults: [mine, override /method: gprp]")
    with pytest.raises(ValueError, match=rf"(?s)mine\.yaml: .*{words}"):
        options.check(["experiment=mine"], [CONF, tmp_path])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("prompt=[think,no_think]", "only modality and task .*-m prompt=think,no_think"),
        ("prompt=[think,no_think],rarl", r"prompt=\[think,no_think\]: "),
        ("judge@second_judge=[openai]", r"-m judge@second_judge=openai"),
        ("experiment=[smoke/demo,rarl/methods]", "can name another in its defaults list"),
    ],
)
def test_list_of_options_that_do_not_merge_is_refused(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options.check([override], [CONF])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("modality=xray,ct", "for each is -m modality=xray,ct; one run .* is modality=[xray,ct]"),
        ("prompt=think,rarl", "a sweep with a run for each is -m prompt=think,rarl"),
        ("seed=range(0,3)", "-m seed=range(0,3)"),
        ("evaluation.tasks=grading,disease", "one list is evaluation.tasks=[grading,disease]"),
        ("predict.question=A, B", """one text is "predict.question='A, B'\""""),
    ],
)
def test_several_values_of_one_run_are_refused_with_what_each_meaning_takes(
    override: str, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words).replace(r"\.\*", ".*")) as caught:
        options.refuse_sweep([override])
    assert str(caught.value).startswith(f"{override} has several values: ")
    options.refuse_sweep(["modality=[xray,ct]", "seed=1", "a=[[", "~adapter"])
