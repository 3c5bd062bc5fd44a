"""Names of files, of which different ones never share one, and of differences."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medreason.config import Config
from medreason.report.names import (
    arm_key,
    arm_names,
    cell_name,
    data_name,
    difference_name,
    file_name,
    run_names,
    short,
)
from medreason.runs.run_folder import EvaluationFolder, RunFolder

NAMES = st.text(alphabet="aB -_.=+/é1", max_size=6)


@given(NAMES, NAMES)
def test_different_names_have_different_files_on_any_file_system(a: str, b: str) -> None:
    assert (file_name(a) == file_name(b)) == (a == b)
    assert re.fullmatch(r"[a-z0-9_.=+-]*", file_name(a))


def test_a_sign_is_not_lost() -> None:
    assert file_name("sft max_steps=-1") != file_name("sft max_steps=1") == "sft-max_steps=1"


@pytest.mark.parametrize(
    ("a", "b", "name"),
    [
        ("sft", "base", "sft minus base"),
        ("sft prompt=think", "sft prompt=no_think", "sft: prompt=think minus no_think"),
        ("sft prompt=think", "base prompt=think", "prompt=think: sft minus base"),
        ("rarl a=1 b=2", "rarl a=1 b=3", "rarl a=1: b=2 minus 3"),
        ("rarl a=1 b=2", "rarl a=2 b=1", "rarl: a=1 b=2 minus a=2 b=1"),
        ("sft lr=0.1", "base", "sft lr=0.1 minus base"),
        (
            "sft max_steps=20 learning_rate=5e-5",
            "sft max_steps=15 learning_rate=1e-4",
            "sft: max_steps=20 learning_rate=5e-5 minus max_steps=15 learning_rate=1e-4",
        ),
        (
            "rarl reward=rarl max_steps=20 learning_rate=0.001",
            "grpo reward=med_r1 max_steps=20 learning_rate=4e-5",
            "max_steps=20: rarl reward=rarl learning_rate=0.001 minus grpo reward=med_r1 "
            "learning_rate=4e-5",
        ),
        ("base model=a", "base model=b", "base: model=a minus b"),
    ],
)
def test_difference_names_what_both_share_once(a: str, b: str, name: str) -> None:
    assert difference_name(a, b) == name


def test_released_models_are_one_arm_with_a_row_for_each(composed: Callable[..., Config]) -> None:
    sets = ("ct", "oct", "grading")
    ct, oct_, grading = (
        composed("experiment=med_r1/released", f"training_set={name}") for name in sets
    )
    assert (ct.model.name, ct.model.path) == ("VQA_CT", "Med-R1/VQA_CT")
    assert grading.model.path == "Med-R1/VQA_Lesion_Grading"
    assert [cell_name(config) for config in (ct, oct_, grading)] == [
        "CT/all", "OCT/all", "all/Grading",
    ]  # fmt: skip
    assert arm_key(ct) == arm_key(oct_) != arm_key(grading)


def test_arms_on_two_data_sets_are_told_apart_by_their_options(
    composed: Callable[..., Config],
) -> None:
    arms = [
        replace(
            composed("experiment=med_r1/grpo_think", f"training_set={name}"),
            choices={"data": f"med_r1_{family}_384"},
        )
        for name, family in (("ct", "modality"), ("grading", "question_type"))
    ]
    assert arm_names(arms) == [
        "grpo data=med_r1_modality_384",
        "grpo data=med_r1_question_type_384",
    ]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("data=phantom",), "phantom"),
        (("data=hub", "data.hub=some/folder/cases.csv"), "the table cases.csv"),
        (("data=hub", "data.hub=owner/name"), "owner/name"),
    ],
)
def test_own_table_is_called_by_its_name(
    composed: Callable[..., Config], words: tuple[str, ...], name: str
) -> None:
    config = replace(composed(*words), choices={"data": words[0].partition("=")[2]})
    assert data_name(config) == name
    other = replace(composed("data=phantom"), choices={"data": "phantom"}, method=config.method)
    told = arm_names([config, other])[0]
    assert told == config.method.name + f" data={name.removeprefix('the table ')}" * (
        name != "phantom"
    )


def test_arms_that_nothing_short_tells_apart_are_named_by_their_sweeps(
    composed: Callable[..., Config],
) -> None:
    rates = {"a": "0.00034093", "b": "0.00034094"}
    arms = [
        composed("method=sft", f"method.trl.learning_rate={rate}", f"sweep={sweep}")
        for sweep, rate in rates.items()
    ]
    assert arm_names(arms) == [f"sft learning_rate=3.409e-4 sweep={sweep}" for sweep in rates]


def test_arms_of_long_values_have_names_of_their_own(composed: Callable[..., Config]) -> None:
    config = composed("method=sft")
    start = "a/folder/of/many/studies/of/one/hospital"
    roots = (
        f"{start}/2024",
        f"{start}/2025",
        f"{start}/2025/{'x' * 30}/b",
        f"{start}/{'x' * 30}/b",
    )
    arms = [replace(config, model=replace(config.model, path=root)) for root in roots]
    names = arm_names(arms)
    assert names[0] == "sft path=.../of/one/hospital/2024"
    assert len({*names}) == len(roots)


def test_drawn_numbers_are_named_by_four_digits_unless_more_tell_them_apart(
    composed: Callable[..., Config],
) -> None:
    def named(*rates: str) -> list[str]:
        return arm_names([composed("method=sft", f"method.trl.learning_rate={r}") for r in rates])

    drawn, typed = named("0.00034093996938792644", "1e-5")
    assert (drawn, typed) == ("sft learning_rate=3.409e-4", "sft learning_rate=1e-5")
    assert len({*named("0.00034093", "0.00034094")}) == 2  # told apart by their keys
    assert short("401408") == "401408"


def test_choice_that_is_called_as_its_method_stands_beside_its_key(
    asked_for: Callable[[str], Config],
) -> None:
    names = arm_names([asked_for("method=rarl"), asked_for("method=rarl reward=med_r1")])
    assert [name.split()[:2] for name in names] == [
        ["rarl", "reward=rarl"],
        ["rarl", "reward=med_r1"],
    ]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        (
            ["method=grpo reward=short method.trl.max_steps=10",
             "method=grpo reward=med_r1 method.trl.max_steps=20"],
            ["grpo reward=short max_steps=10", "grpo reward=med_r1 max_steps=20"],
        ),
        (
            ["method=sft prompt=think method.trl.learning_rate=1e-4 data.test_images=12",
             "method=sft prompt=no_think method.trl.learning_rate=1e-5 data.test_images=12"],
            ["sft prompt=think learning_rate=1e-4", "sft prompt=no_think learning_rate=1e-5"],
        ),
        (
            ["method=sft", "method=grpo adapter=lora_r8"],
            ["sft adapter=none", "grpo adapter=lora_r8"],
        ),
        (
            ["method=sft method.trl.max_steps=30", "method=grpo method.trl.max_steps=60"],
            ["sft max_steps=30", "grpo max_steps=60"],
        ),
        (
            ["method=grpo method.trl.num_generations=4", "method=rarl"],
            ["grpo num_generations=4", "rarl num_generations=8"],
        ),
        (
            ["method=sft validation=in_domain validation.every=10 validation.select=best",
             "method=grpo"],
            ["sft validation=in_domain select=best", "grpo validation=none"],
        ),
        (
            ["method=sft data.test_images=12", "method=grpo data.test_images=24"],
            ["sft test_images=12", "grpo test_images=24"],
        ),
        (
            ["method=grpo reward.correct.weight=2", "method=grpo reward=short"],
            ["grpo reward=med_r1 weight=2", "grpo reward=short"],
        ),
        (
            ["method=sft evaluation.max_new_tokens=12", "method=sft evaluation.max_new_tokens=24"],
            ["sft max_new_tokens=12", "sft max_new_tokens=24"],
        ),
        (["method=base", "method=sft", "method=grpo", "method=rarl"],
         ["base", "sft", "grpo", "rarl"]),
        (
            ["method=sft method.trl.max_steps=9 method.trl.learning_rate=1e-4",
             "method=grpo method.trl.max_steps=9 method.trl.learning_rate=1e-4"],
            ["sft", "grpo"],
        ),
    ],
)  # fmt: skip
def test_names_say_every_setting_in_which_compared_arms_differ(
    asked_for: Callable[[str], Config], typed: list[str], names: list[str]
) -> None:
    assert arm_names([asked_for(words) for words in typed]) == names


@pytest.fixture
def asked_for(composed: Callable[..., Config]) -> Callable[[str], Config]:
    """What a command line gives, with its choices and words; `reward=short` is a reward file of
    one's own."""

    def configure(line: str) -> Config:
        words = line.split()
        config = composed(*(word for word in words if word != "reward=short"))
        choices = {"prompt": "think", "reward": "med_r1", "adapter": "none", "data": "phantom"}
        if config.method.name == "rarl":
            choices |= {"prompt": "rarl", "reward": "rarl", "adapter": "lora_r8"}
        typed = (word.partition("=") for word in words)
        choices |= {key: value for key, _, value in typed if key in choices}
        if choices["reward"] == "short":
            config = replace(config, reward={"short": next(iter(config.reward.values()))})
        return replace(config, choices=choices, typed=words)

    return configure


def test_values_of_one_last_word_keep_the_words_that_tell_them_apart(
    composed: Callable[..., Config],
) -> None:
    a, b = (
        composed("method=grpo", f"reward.correct.weight={i}", f"reward.format.weight={i + 1}")
        for i in (1, 2)
    )
    assert arm_names([a, b]) == [
        "grpo correct.weight=1 format.weight=2",
        "grpo correct.weight=2 format.weight=3",
    ]


def test_evaluations_of_one_model_are_named_by_the_questions_that_they_ask(
    composed: Callable[..., Config],
) -> None:
    configs = [composed("method=sft"), composed("method=sft", "evaluation.tasks=[disease]")]
    folder = RunFolder(Path("runs/sft-tiny-0123456789ab"))
    names = run_names([EvaluationFolder(folder, key) for key in ("a", "b")], configs)
    assert names == ["sft tasks=all", "sft tasks=['disease']"]
