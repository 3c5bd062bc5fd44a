"""An option that no file stands for is refused, wherever it is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from medreason import config as configuration
from medreason.config import CONF, key_names, options, upstream


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
        ("experiment=demo", "did you mean 'smoke/demo'"),
        ("model=Qwen2-VL-2B", "did you mean 'qwen2_vl_2b'"),
        ("model=Qwen2.5-VL-3B", "did you mean 'qwen2_5_vl_3b'"),
        ("experiment=rarl", "did you mean 'rarl/rarl' or 'smoke/rarl'"),
        (
            "method=sft, grpo",
            "^method=sft,: no space before or behind a comma; type method=sft,...$",
        ),
        ("seed=0 ,1", "^,1: no space before or behind a comma"),
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


@pytest.mark.parametrize("group", [*options.options([CONF]), "judge@second_judge"])
def test_unknown_option_may_be_one_of_a_folder_that_is_not_named(
    group: str, tmp_path: Path
) -> None:
    hint = "', or --config-dir DIR for one of your own"
    with pytest.raises(ValueError, match=f"^{group}='short'; known: '.*{hint}"):
        options.check([f"{group}=short"], [CONF])
    with pytest.raises(ValueError, match=f"^{group}='short'; known: '") as caught:
        options.check([f"{group}=short"], [CONF, tmp_path])
    assert "--config-dir" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("outputs=~/runs", "type \"outputs='~/runs'\", with $HOME in place of ~"),
        ("sweep=名", "type \"sweep='名'\""),
        ("data.root=/Bilder/Schädel", "type \"data.root='/Bilder/Schädel'\""),
        ("data.separator=;", "type \"data.separator=';'\""),
        ("outputs=/a=b", "type \"outputs='/a=b'\""),
        ("outputs=/a b", None),
    ],
)
def test_a_text_that_needs_quotes_is_refused_with_them(override: str, words: str | None) -> None:
    if words is None:
        options.check([override], [CONF])
        return
    with pytest.raises(ValueError, match=re.escape(words)):
        options._refuse_unquoted([override], {})
    typed = re.search(r'type "(.*)"', words)
    assert typed
    options._refuse_unquoted([typed[1]], {})


@pytest.mark.parametrize(
    ("typed", "word", "example"),
    [
        ("data.columns.modality=scan type", "type", "'data.columns.modality=scan type'"),
        ("seed=1 sweep=a b c seed=2", "b", "'sweep=a b c'"),
        ("type seed=1", "type", "'key=first type'"),
    ],
)
def test_part_of_a_value_that_stands_alone_is_refused_with_the_quotes(
    typed: str, word: str, example: str
) -> None:
    words = (
        f"the word '{word}' stands alone: type key=value or group=option, and put quotes around "
        f"a value with a space ({example})"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        options.check(typed.split(), [CONF])


@pytest.mark.parametrize(
    "override",
    [
        *("method=sft,grpo", "method=glob(*)", "experiment=smoke/demo.yaml", "model='${other}'"),
        *("modality=[ct,xray]", "task=[disease],all", "~adapter", "~judge=none", "seed=1,2"),
        *("hydra/launcher=not_ours", "~model/steps@_global_", "prompt.train=[method]"),
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
        ("methd: sft\n", "did you mean method"),
        (
            "hydra:\n  sweeper:\n    params:\n      method.lr: 1,2\n",
            "mean method.trl.learning_rate",
        ),
        ("sweep: 1e5\n", "for the text, put it in quotes: sweep: '1e5'"),
        ("outputs: 2026_11_27\n", "put it in quotes: outputs: '2026_11_27'"),
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
        ("seed=range(0,3)", "-m 'seed=range(0,3)'"),
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


def test_an_interval_without_a_search_is_refused_with_the_words_of_one() -> None:
    override = "method.trl.learning_rate=tag(log, interval(1e-4, 1e-2))"
    told = f"is for a search, .* type -m hydra/sweeper=search '{re.escape(override)}'$"
    with pytest.raises(ValueError, match=told):
        options.refuse_sweep([override])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep=x,y", "one command has one name of a sweep, without a comma; give sweep one value"),
        ("outputs=a,b", """give outputs one value, or quote a comma: "outputs='a,b'\""""),
        ("action=train,plan", "one command does one action; give action one value"),
        ("tracking=local,none", "tracked in one place; give tracking one value"),
        ("report.published=a,b", "a report shows all jobs of a command; give report.published one"),
        ("statistics.clusters=image,patient", "changes no run, and all jobs of a command are"),
        ("runs.test=true,false", "it says how the jobs of a command are run; give runs.test one"),
        ("tracking.images=range(0,3)", "tracked in one place; give tracking.images one value"),
    ],
)
def test_what_a_command_has_one_of_is_not_swept(override: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(override)} has several.*{re.escape(words)}"):
        options.check([override], [CONF])
    key, _, values = override.partition("=")
    (tmp_path / "experiment").mkdir()
    recipe = f"# @package _global_\nhydra:\n  sweeper:\n    params:\n      {key}: {values}\n"
    (tmp_path / "experiment/mine.yaml").write_text(recipe)
    with pytest.raises(ValueError, match=re.escape(words)):
        options.check(["experiment=mine"], [CONF, tmp_path])
    options.check(["sweep=x", "outputs=a", "seed=1,2", "action=plan", "tracking=none"], [CONF])
    if key == "outputs":
        options.check(["outputs='a,b'"], [CONF])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("training_set=mri", "modality=ct"), "say training_set=ct alone"),
        (("training_set=grading", "task=[disease,grading]"), "leave task out"),
    ],
)
def test_training_set_and_another_cell_are_refused(words: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options.check(words, [CONF])
    options.check(["training_set=mri", "task=disease", "modality=mri"], [CONF])


@pytest.mark.parametrize("form", ["{}", "+{}", "++{}", "~{}"])
@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "method.learning_rate",
            "method.learning_rate is .* did you mean method.trl.learning_rate?",
        ),
        ("methd", "methd is unknown; did you mean method?"),
        ("evaluation.max_tokens", "did you mean evaluation.max_new_tokens?"),
        ("method.trl.lr", "unknown to SFTConfig and GRPOConfig; .* method.trl.learning_rate?"),
        ("epochs", "did you mean method.trl.num_train_epochs?"),
        ("batch_size", "did you mean hardware.per_device_prompts?"),
        ("reward.mine.wieght", "did you mean reward.mine.weight?"),
        ("modality.pet", "modality.pet is unknown; the keys of modality: ct, mri, "),
        ("zzz", "zzz is unknown; the keys are: action, method, "),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_and_never_with_a_plus(
    form: str, key: str, words: str
) -> None:
    pattern = re.escape(words).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=pattern) as caught:
        options.check([form.format(key) + ("=1" if "~" not in form else "")], [CONF])
    assert "+" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("sweep=1e5", "float 100000.0"),
        ("outputs=2026_11_27", "int 20261127"),
        ("model.revision=main,12e45678", "float inf"),
        ("data.seed=1,2 sweep=true", "bool True"),
    ],
)
def test_text_that_is_read_as_a_number_is_refused_with_its_quotes(override: str, read: str) -> None:
    key, _, text = override.split()[-1].partition("=")
    text = text.split(",")[-1]
    words = f"""is read as the {read}; for the text, type both pairs of quotes: "{key}='{text}'\""""
    with pytest.raises(ValueError, match=re.escape(words)):
        options.check(override.split(), [CONF])
    options.check([f"{key}='{text}'", "sweep=2026", "model.revision=null"], [CONF])


def test_true_and_false_are_taken_where_they_are_words_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "hardware").mkdir()
    key = "gradient_checkpointing"
    for word in ("true", "false", "auto", "True"):
        (tmp_path / "hardware/mine.yaml").write_text(f"name: mine\n{key}: {word}\n")
        options.check([f"hardware.{key}={word}", "hardware=mine"], [CONF, tmp_path])


def test_files_of_groups_are_read_where_their_values_go(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge/mine.yaml").write_text("name: mine\nkinds: openai\n")
    for override, key in (("judge=mine", "judge"), ("judge@second_judge=mine", "second_judge")):
        with pytest.raises(ValueError, match=rf"mine\.yaml: {key}.kinds .* mean {key}.kind\?"):
            options.check([override], [CONF, tmp_path])
    (tmp_path / "judge/mine.yaml").write_text("# @package _global_\nlab: 3\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: lab is unknown"):
        options.check(["judge=mine"], [CONF, tmp_path])


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group, names in options.options([CONF]).items() for option in names],
)
def test_every_file_of_ours_passes(group: str, option: str) -> None:
    options.check([f"{group}={option}"], [CONF])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward.corect.weight=1"], "reward.corect is not in reward=med_r1, which has correct, "),
        (["reward.corect.weight=1"], "did you mean reward.correct?"),
        (["reward=rarl", "reward.overlong.weight=1"], "is not in reward=rarl, which has answer, "),
        (["method=rarl", "reward.overlong.weight=1"], "is not in reward=rarl, which has answer, "),
    ],
)
def test_value_of_a_reward_that_is_not_there_is_refused_without_a_plus(
    overrides: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        options.check(overrides, [CONF])
    assert "+" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [["reward.correct.weight=1"], ["method=rarl", "reward.reasoning.weight=1"], ["~reward.format"]],
)
def test_value_of_a_reward_that_is_there_passes(overrides: list[str]) -> None:
    options.check(overrides, [CONF])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.root=/x"], "data.root is unknown to medreason.phantom.load; it takes train_images"),
        (["data.root=/x"], "contradictions; for another data set, add data=NAME"),
        (["data.test_image=3"], "did you mean data.test_images?; it takes train_images, "),
        (["data.balence=true", "data=slake", "data.root=/x"], "data.balence is unknown to medr"),
        (["data.splitt=by_image"], "did you mean data.split?"),
        (
            ["reward.correct.score.wieght=2"],
            "unknown to medreason.rewards.answer.correct; it takes",
        ),
    ],
)
def test_unknown_key_of_a_function_is_refused_with_those_it_takes(
    overrides: list[str], words: str
) -> None:
    """Hydra would recommend a `+`, which is refused, too."""
    options.check(overrides, [CONF])
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = compose("config", overrides=overrides)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        configuration.load(composed)
    assert "+" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rollout.n", "method.trl.num_generations"),
        ("worker.rollout.n", "method.trl.num_generations"),
        ("actor_rollout_ref.rollout.n", "method.trl.num_generations"),
        ("actor_rollout_ref.rollout.temperature", "method.trl.temperature"),
        ("lora_rank", "adapter.r"),
        ("reward_funcs", "reward=med_r1"),
        ("train_type", "adapter=lora_r8"),
        ("tuner_type", "adapter=lora_r8"),
        ("model_name_or_path", "model.path"),
        ("rlhf_type", "method=grpo"),
        ("report_to", "tracking=local"),
        ("trainer.n_gpus_per_node", "hardware.devices"),
        ("gpus", "hardware.devices"),
    ],
)
def test_word_of_another_trainer_is_answered_with_the_key_here(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"is unknown; did you mean {re.escape(meant)}\?$"):
        options.check([f"{typed}=1"], [CONF])


def test_keys_that_stand_for_words_of_other_trainers_exist() -> None:
    for meant in {word for words in upstream.ELSEWHERE.values() for word in words.split()}:
        if "=" in meant:
            options.check([meant], [CONF])
        else:
            key_names.refuse_unknown(meant)


def test_where_results_are_reported_is_chosen_by_tracking() -> None:
    with pytest.raises(ValueError, match="leave it out and set tracking=local or tracking=server"):
        options.check(["method.trl.report_to=wandb"], [CONF])


def test_who_draws_is_chosen_by_rollout() -> None:
    with pytest.raises(ValueError, match="leave it out and set rollout=vllm"):
        options.check(["method.trl.use_vllm=true"], [CONF])
    with pytest.raises(ValueError, match=r"belongs to rollout=vllm.*rollout.vllm.vllm_mode"):
        options.check(["method.trl.vllm_mode=server"], [CONF])
