"""Every option composes and loads; what is wrong is refused by name."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from medreason import config as configuration
from medreason import moved
from medreason.config import CONF, Config
from medreason.config.schema import Modalities, Tasks
from medreason.report.names import cell_name
from medreason.samples import MODALITIES, MODALITY_NAMES, TASK_NAMES, TASKS, UNKNOWN

GROUPS = {
    path.name: sorted(file.stem for file in path.glob("*.yaml"))
    for path in sorted(CONF.iterdir())
    if path.is_dir() and path.name != "experiment"
}
EXPERIMENTS = sorted(
    str(file.relative_to(CONF / "experiment").with_suffix(""))
    for file in (CONF / "experiment").rglob("*.yaml")
)
Compose = Callable[..., Config]


def test_known_options_are_among_those_tested() -> None:
    assert "rarl" in GROUPS["method"]
    assert "smoke/demo" in EXPERIMENTS


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group, options in GROUPS.items() for option in options],
)
def test_option_composes_and_loads(composed: Compose, group: str, option: str) -> None:
    required = {
        **{
            f"data={name}": ["data.root=somewhere"]
            for name in GROUPS["data"]
            if name not in ("phantom", "hub")
        },
        "prompt=zero_shot": ["~reward.format"],
        "model=random_33m": ["action=bench"],
        "model=random_2b": ["action=bench"],
        "reward=rarl_judge": ["judge=local"],
        "rollout=vllm": ["hardware=gpu"],
        "model=endpoint": [
            *("method=base", "model.endpoint.model=m"),
            "model.endpoint.base_url=http://127.0.0.1:8000/v1",
        ],
    }
    config = composed(f"{group}={option}", *required.get(f"{group}={option}", []))
    assert isinstance(config, Config)


OF_ONE_METHOD = {"med_r1/low_data": "grpo", "med_r1/sft_parity": "sft", "med_r1/zero_shot": "base"}
"""Recipes with settings of one method alone, as the number of tokens that GRPO draws."""


@pytest.mark.parametrize(
    ("experiment", "method"),
    [
        (experiment, method)
        for experiment in EXPERIMENTS
        for method in GROUPS["method"]
        if OF_ONE_METHOD.get(experiment, method) == method
    ],
)
def test_experiment_composes_with_every_method(
    composed: Compose, experiment: str, method: str
) -> None:
    paper = experiment.partition("/")[0]
    where = {"rarl": ["data.root=somewhere"], "med_r1": ["training_set=ct"]}.get(paper, [])
    assert composed(f"experiment={experiment}", f"method={method}", *where).sweep != "runs"


def test_method_rarl_sets_adapter_reward_and_prompt_and_the_command_line_still_wins(
    composed: Compose,
) -> None:
    config = composed("method=rarl")
    assert config.adapter["r"] == 8
    assert set(config.reward) == {"format", "answer", "reasoning"}
    assert config.prompt.name == "rarl"
    config = composed("method=rarl", "adapter=none", "reward=med_r1", "prompt=think")
    assert not config.adapter
    assert set(config.reward) == {"correct", "format"}
    assert config.prompt.name == "think"


def test_reward_weight_is_set_and_a_reward_dropped_from_the_command_line(composed: Compose) -> None:
    config = composed("method=rarl", "reward.reasoning.weight=0.5", "~reward.format")
    assert config.reward["reasoning"].weight == 0.5
    assert "format" not in config.reward


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.prompts_per_step=10"], ["method.prompts_per_step=10", "1 * 4 = 4", "8 or 12"]),
        (["hardware.devices=0"], ["hardware.devices=0", "at least 1"]),
        (["seed=-1"], ["seed=-1", "from 0 to 4294967295"]),
        (["seed=99999999999"], ["seed=99999999999", "from 0 to 4294967295"]),
        (["data.seed=-1"], ["data.seed=-1", "0 or more"]),
        (["+data.window=[nan,400]"], ["data.window=[nan, 400]", "[center, width]"]),
        (["+data.window=[40,inf]"], ["data.window=[40, inf]", "[center, width]"]),
        (["evaluation.controls=[no_image,no_image]"], ["names 'no_image' 2 times; name it once"]),
        (["tracking.images=-3"], ["tracking.images=-3", "0 or more"]),
        (["tracking.uri=nonsense://a"], ["knows no nonsense://", "sqlite://..."]),
        (["hardware.precision=float16"], ["hardware.precision='float16'", "'bfloat16'"]),
        (["evaluation.modalities=[ct,pet]"], ["evaluation.modalities='pet'", "'mri'"]),
        (["modality=ct", "modality.ct=false"], ["modality: none is chosen", "modality=all"]),
        (["task=grading", "~task.grading"], ["task: none is chosen", "attributes"]),
        (["+modality.pet=true"], ["modality.pet is unknown"]),
        (["prompt.evaluate=hello"], ["hello", "{question}"]),
        (["prompt.diversity=true"], ["prompt.diversity=true", "prompt=think", "prompt=rarl"]),
        (["prompt.reasoning_prompting=true"], ["prompt.reasoning", "prompt=think"]),
        (["method.target=letter"], ["method.target='letter'", "'answer'"]),
        (["data=med_r1"], ["data.root has no value"]),
        (["+data.rooot=x"], ["data.rooot", "train_images"]),
        (["+hardware.device=2"], ["hardware.device is unknown", "mean hardware.devices?"]),
        (["+reward.format.wieght=2"], ["reward.format.wieght is", "mean reward.format.weight?"]),
        (["+method.learning_rate=1e-1"], ["is unknown; did you mean method.trl.learning_rate?"]),
        (
            ["data=med_r1", "data.root=2026"],
            ["data.root=2026", """type both pairs of quotes: "data.root='2026'\""""],
        ),
        (["data.train_images=many"], ["data.train_images='many'", "takes a whole number"]),
        (
            ["data=hub", "data.columns.options={a: b}"],
            ["data.columns.options={'a': 'b'}: ", "takes a text or a list of texts or null"],
        ),
        (
            ["data=hub", "data.columns.options=[1,2]"],
            ["""both pairs of quotes: "data.columns.options=['1','2']\""""],
        ),
        (["prompt.evaluate='{question} {frage}'"], ["has {frage}", "{question}, the question"]),
        (["data.seed=abc"], ["data.seed='abc'", "takes a whole number"]),
        (["data.test_share=null"], ["data.test_share=None", "takes a number"]),
        (
            ["+reward.correct.score.case=upper"],
            ["reward.correct.score.case", "medreason.rewards.answer.correct"],
        ),
        (["reward.correct.weight=0", "reward.format.weight=0"], ["needs a reward with a weight"]),
        (["reward.correct.weight=nan"], ["nan", "medreason.rewards.answer.correct", "0 or more"]),
        (["reward.correct.weight=-1"], ["-1.0", "penalty", "positive weight"]),
        (["reward.correct.only_when=right"], ["reward.correct.only_when='right'", "format"]),
        (["reward.correct.only_when=correct"], ["another reward", "format"]),
        (["reward=rarl_judge"], ["reward.reasoning.judge", "judge=openai"]),
        (
            ["judge=openai", "judge.base_url=http://me:secret@host/v1"],
            ["judge.base_url", "api_key"],
        ),
        (["judge=openai", "judge.base_url=host"], ["judge.base_url='host'", "http://"]),
        (["judge=openai", "judge.model=''"], ["judge.model has no value"]),
        (
            ["reward=rarl_judge", "judge=local", "rubric.reasoning.question='{given}'"],
            ["rubric.reasoning.question has no {explanation}", "rubric=reference"],
        ),
        (
            ["reward.correct.score._target_=medreason.rewards.answer.corect"],
            [
                "reward.correct.score._target_='medreason.rewards.answer.corect' is not a function",
                f"Python looks in {Path.cwd()} and in PYTHONPATH",
            ],
        ),
        (["prompt=zero_shot"], ["reward.format", "free"]),
        (["model.weights=random"], ["model.weights=random", "action=bench"]),
        (["+model.architecture.text_config.hidden_size=8"], ["model.weights=random"]),
        (["action=bench", "bench.tokens=[]"], ["bench.tokens is empty", "bench.tokens=[16,128]"]),
        (["prompt.train=[]"], ["prompt.evaluate: Interpolation key 'train[0]'", "set that key"]),
        (
            ["prompt.train=[]", "prompt.evaluate='{question}'"],
            ["prompt.train is empty", "=think"],
        ),
        (["judge.temperature=-1"], ["judge.temperature=-1", "from 0 to 2"]),
        (["judge.temperature=nan"], ["judge.temperature=nan", "from 0 to 2"]),
        (["action=bench", "bench.tokens=[0]"], ["bench.tokens=0", "at least 1"]),
        (["statistics.clusters=patients"], ["statistics.clusters='patients'", "mean 'patient'?"]),
        (["statistics.average=macro"], ["statistics.average='macro'", "'questions', 'cells'"]),
        (["statistics.difference=0"], ["statistics.difference=0.0", "percent points, above 0"]),
        (["statistics.discordance=30"], ["statistics.discordance=30.0", "at most 1"]),
        (["statistics.correlation=nan"], ["statistics.correlation=nan", "from 0 to 1"]),
        (["rollout.fallback=plan"], ["rollout.fallback='plan'", "'unshared'"]),
        (["rollout.draft_tokens=some"], ["rollout.draft_tokens=some; give auto, 0 "]),
        (["evaluation.draft_tokens=-1"], ["evaluation.draft_tokens=-1; give auto, 0 "]),
        (["rollout=trl", "rollout.draft_tokens=4"], ["=4 needs rollout=grouped", "=auto"]),
        (["evaluation.engine=vllm", "evaluation.draft_tokens=4"], ["engine=generate", "=auto"]),
        (["hardware.attention=flash_attention_2"], ["hardware.attention", "rollout=trl"]),
    ],
)
def test_bad_value_is_refused_with_key_value_and_remedy(
    composed: Compose, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        composed(*overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "members", "name"),
    [
        (["modality=[xray,ct]"], ["ct", "xray"], "ct+xray"),
        (["modality=ct", "modality.oct=true"], ["ct", "oct"], "ct+oct"),
        (["modality=[ct,mri]", "modality.ct=false"], ["mri"], "mri"),
        (["modality=all"], list(MODALITY_NAMES), "all"),
        (["~modality.ct"], list(MODALITY_NAMES)[1:], "+".join(list(MODALITY_NAMES)[1:])),
        ([f"modality=[{','.join(MODALITY_NAMES)}]"], list(MODALITY_NAMES), "all"),
        ([f"modality=[{','.join(MODALITIES)}]"], list(MODALITIES), "+".join(MODALITIES)),
    ],
)
def test_options_of_modality_add_up(
    composed: Compose, overrides: list[str], members: list[str], name: str
) -> None:
    config = composed(*overrides, "task=[grading,disease]")
    assert (config.modality.members, config.modality.name) == (members, name)
    assert config.task.members == ["disease", "grading"]
    assert config.run_name == f"grpo-tiny-{name}-disease+grading"
    assert cell_name(config).endswith("/Disease+Grading")


@pytest.mark.parametrize(
    ("served", "name"),
    [
        ("/home/me/models/exported", "base-exported"),
        ("Qwen/Qwen2-VL-2B-Instruct", "base-Qwen_Qwen2-VL-2B-Instruct"),
        ("mine:v1", "base-mine_v1"),
    ],
)
def test_run_of_a_served_folder_has_the_name_of_that_folder(
    composed: Compose, served: str, name: str
) -> None:
    server = f"model.endpoint.model={served!r}", "model.endpoint.base_url=http://127.0.0.1:8000/v1"
    assert composed("model=endpoint", "method=base", *server).run_name == name


def test_matrix_is_the_same_in_schema_options_and_samples() -> None:
    assert list(MODALITY_NAMES) == [*MODALITIES, UNKNOWN]
    assert list(TASK_NAMES) == [*TASKS, UNKNOWN]
    assert list(MODALITY_NAMES) == [field.name for field in fields(Modalities)]
    assert list(TASK_NAMES) == [field.name for field in fields(Tasks)]
    assert GROUPS["modality"] == sorted(["all", *MODALITY_NAMES])
    assert GROUPS["task"] == sorted(["all", *TASK_NAMES])
    for group, names in {"modality": MODALITY_NAMES, "task": TASK_NAMES}.items():
        for option in GROUPS[group]:
            values = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
            assert values == dict.fromkeys(names if option == "all" else [option], True)


def test_frozen_config_reads_back_equal(composed: Compose, tmp_path: Path) -> None:
    config = composed("method=rarl", "modality=ct")
    configuration.write(config, tmp_path / "config.yaml")
    assert configuration.read(tmp_path / "config.yaml") == config


def test_frozen_config_of_before_there_was_a_group_reads_as_without_it(
    composed: Compose, tmp_path: Path
) -> None:
    path, config = tmp_path / "config.yaml", composed("method=sft")
    configuration.write(config, path)
    values = yaml.safe_load(path.read_text())
    for key in moved.ADDED:
        *above, name = key.split(".")
        del functools.reduce(dict.__getitem__, above, values)[name]
    path.write_text(yaml.dump(values, sort_keys=False))
    assert configuration.read(path) == config
    assert configuration.read(path).validation.name == "none"


@pytest.mark.parametrize(
    ("written", "edited", "words"),
    [
        ("checkpoint_steps: 50", "checkpoints: 50", ["runs.checkpoint_steps is missing"]),
        ("seed: 0\nsweep", "sweep", ["seed is missing"]),
        ("split: published", "spilt: published", ["data.split is missing"]),
        ("sweep: runs", "sweep: runs\nnew: 1", ["new is unknown"]),
        (
            "only_when: null",
            "when: null",
            ["reward.correct.when is unknown", "format.only_when is"],
        ),
        (
            "vision_cache_gb: 4.0",
            "features_gb: 4.0",
            ["rollout.features_gb is unknown (now rollout.vision_cache_gb)"],
        ),
    ],
)
def test_frozen_config_of_another_version_is_refused_by_name(
    composed: Compose, tmp_path: Path, written: str, edited: str, words: list[str]
) -> None:
    path = tmp_path / "config.yaml"
    configuration.write(composed(), path)
    assert written in path.read_text()
    path.write_text(path.read_text().replace(written, edited))
    with pytest.raises(ValueError, match=r"config\.yaml: another version of medreason") as caught:
        configuration.read(path)
    for word in (*words, "environment.json", "train and evaluate again"):
        assert word in str(caught.value)


def test_broken_frozen_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("method: {name: [")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        configuration.read(path)


def test_every_yaml_file_of_a_group_says_its_own_name() -> None:
    for group in (
        "model",
        "method",
        "prompt",
        "hardware",
        "rollout",
        "evaluation",
        "tracking",
    ):
        for path in (CONF / group).glob("*.yaml"):
            values = yaml.safe_load(path.read_text())
            assert values.get(group, values)["name"] == path.stem


def test_base_has_the_trl_keys_of_the_other_methods() -> None:
    keys = {
        method: set(yaml.safe_load((CONF / f"method/{method}.yaml").read_text())["trl"])
        for method in ("base", "sft", "grpo")
    }
    assert keys["base"] == keys["sft"] | keys["grpo"] > {"max_steps", "beta"}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--help"], 0, "method: base, grpo, rarl, released, sft"),
        (["--cfg", "job"], 0, "prompts_per_step"),
        (["-m", "method=sft,grpo", "--cfg", "job", "-p", "method"], 0, "name: sft"),
        (["method=gpro"], 1, "gpro"),
        (["method.nmae=grpo"], 1, "nmae"),
        (["action=plan", "+method.trl.lr=3"], 1, "did you mean method.trl.learning_rate?"),
        (["outputs=2026_11_27"], 1, """type both pairs of quotes: "outputs='2026_11_27'\""""),
        (["modality=xray,ct"], 1, "trained on all of them is modality=[xray,ct]"),
        (["modality=[xray,ct]", "--cfg", "job", "-p", "modality"], 0, "xray: true"),
        (["experiment=smoke/quick", "method=base,sft", "method.nmae=x"], 1, "nmae"),
    ],
)
def test_command_line_answers_fast_and_without_torch(
    tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    program = (
        f"import sys; sys.argv[1:] = {arguments!r}\n"
        "import atexit, time, medreason.cli\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'trl', 'datasets'}\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy & set(sys.modules))))\n"
        "atexit.register(lambda: print('\\nseconds:', time.process_time()))\n"
        "medreason.cli.main()"
    )
    seconds = []
    for _ in range(3):  # time of a core, and the least of it: what a busy machine changes little
        process = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == status
        assert words in process.stdout + process.stderr
        assert "heavy: []" in process.stdout
        seconds.append(float(process.stdout.partition("\nseconds: ")[2].split()[0]))
        if seconds[-1] < 1.5:
            return
    raise AssertionError(seconds)


def test_checkpoint_between_updates_of_one_rollout_is_refused(composed: Compose) -> None:
    twice = ("method=grpo", "method.trl.num_iterations=2")
    with pytest.raises(ValueError, match=r"runs.checkpoint_steps=5 .*checkpoint_steps=6"):
        composed(*twice, "runs.checkpoint_steps=5")
    composed(*twice, "runs.checkpoint_steps=6")
    longer = ("method=grpo", "hardware.per_device_prompts=1", "method.prompts_per_step=4")
    with pytest.raises(ValueError, match=r"checkpoint_steps=3 is not a multiple of 2"):
        composed(*longer, "+method.trl.steps_per_generation=8", "runs.checkpoint_steps=3")
    with pytest.raises(ValueError, match=r"num_iterations=0; it must be at least 1"):
        composed("method=grpo", "method.trl.num_iterations=0")


def test_dynamic_sampling_is_refused_where_ranks_sample_together(
    composed: Compose,
) -> None:
    with pytest.raises(ValueError, match=r"rollout\.dynamic_sampling=2: .*ddp"):
        composed("hardware=cpu_x2", "hardware.parallel=fsdp", "rollout.dynamic_sampling=2")


_REPRODUCTIONS = sorted(
    path
    for group in ("method", "adapter", "experiment/med_r1", "experiment/rarl")
    for path in (CONF / group).glob("*.yaml")
    if path.stem not in ("base", "released", "none") or "experiment" in path.parts
)
_STRUCTURE = re.compile(
    r"(name|algorithm|task_type|sweep|published|mode|path|defaults|method|training_set|task): .*"
)
"""Keys whose values name things, or say which runs a table is made of."""


@pytest.mark.parametrize("path", _REPRODUCTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_value_of_a_paper_says_where_it_comes_from(path: Path) -> None:
    """By a tag of experiments/med_r1/README.md on its line, or in a comment right above."""
    tag = re.compile(r"\[(code|abs|3rd|infer|ours)\]")
    above, untold = "", []
    for line in path.read_text().splitlines():
        text = line.strip()
        is_value = re.match(r"\w[\w.]*: [^ ]", text) and not _STRUCTURE.match(text)
        if is_value and not tag.search(text) and not tag.search(above):
            untold.append(text)
        above = text if text.startswith("#") else ""
    assert not untold
