"""The typed schema of every group of `conf/`. Rules between groups are in `checks`."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from medreason import replies
from medreason.config import checks
from medreason.config.data import Handling
from medreason.config.hardware import Hardware, Rollout
from medreason.config.judge import ASPECTS, Judge, Rubric
from medreason.config.rules import one_of, positive, subset
from medreason.samples import MODALITIES, TASKS

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
ANSWERS = ("generated", "option_likelihood")
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
class Reward:
    score: dict[str, Any] = field(default_factory=dict)
    """`_target_` of a function of medreason.rewards.answer and its settings."""
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
    """generated: a greedy reply, which is parsed. option_likelihood: the
    likeliest of the option letters
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
    resync: bool = False
    """action=report: first rebuild MLflow's runs from the run folders."""


@dataclass
class Prepare:
    size: int = 384
    """Side of the square images in pixels; 384 as in Med-R1."""
    resize: str = "stretch"
    """stretch to the square, as the authors of Med-R1 do, or pad with black."""
    folder: str | None = None
    """Where to write; none writes to `<outputs>/prepared/<data>-<size>-<resize>`."""
    processes: int | None = None
    """None takes a process for each core."""

    def __post_init__(self) -> None:
        positive("prepare.size", self.size)
        one_of("prepare.resize", self.resize, ("stretch", "pad"))
        if self.processes is not None:
            positive("prepare.processes", self.processes)


@dataclass
class Runs:
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
class Predict:
    """What action=predict is asked."""

    image: str | None = None
    """One image (path, file://, data URL or http(s) URL), or the folder that `questions` names
    images below; a questions file may name them in any of these forms, too."""
    question: str | None = None
    """May hold its options as `Which? A)CT, B)MRI`; without options it is an open question."""
    questions: str | None = None
    """A JSON file: a list of {"image", "question"} in place of one question."""
    output: str | None = None
    """A JSON file for the answers; none prints them alone."""


@dataclass
class Export:
    """What action=export writes."""

    to: str | None = None
    """A folder that does not exist yet."""
    adapter_only: bool = False
    """The adapter as it is in place of merged weights."""
    precision: str = "bfloat16"
    """Of the merged weights: float32 or bfloat16."""

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"export.precision={self.precision!r}; known: 'float32', 'bfloat16'")


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
    rollout: Rollout = MISSING
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
        for check in checks.ALL:
            check(self)

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


def _splits(prompts: int, devices: int, share: int) -> str:
    """What would work: per-device prompts for this step size, step sizes for this hardware."""
    lower = prompts // share * share
    steps = [str(n) for n in (lower, lower + share) if n]
    fitting = [n for n in range(1, prompts + 1) if prompts % (devices * n) == 0]
    per_device = f"hardware.per_device_prompts={fitting[-1]} or " if fitting else ""
    return f"{per_device}method.prompts_per_step={' or '.join(steps)} would work"
