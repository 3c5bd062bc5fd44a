"""The border between YAML and code: a typed schema of every group, and the rules between values.

Behind `load` nothing sees OmegaConf. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf

from medreason import replies
from medreason.config_actions import ASPECTS, Export, Judge, Predict, Rubric
from medreason.config_hardware import Hardware, Rollout
from medreason.config_rules import one_of, positive, subset
from medreason.samples import MODALITIES, TASKS

_HERE = Path(__file__).resolve().parent
CONF = _HERE / "conf" if (_HERE / "conf").exists() else _HERE.parent / "conf"
"""The configuration folder: inside an installed wheel, beside the package in a checkout."""

ACTIONS = (
    "train",
    "evaluate",
    "plan",
    "audit",
    "prepare",
    "report",
    "bench",
    "judge",
    "predict",
    "export",
)
METHODS = ("base", "sft", "grpo", "rarl")
STYLES = (*replies.STYLES, "free")
ANSWERS = ("generated", "likelihood")
CONTROLS = ("blank_image", "shuffled_image", "no_image", "permuted_options")


@dataclass
class Action:
    name: str = MISSING
    """What the command does: one module of `medreason/actions`."""

    def __post_init__(self) -> None:
        one_of("action.name", self.name, ACTIONS)


@dataclass
class Method:
    name: str = MISSING
    algorithm: str = MISSING
    """none, sft or grpo: the trainer. `rarl` is grpo with an adapter and other rewards."""
    prompts_per_step: int = MISSING
    """Questions in one optimizer step, over all devices and accumulation: part of the science."""
    target: str = "explanation"
    """What SFT imitates: `explanation` (reasoning, then answer, where there is one) or `answer`."""
    trl: dict[str, Any] = field(default_factory=dict)
    """Goes unchanged to trl.SFTConfig or trl.GRPOConfig."""

    def __post_init__(self) -> None:
        one_of("method.algorithm", self.algorithm, ("none", "sft", "grpo"))
        one_of("method.target", self.target, ("explanation", "answer"))
        positive("method.prompts_per_step", self.prompts_per_step)
        if self.algorithm == "grpo" and int(self.trl.get("num_generations") or 0) < 2:
            raise ValueError(
                f"method.trl.num_generations={self.trl.get('num_generations')}; a group needs "
                "at least 2 completions to be compared"
            )

    @property
    def num_generations(self) -> int:
        """Completions of one question; 1 where nothing is sampled."""
        return self.trl["num_generations"] if self.algorithm == "grpo" else 1


@dataclass
class Model:
    name: str = MISSING
    path: str = MISSING
    """A hub id, a local folder (a full model or a PEFT adapter), or `tiny` for the embedded one."""
    revision: str | None = None
    max_pixels: int | None = None
    """Larger images are scaled down to this many pixels; none keeps the checkpoint's own limit."""
    weights: str = "trained"
    """trained, or random: the architecture alone, for action=bench."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """With random weights: values that replace those of the checkpoint's config."""
    quantization: str = "none"
    """none, or nf4: the frozen weights of the language model in 4 bits, under an adapter."""

    def __post_init__(self) -> None:
        one_of("model.weights", self.weights, ("trained", "random"))
        one_of("model.quantization", self.quantization, ("none", "nf4"))
        if self.architecture and self.weights == "trained":
            raise ValueError("model.architecture changes the shapes; set model.weights=random")
        if self.max_pixels is not None:
            positive("model.max_pixels", self.max_pixels)


@dataclass
class Selection:
    """Which part of the matrix: `modality` or `task`."""

    name: str = MISSING
    members: list[str] = MISSING


@dataclass
class Prompt:
    name: str = MISSING
    style: str = MISSING
    """The form of reply that is asked for, which the format reward checks."""
    train: list[str] = MISSING
    """Templates with `{question}`; one is drawn for each sample and epoch."""
    evaluate: str = MISSING
    families: dict[str, list[str]] = field(default_factory=dict)
    """Diversity prompting: family -> its paraphrases."""
    diversity: bool = False
    """Draw the training prompt from `families` in place of `train`."""
    reasoning: str = ""
    """Reasoning prompting: asks for what is visible first."""
    reasoning_prompting: bool = False
    """Evaluate with `reasoning` in place of `evaluate`."""
    open: str = ""
    """The template of questions without options, in training and evaluation; empty: as above."""

    def __post_init__(self) -> None:
        one_of("prompt.style", self.style, STYLES)
        given = [*self.train, self.evaluate, *itertools.chain(*self.families.values())]
        for text in [*given, *filter(None, (self.reasoning, self.open))]:
            if "{question}" not in text:
                raise ValueError(
                    f"prompt: {text!r} has no {{question}}; the question would be lost"
                )
        if self.diversity and not all(self.families.values() or [[]]):
            raise ValueError(
                f"prompt.diversity=true: prompt={self.name} has no families to draw from, or one "
                "without a template; choose prompt=rarl or set prompt.diversity=false"
            )
        if self.reasoning_prompting and not self.reasoning:
            raise ValueError(
                f"prompt.reasoning_prompting=true: prompt={self.name} has no prompt.reasoning; "
                "choose prompt=rarl or set one"
            )

    @property
    def training(self) -> dict[str, list[str]]:
        """Family -> templates that training draws from; one family without diversity."""
        return self.families if self.diversity else {"single": self.train}

    @property
    def evaluation(self) -> str:
        """The template that evaluation asks."""
        return self.reasoning if self.reasoning_prompting else self.evaluate


@dataclass
class Handling:
    """The keys of `data` that all data sets share; the others go to the function at `_target_`."""

    split: str = "published"
    """published (files without one are split by_patient), by_image, by_patient, joint (rows in the
    tests of both published families), low_data (600 and 300 published rows of each modality)."""
    test_share: float = 0.3
    """Share of each cell that is tested on, where we split."""
    seed: int = 0
    """Of the split, of option orders and of what the data set draws itself."""
    options: str = "as_published"
    """as_published, shuffled (training questions, anew in each epoch), or normalised (letter case,
    trailing period)."""
    questions: str = "all"
    """all, closed (with options), or open."""
    images: str = "decode"
    """decode reads every image before anything else; none looks at the annotations only."""
    bad_rows: str = "error"
    """error stops at bad rows; skip goes on without them."""

    def __post_init__(self) -> None:
        one_of(
            "data.split", self.split, ("published", "by_image", "by_patient", "joint", "low_data")
        )
        one_of("data.options", self.options, ("as_published", "shuffled", "normalised"))
        one_of("data.questions", self.questions, ("all", "closed", "open"))
        one_of("data.images", self.images, ("decode", "none"))
        one_of("data.bad_rows", self.bad_rows, ("error", "skip"))
        if not 0 <= self.test_share <= 1:
            raise ValueError(f"data.test_share={self.test_share}; needs a number from 0 to 1")


@dataclass
class Reward:
    score: dict[str, Any] = field(default_factory=dict)
    """`_target_` of a function of medreason.scores and its settings."""
    judge: str | None = None
    """In place of a score: `reasoning` or `answer`, graded by the judge, over the scale's top."""
    weight: float = 1.0
    """0 logs the score without training on it."""
    only_when: str | None = None
    """A gate: another reward; where its score is below `at_least`, this one is 0."""
    at_least: float = 0.5

    def __post_init__(self) -> None:
        if bool(self.score) == bool(self.judge) or self.judge not in (None, *ASPECTS):
            raise ValueError(
                f"a reward with score={self.score} and judge={self.judge!r}; it takes one of them: "
                f"a score with _target_, or judge: {' or '.join(ASPECTS)}"
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(
                f"reward weight {self.weight} of {self.score or self.judge}; give a number of 0 or "
                "more: a penalty is a score from -1 to 0 under a positive weight"
            )


@dataclass
class Evaluation:
    name: str = MISSING
    modalities: list[str] = MISSING
    """Modalities to be tested on, whatever was trained on."""
    tasks: list[str] = MISSING
    samples_per_cell: int | None = None
    """At most this many questions of each cell, drawn by the seed; none takes all."""
    max_new_tokens: int = MISSING
    controls: list[str] = MISSING
    """Further passes over the same questions, of CONTROLS; `permuted_options`: one a rotation."""
    answers: list[str] = field(default_factory=lambda: ["generated"])
    """generated: a greedy reply, which is parsed. likelihood: the likeliest of the option letters
    right behind the prompt, without generation or parser. Both: the second is a figure beside."""
    encoder: str | None = None
    """A text encoder, folder or hub id: adds BERTScore of open answers and, by the meaning of both,
    the likeness of reasoning and reference explanation."""

    def __post_init__(self) -> None:
        subset("evaluation.modalities", self.modalities, MODALITIES)
        subset("evaluation.tasks", self.tasks, TASKS)
        subset("evaluation.controls", self.controls, CONTROLS)
        subset("evaluation.answers", self.answers, ANSWERS)
        positive("evaluation.max_new_tokens", self.max_new_tokens)
        if self.samples_per_cell is not None:
            positive("evaluation.samples_per_cell", self.samples_per_cell)


@dataclass
class Tracking:
    name: str = MISSING
    uri: str | None = None
    """MLflow's tracking URI; none keeps the run folders alone."""
    experiment: str = "medreason"
    images: int = 40
    """Predictions shown with their image in MLflow's table."""


@dataclass
class Prepare:
    size: int = 384
    """Side of the square images in pixels; 384 as in Med-R1."""
    fit: str = "stretch"
    """stretch to the square, as the authors of Med-R1 do, or pad with black."""
    folder: str | None = None
    """Where to write; none writes to `<outputs>/prepared/<data>-<size>-<fit>`."""
    processes: int | None = None
    """None takes a process for each core."""

    def __post_init__(self) -> None:
        positive("prepare.size", self.size)
        one_of("prepare.fit", self.fit, ("stretch", "pad"))
        if self.processes is not None:
            positive("prepare.processes", self.processes)


@dataclass
class Runs:
    sync: bool = False
    """action=report: first rebuild MLflow's runs from the run folders."""
    retry_failed: bool = True
    """Run a cell again that failed before."""
    show_table: bool = True
    """Print the table of runs when a sweep ends."""
    checkpoint_steps: int = 50
    """Optimizer steps between checkpoints."""

    def __post_init__(self) -> None:
        positive("runs.checkpoint_steps", self.checkpoint_steps)


@dataclass
class Bench:
    """What action=bench measures."""

    what: str = "speed"
    """speed: grouped GRPO against stock TRL; memory: a step of the longest samples, estimate
    against measurement."""

    tokens: list[int] = field(default_factory=lambda: [16, 128])
    """Lengths of the completions."""
    repeats: int = 5
    """Measurements of each stage and length behind one warm-up; the median counts."""
    image_size: int = 384
    """Images are stretched to squares of so many pixels a side."""

    def __post_init__(self) -> None:
        one_of("bench.what", self.what, ("speed", "memory"))
        for tokens in self.tokens:
            positive("bench.tokens", tokens)
        positive("bench.repeats", self.repeats)
        positive("bench.image_size", self.image_size)


@dataclass
class Config:
    action: Action = MISSING
    method: Method = MISSING
    model: Model = MISSING
    data: dict[str, Any] = field(default_factory=lambda: asdict(Handling()))
    """`_target_` of a data set's `read` and its arguments, and the keys of Handling."""
    modality: Selection = MISSING
    task: Selection = MISSING
    prompt: Prompt = MISSING
    reward: dict[str, Reward] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    """Goes unchanged to peft.LoraConfig; empty trains all weights."""
    hardware: Hardware = MISSING
    rollout: Rollout = field(default_factory=lambda: Rollout("hf"))
    """The default is for run folders that are older than this choice."""
    evaluation: Evaluation = MISSING
    tracking: Tracking = MISSING
    runs: Runs = field(default_factory=Runs)
    prepare: Prepare = field(default_factory=Prepare)
    bench: Bench = field(default_factory=Bench)
    judge: Judge = field(default_factory=Judge)
    second_judge: Judge = field(default_factory=Judge)
    """Grades the same replies; the agreement of the two is reported."""
    rubric: Rubric = field(default_factory=Rubric)
    predict: Predict = field(default_factory=Predict)
    export: Export = field(default_factory=Export)
    seed: int = 0
    sweep: str = "runs"
    """Groups runs: reports and MLflow parents are made for one sweep."""
    outputs: str = "outputs"
    """Where runs, sweeps, caches and the MLflow database lie."""
    choices: dict[str, str] = field(default_factory=dict)
    """Group -> option as chosen on the command line: labels for readers, in no key."""

    def __post_init__(self) -> None:
        subset("modality.members", self.modality.members, MODALITIES)
        subset("task.members", self.task.members, TASKS)
        _bind("data", handling(self.data)[1])
        for name, reward in self.reward.items():
            if reward.judge:
                self.rubric.check(reward.judge)
            else:
                _bind(f"reward.{name}.score", reward.score, given=2)
            if reward.judge and self.judge.kind == "none" and self.method.algorithm == "grpo":
                raise ValueError(
                    f"reward.{name}.judge={reward.judge!r} needs a judge; choose judge=openai or "
                    "judge=local"
                )
            if self.method.algorithm == "grpo" and reward.score.get("style") == "free":
                raise ValueError(
                    f"reward.{name}.score.style='free': prompt={self.prompt.name} asks for no "
                    f"form; drop it with ~reward.{name} or choose another prompt"
                )
            others = [o for o, its in self.reward.items() if o != name and its.score]
            if reward.only_when is not None and reward.only_when not in others:
                raise ValueError(
                    f"reward.{name}.only_when={reward.only_when!r}; give another reward with "
                    f"a score ({', '.join(others)}), or null for no gate"
                )
        if self.method.algorithm == "grpo" and not any(r.weight for r in self.reward.values()):
            raise ValueError(
                f"method={self.method.name} needs a reward with a weight; reward has "
                f"{ {name: r.weight for name, r in self.reward.items()} }. "
                "Choose reward=med_r1 or set a weight"
            )
        if (
            self.method.algorithm == "grpo"
            and self.hardware.attention == "flash_attention_2"
            and (self.rollout.name, self.rollout.fallback) == ("grouped", "error")
        ):
            raise ValueError(
                "hardware.attention='flash_attention_2' takes no mask that lets completions share "
                "a prompt; set hardware.attention=sdpa, rollout=hf or rollout.fallback=plain"
            )
        if self.rollout.flex_attention and self.hardware.accelerator != "cuda":
            raise ValueError(
                "rollout.flex_attention=true has no backward on a CPU, and hardware="
                f"{self.hardware.name} is one; set rollout.flex_attention=false"
            )
        if self.rollout.flex_attention and self.hardware.attention != "sdpa":
            raise ValueError(
                "rollout.flex_attention=true takes the place of sdpa alone, and "
                f"hardware.attention={self.hardware.attention!r}; set hardware.attention=sdpa, or "
                "rollout.flex_attention=false"
            )
        if self.hardware.parallel == "fsdp" and self.rollout.dynamic_sampling:
            raise ValueError(
                f"rollout.dynamic_sampling={self.rollout.dynamic_sampling}: with "
                "hardware.parallel=fsdp all processes draw equally often, and each has its own "
                "questions to draw again; set it to 0, or hardware.parallel=ddp"
            )
        if self.method.algorithm == "grpo" and self.rollout.name == "vllm":
            self._check_vllm()
        if self.model.weights == "random" and self.action.name not in ("bench", "plan"):
            raise ValueError("model.weights=random is for action=bench; nothing is learned from it")
        if self.model.quantization != "none":
            self._check_quantized()
        if self.method.algorithm != "none":
            self.accumulation  # noqa: B018  refuses what hardware cannot split
        if self.method.algorithm == "grpo":
            self._check_iterations()

    def _check_iterations(self) -> None:
        iterations = self.method.trl.get("num_iterations", 1)
        batches = self.method.trl.get("steps_per_generation") or self.accumulation
        positive("method.trl.num_iterations", iterations)
        positive("method.trl.steps_per_generation", batches)
        updates = math.ceil(iterations * batches / self.accumulation)
        if self.runs.checkpoint_steps % updates:
            raise ValueError(
                f"runs.checkpoint_steps={self.runs.checkpoint_steps} is not a multiple of {updates}"
                f", the updates on the same completions (method.trl.num_iterations={iterations}): "
                "TRL would draw again for those behind a checkpoint in between; set "
                f"runs.checkpoint_steps={-(-self.runs.checkpoint_steps // updates) * updates}"
            )

    def _check_vllm(self) -> None:
        if self.hardware.accelerator != "cuda":
            raise ValueError(
                f"rollout=vllm runs on CUDA alone, and hardware={self.hardware.name} is a CPU; "
                "choose rollout=grouped"
            )
        if self.model.quantization != "none":
            raise ValueError(
                f"rollout=vllm takes whole weights, and model.quantization="
                f"{self.model.quantization!r}; choose rollout=grouped or adapter=lora_all"
            )

    def _check_quantized(self) -> None:
        named = f"model.quantization={self.model.quantization!r}"
        if self.method.algorithm != "none" and not self.adapter:
            raise ValueError(
                f"{named} freezes the weights, so method={self.method.name} needs an adapter to "
                "train; choose adapter=qlora or set model.quantization=none"
            )
        if self.hardware.parallel != "ddp":
            raise ValueError(
                f"{named} does not go with hardware.parallel={self.hardware.parallel!r}: weights "
                "in 4 bits are not cut over devices; set hardware.parallel=ddp"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches a device runs for one optimizer step."""
        devices = self.hardware.processes
        share = devices * self.hardware.per_device_prompts
        prompts = self.method.prompts_per_step
        if prompts % share:
            nodes = "hardware.nodes * " if self.hardware.nodes > 1 else ""
            raise ValueError(
                f"method.prompts_per_step={prompts} is not a multiple of {nodes}hardware.devices * "
                f"hardware.per_device_prompts = {devices} * "
                f"{self.hardware.per_device_prompts} = {share}; "
                f"{_splits(prompts, devices, share)}"
            )
        return prompts // share

    @property
    def run_name(self) -> str:
        """For readers; the key beside it tells runs apart."""
        cell = [] if self.method.algorithm == "none" else [self.modality.name, self.task.name]
        return "-".join([self.method.name, self.model.name, *cell])

    @property
    def folder(self) -> Path:
        return Path(self.outputs)


def load(composed: DictConfig, choices: dict[str, str] | None = None) -> Config:
    """The typed configuration of a composed one.

    Raises:
        ValueError: a value is missing or breaks a rule; the message names key, value and remedy.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ValueError(f"{missing[0]} has no value; set {missing[0]}=... on the command line")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    config.choices = dict(choices or config.choices)
    return config


def read(path: Path) -> Config:
    """The configuration frozen in a run folder."""
    try:
        frozen = OmegaConf.load(path)
        return load(OmegaConf.merge(OmegaConf.structured(Config), frozen))  # pyright: ignore[reportArgumentType]
    except (yaml.YAMLError, OSError) as error:
        raise ValueError(f"{path}: not a readable configuration ({error})") from error


def write(config: Config, path: Path) -> None:
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True, width=100))


def handling(data: dict[str, Any]) -> tuple[Handling, dict[str, Any]]:
    """The keys of `data` that all data sets share, and the rest: what its function is called with.

    Raises:
        ValueError: a shared key has a value it does not know.
    """
    shared = [f.name for f in fields(Handling)]
    rest = {key: value for key, value in data.items() if key not in shared}
    return Handling(**{key: value for key, value in data.items() if key in shared}), rest


def call(spec: dict[str, Any], *given: object, **more: object) -> Any:  # noqa: ANN401
    """What the function at `_target_` returns for `given`, the settings of the spec and `more`."""
    settings = {key: value for key, value in spec.items() if not key.startswith("_")}
    return target(spec["_target_"])(*given, **settings, **more)


def target(path: str) -> Any:  # noqa: ANN401
    """The function at a dotted path."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"_target_={path!r} is not a function that can be imported: {error}"
        ) from error


def _bind(key: str, spec: dict[str, Any], given: int = 0) -> None:
    """Refuse settings the function does not take; `given` are its positional arguments."""
    function = target(spec["_target_"])
    parameters = list(inspect.signature(function).parameters.values())[given:]
    known = [p.name for p in parameters]
    for name in spec:
        if not name.startswith("_") and name not in known:
            raise ValueError(f"{key}.{name} is unknown to {spec['_target_']}; it takes {known}")
    shared = {"cache", *(f.name for f in fields(Handling))}  # `data` gives these to its function
    required = [p.name for p in parameters if p.default is p.empty and p.name not in shared]
    for name in required:
        if spec.get(name) is None:
            raise ValueError(f"{key}.{name} has no value; set {key}.{name}=... on the command line")


def _splits(prompts: int, devices: int, share: int) -> str:
    """What would work: per-device prompts for this step size, step sizes for this hardware."""
    lower = prompts // share * share
    steps = [str(n) for n in (lower, lower + share) if n]
    fitting = [n for n in range(1, prompts + 1) if prompts % (devices * n) == 0]
    per_device = f"hardware.per_device_prompts={fitting[-1]} or " if fitting else ""
    return f"{per_device}method.prompts_per_step={' or '.join(steps)} would work"
