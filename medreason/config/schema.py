"""The typed schema of the groups of `conf/`. Rules between groups are in `checks`."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from medreason import replies
from medreason.config import checks
from medreason.config.data import Handling
from medreason.config.endpoint import ServedModel
from medreason.config.hardware import PRECISIONS, Hardware, Rollout
from medreason.config.judge import ASPECTS, Judge, Rubric
from medreason.config.rules import allowed_draft_tokens, one_of, positive, subset
from medreason.samples import MODALITY_NAMES, TASK_NAMES

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
    "rehearse",
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
    """Questions in one optimizer step, over all devices and micro-batches. Unlike their split over
    devices, it decides the result."""
    target: str = "explanation"
    """What SFT imitates: `explanation` (reasoning and answer, where a sample has an explanation),
    `answer`, or `med_r1_parity` (what Med-R1's SFT trains on, with its defect)."""
    trl: dict[str, Any] = field(default_factory=dict)
    """Goes unchanged to trl.SFTConfig or trl.GRPOConfig."""

    def __post_init__(self) -> None:
        one_of("method.algorithm", self.algorithm, ("none", "sft", "grpo"))
        one_of("method.target", self.target, ("explanation", "answer", "med_r1_parity"))
        positive("method.prompts_per_step", self.prompts_per_step)
        if self.algorithm == "grpo" and int(self.trl.get("num_generations") or 0) < 2:
            raise ValueError(
                f"method.trl.num_generations={self.trl.get('num_generations')}; a group needs "
                "at least 2 completions"
            )

    @property
    def num_generations(self) -> int:
        """Completions of one question; 1 where nothing is sampled."""
        return self.trl["num_generations"] if self.algorithm == "grpo" else 1


@dataclass
class Model:
    name: str = MISSING
    path: str = MISSING
    """A hub id, a folder (all weights or a PEFT adapter), or `tiny`, the model in this package. Of
    a served model what it is meant to be, where that is known: its processor counts the tokens."""
    revision: str | None = None
    max_pixels: int | None = None
    """Larger images are scaled down to this many pixels; null keeps the checkpoint's own limit."""
    weights: str = "trained"
    """trained, or random: the architecture with random weights, for action=bench."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """With random weights: values that replace those of the checkpoint's config.json."""
    quantization: str = "none"
    """none, or nf4: the language model's weights frozen in 4 bits, under an adapter (QLoRA)."""
    endpoint: ServedModel = field(default_factory=ServedModel)
    """With a base_url: the server that answers in place of weights."""

    def __post_init__(self) -> None:
        if not self.path and not self.is_served and self.name != "endpoint":
            raise ValueError(
                "model.path=''; give a hub id, a folder of weights or of a finished run, or leave "
                "it out for the start model of model=..."
            )
        one_of("model.weights", self.weights, ("trained", "random"))
        one_of("model.quantization", self.quantization, ("none", "nf4"))
        if self.architecture and self.weights == "trained":
            raise ValueError("model.architecture changes the shapes; set model.weights=random")
        if self.max_pixels is not None:
            positive("model.max_pixels", self.max_pixels)

    @property
    def is_served(self) -> bool:
        """Whether a server answers, and no weights are loaded."""
        return bool(self.endpoint.base_url)

    @property
    def label(self) -> str:
        """For tables and folders: the name; of a served model the one it has there."""
        return self.endpoint.model if self.is_served else self.name


@dataclass
class Selection:
    """What to train on: a key for each modality, or for each task, true where it is chosen. The
    options are such keys, so a list of options is their union."""

    @property
    def members(self) -> list[str]:
        """Those chosen, in the order of the matrix."""
        return [field.name for field in fields(self) if getattr(self, field.name)]

    @property
    def name(self) -> str:
        """`ct`, `ct+xray` or `all`."""
        return "all" if len(self.members) == len(fields(self)) else "+".join(self.members)


@dataclass
class Modalities(Selection):
    ct: bool = False
    mri: bool = False
    xray: bool = False
    ultrasound: bool = False
    dermoscopy: bool = False
    fundus: bool = False
    oct: bool = False
    microscopy: bool = False
    unknown: bool = False
    """Rows whose release does not say their modality."""


@dataclass
class Tasks(Selection):
    anatomy: bool = False
    disease: bool = False
    grading: bool = False
    modality_recognition: bool = False
    attributes: bool = False
    unknown: bool = False
    """Rows whose release does not say their question type."""


_FIELD = re.compile(r"(?<![\w\\{}])\{(\w+)\}(?!\})")
"""Of a template; not what LaTeX and JSON have in braces."""


@dataclass
class Prompt:
    name: str = MISSING
    style: str = MISSING
    """The format of reply that the templates ask for and the format reward checks."""
    train: list[str] = MISSING
    """Templates with `{question}`; training chooses one at random for each sample and epoch."""
    evaluate: str = MISSING
    """The template for evaluation."""
    families: dict[str, list[str]] = field(default_factory=dict)
    """Diversity prompting: family -> its paraphrases."""
    diversity: bool = False
    """Train on the templates of `families` in place of `train`."""
    reasoning: str = ""
    """Reasoning prompting: a template that first asks for what is visible."""
    reasoning_prompting: bool = False
    """Evaluate with `reasoning` in place of `evaluate`."""
    open: str = ""
    """The template for questions without options, in training and evaluation; empty uses the
    templates above."""

    def __post_init__(self) -> None:
        one_of("prompt.style", self.style, STYLES)
        if not self.train:
            raise ValueError(
                f"prompt.train is empty: prompt={self.name} has no template to train on; name one "
                "with {question}, or choose prompt=think"
            )
        required = [*self.train, self.evaluate, *itertools.chain(*self.families.values())]
        for text in [*required, *filter(None, (self.reasoning, self.open))]:
            if "{question}" not in text:
                raise ValueError(
                    f"prompt: {text!r} has no {{question}}; the question would be lost"
                )
            if others := [name for name in _FIELD.findall(text) if name != "question"]:
                raise ValueError(
                    f"prompt: {text!r} has {{{others[0]}}}, which nothing replaces; the one field "
                    "of a prompt is {question}, the question with its options"
                )
        if self.diversity and not all(self.families.values() or [[]]):
            raise ValueError(
                f"prompt.diversity=true: prompt={self.name} has no families, or one "
                "without a template; choose prompt=rarl or set prompt.diversity=false"
            )
        if self.reasoning_prompting and not self.reasoning:
            raise ValueError(
                f"prompt.reasoning_prompting=true: prompt={self.name} has no prompt.reasoning; "
                "choose prompt=rarl or set one"
            )

    @property
    def training(self) -> dict[str, list[str]]:
        """Family -> templates for training; one family without diversity."""
        return self.families if self.diversity else {"single": self.train}

    @property
    def evaluation(self) -> str:
        """The template for evaluation, after `reasoning_prompting`."""
        return self.reasoning if self.reasoning_prompting else self.evaluate


@dataclass
class Reward:
    score: dict[str, Any] = field(default_factory=dict)
    """`_target_` of a function, of `medreason.rewards` or your own, and its settings."""
    judge: str | None = None
    """In place of a score: `reasoning` or `answer`, graded by the judge and divided by the top
    score of its scale."""
    weight: float = 1.0
    """0 logs the score without training on it."""
    only_when: str | None = None
    """A gate: where the score of this other reward is below `at_least`, the reward is 0."""
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
    """Modalities to test on, whatever was trained on."""
    tasks: list[str] = MISSING
    samples_per_cell: int | None = None
    """At most this many questions of each cell, a random sample by the seed; null takes all."""
    max_new_tokens: int = MISSING
    controls: list[str] = MISSING
    """Controls, each a further pass over the same questions; permuted_options is one pass for each
    rotation of the options."""
    answers: list[str] = field(default_factory=lambda: ["generated"])
    """generated (a greedy reply, parsed), option_likelihood (the option letter with the highest
    probability right after the prompt: nothing is generated or parsed), or both, where the second
    is a metric beside the first."""
    engine: str = "generate"
    """What decodes: generate (this package, image and prompt once a question), vllm (vLLM
    offline, on one device; an extra) or endpoint (the server of model=endpoint)."""
    draft_tokens: str = "auto"
    """As `rollout.draft_tokens`, of the answers to test and validation questions."""
    encoder: str | None = None
    """A text encoder, a folder or a hub id: adds BERTScore of open answers, and the cosine
    similarity of reasoning and reference explanation."""

    def __post_init__(self) -> None:
        subset("evaluation.modalities", self.modalities, MODALITY_NAMES)
        subset("evaluation.tasks", self.tasks, TASK_NAMES)
        subset("evaluation.controls", self.controls, CONTROLS)
        subset("evaluation.answers", self.answers, ANSWERS)
        one_of("evaluation.engine", self.engine, ("generate", "vllm", "endpoint"))
        positive("evaluation.max_new_tokens", self.max_new_tokens)
        allowed_draft_tokens("evaluation.draft_tokens", self.draft_tokens)
        if self.draft_tokens not in ("auto", "0") and self.engine != "generate":
            raise ValueError(
                f"evaluation.draft_tokens={self.draft_tokens} needs evaluation.engine=generate; "
                f"{self.engine} decodes without our drafts, so set evaluation.draft_tokens=auto"
            )
        if self.samples_per_cell is not None:
            positive("evaluation.samples_per_cell", self.samples_per_cell)


@dataclass
class Validation:
    """Questions that choose a step, a value or a prompt, so that the test need not. They are asked
    in the wording of evaluation, and no test question is among them."""

    name: str = "none"
    """none, in_domain (questions of the cells that are trained on), or transfer (those, and as many
    of the other cells)."""
    source: str = "train"
    """train holds rows back from training; published takes the validation files of the data set."""
    share: float = 0.1
    """Share of each cell's training rows that is held back."""
    seed: int = 0
    """Of the rows that are held back, and of the questions that are asked."""
    questions: int = 240
    """At most this many in-domain questions are asked, and as many of the other cells."""
    every: str | None = None
    """Updates between validations; auto is 25, or a fifth of a run of fewer than 125; null holds
    rows back and asks nothing while it trains."""
    controls: list[str] = field(default_factory=lambda: ["blank_image"])
    """Of `evaluation.controls`: each is a further pass over the questions."""
    max_new_tokens: int = 256
    """Of a validation's answers. Apart from evaluation's, so that evaluating a run in another way
    does not train it again."""
    select: str = "last"
    """The step whose weights are kept: last, or best (the highest in-domain accuracy; of equal ones
    the earlier)."""
    patience: int | None = None
    """Training stops after so many validations in a row without a higher accuracy."""

    def __post_init__(self) -> None:
        one_of("validation.name", self.name, ("none", "in_domain", "transfer"))
        one_of("validation.source", self.source, ("train", "published"))
        one_of("validation.select", self.select, ("last", "best"))
        subset("validation.controls", self.controls, CONTROLS)
        if not 0 < self.share < 1:
            raise ValueError(f"validation.share={self.share}; needs a number between 0 and 1")
        if self.seed < 0:
            raise ValueError(f"validation.seed={self.seed}; give 0 or more")
        for name in ("questions", "max_new_tokens", "patience"):
            if (value := getattr(self, name)) is not None:
                positive(f"validation.{name}", value)
        if self.every not in (None, "auto") and not self.given_every:
            raise ValueError(
                f"validation.every={self.every}; give a number of updates, 1 or more, auto, or null"
            )
        self._refuse_choice_without_validation()

    def _refuse_choice_without_validation(self) -> None:
        without = {"select": "last", "patience": None}
        for name, value in without.items():
            if getattr(self, name) == value:
                continue
            key = f"validation.{name}={getattr(self, name)!r}"
            if self.name == "none":
                raise ValueError(
                    f"{key} needs in-domain validation questions, and validation=none has none; "
                    f"choose validation=in_domain, or set validation.{name}={value or 'null'}"
                )
            if self.every is None:
                raise ValueError(
                    f"{key} needs validations while it trains; set validation.every to the number "
                    "of updates between two, or auto"
                )
        if self.name == "none" and self.every is not None:
            raise ValueError(
                f"validation.every={self.every}: validation=none has no questions to ask; choose "
                "validation=in_domain"
            )

    @property
    def is_on(self) -> bool:
        """Whether there is a third side beside train and test."""
        return self.name != "none"

    @property
    def given_every(self) -> int | None:
        """Updates between validations as typed; None of auto, whose number the length of a run
        decides (`Config.validated_every`), and where nothing is asked."""
        return int(self.every) if str(self.every).isdecimal() else None  # pyright: ignore[reportArgumentType]

    @property
    def identity(self) -> dict[str, Any]:
        """Its values as keys of runs have them, in which a number of updates is a number."""
        return {**asdict(self), "every": self.given_every or self.every}

    @property
    def makes_checkpoints(self) -> bool:
        """Whether a validation can end in a checkpoint: of the best step, or of the last one."""
        return self.select == "best" or self.patience is not None


_MLFLOW_SCHEMES = "sqlite", "http", "https", "postgresql", "mysql", "mssql", "file", "databricks"


@dataclass
class Tracking:
    name: str = MISSING
    uri: str | None = None
    """MLflow's tracking URI; null writes run folders alone."""
    experiment: str = "medreason"
    images: int = 40
    """Predictions shown with their image in MLflow's table."""
    resync: bool = False
    """action=report: send all run folders of the sweep to MLflow again first."""

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"tracking.images={self.images}; give 0 or more")
        if not self.experiment.strip():
            raise ValueError(f"tracking.experiment={self.experiment!r}; give it a name")
        scheme, separator, _ = (self.uri or "").partition("://")
        if not separator or scheme.partition("+")[0] in _MLFLOW_SCHEMES:
            return
        plugins = {point.name for point in entry_points(group="mlflow.tracking_store")}
        if scheme not in plugins:
            known = ", ".join(f"{name}://..." for name in (*_MLFLOW_SCHEMES, *sorted(plugins)))
            raise ValueError(
                f"tracking.uri={self.uri}: MLflow knows no {scheme}://; give {known}, install "
                "MLflow's plugin for it, or set tracking=none"
            )


@dataclass
class Prepare:
    size: int = 384
    """Side of the square images in pixels; 384 as in Med-R1."""
    resize: str = "stretch"
    """stretch to the square, as the authors of Med-R1 do, or pad with black."""
    folder: str | None = None
    """Where to write; null writes to `<outputs>/prepared/<data>-<size>-<resize>`."""
    processes: int | None = None
    """Null starts a process for each core."""
    save_to_disk: bool = False
    """Also write `saved/` in the folder: a `datasets.save_to_disk` with the columns of R1-V and
    Med-R1, image, problem and solution."""

    def __post_init__(self) -> None:
        positive("prepare.size", self.size)
        one_of("prepare.resize", self.resize, ("stretch", "pad"))
        if self.processes is not None:
            positive("prepare.processes", self.processes)


@dataclass
class Runs:
    retry_failed: bool = True
    """Run a cell again if it failed before."""
    show_table: bool = True
    """Print the table of runs when a sweep ends."""
    checkpoint_steps: int = 50
    """Optimizer steps between checkpoints."""
    grace_seconds: int = 300
    """In which a training that Ctrl-C, SIGTERM or SIGHUP (a closed terminal) stops ends its update
    and writes a checkpoint; a second Ctrl-C does not wait for it. 0 stops it at once."""
    test: bool = True
    """Evaluate on the test split after training. A search sets it false for its trials, of which it
    tests the chosen one alone."""

    def __post_init__(self) -> None:
        positive("runs.checkpoint_steps", self.checkpoint_steps)
        if self.grace_seconds < 0:
            raise ValueError(f"runs.grace_seconds={self.grace_seconds}; give 0 or more")


@dataclass
class Statistics:
    """How results are averaged and tested, wherever they are shown. In no key: it changes no run,
    and the same answers are shown anew under other values."""

    clusters: str = "patient"
    """What is independent of each other: patient (where a row names none, its image by content),
    image or question."""
    average: str = "questions"
    """A mean is over questions, each with the same weight, or over cells, each with the same."""
    difference: float = 5.0
    """Percent points: for which plan and report say how many questions a paired test needs."""
    discordance: float = 0.3
    """Share of questions that one of two models answers right and the other wrong, assumed where
    no answers were seen."""
    correlation: float = 0.2
    """Of the answers within a cluster, assumed where no answers were seen."""

    def __post_init__(self) -> None:
        one_of("statistics.clusters", self.clusters, ("patient", "image", "question"))
        one_of("statistics.average", self.average, ("questions", "cells"))
        if not 0 < self.difference <= 100:
            raise ValueError(
                f"statistics.difference={self.difference}; needs percent points, above 0 and at "
                "most 100"
            )
        if not 0 < self.discordance <= 1:
            raise ValueError(
                f"statistics.discordance={self.discordance}; needs a share above 0, at most 1"
            )
        if not 0 <= self.correlation <= 1:
            raise ValueError(
                f"statistics.correlation={self.correlation}; needs a number from 0 to 1"
            )


@dataclass
class Report:
    """What a report shows besides the runs. In no key."""

    published: str | None = None
    """A CSV file of published numbers, shown beside ours: a path from here, or from the folder that
    holds `conf/`. A recipe names that of its paper."""


@dataclass
class Bench:
    """What action=bench measures."""

    what: str = "speed"
    """speed (grouped GRPO against TRL's own), drafts (decoding with drafts against plain decoding)
    or memory (one step of the longest samples: estimate against measurement)."""
    tokens: list[int] = field(default_factory=lambda: [16, 128])
    """Lengths of the completions."""
    repeats: int = 5
    """Measurements of each stage and length after one warm-up; their median is reported."""
    image_size: int = 384
    """Side of the square that images are stretched to, in pixels."""
    replies: str | None = None
    """A predictions.parquet of the start model, whose replies are the drafts of the evaluation that
    bench.what=drafts measures."""

    def __post_init__(self) -> None:
        one_of("bench.what", self.what, ("speed", "drafts", "memory"))
        if not self.tokens:
            raise ValueError("bench.tokens is empty; name a length, such as bench.tokens=[16,128]")
        for tokens in self.tokens:
            positive("bench.tokens", tokens)
        positive("bench.repeats", self.repeats)
        positive("bench.image_size", self.image_size)


@dataclass
class Predict:
    """What action=predict answers."""

    image: str | None = None
    """An image (path, file://, data URL or http(s) URL), a folder of images, of which each is asked
    about, or the folder that paths in `questions` start from, by default that of the file. CT in
    DICOM is shown in `data.window`, which has to be that of the model's training."""
    question: str | None = None
    """With its options, as in `Which? A)CT, B)MRI`, or an open question without."""
    questions: str | None = None
    """In place of one question: a table (.csv, .tsv, .parquet) with the columns of a training, or a
    list (.json, .jsonl) of {"image", "question", "options"}."""
    output: str | None = None
    """A file to write the answers to, in the format of its suffix: .csv, .tsv, .json, .jsonl or
    .parquet; null prints them only."""


@dataclass
class Export:
    """What action=export writes."""

    to: str | None = None
    """A folder that does not exist yet."""
    adapter_only: bool = False
    """Write the adapter alone, not merged into its base."""
    precision: str | None = None
    """Of the merged weights: float32 or bfloat16. Null: the one in which the run was evaluated; of
    a model outside a run folder that of its config.json, else `hardware.precision`."""
    layout: str = "since_4_52"
    """Names of an adapter's layers: those of transformers since 4.52 or `before_4_52`. Merged
    weights are laid out as the published checkpoints are, which 4.49 and every later version opens.
    """

    def __post_init__(self) -> None:
        if self.precision is not None:
            one_of("export.precision", self.precision, PRECISIONS)
        one_of("export.layout", self.layout, ("since_4_52", "before_4_52"))


@dataclass
class Config:
    action: Action = MISSING
    method: Method = MISSING
    model: Model = MISSING
    data: dict[str, Any] = field(default_factory=lambda: asdict(Handling()))
    """The keys of Handling, `_target_` of the function that reads a data set, and its settings."""
    modality: Modalities = field(default_factory=Modalities)
    task: Tasks = field(default_factory=Tasks)
    prompt: Prompt = MISSING
    reward: dict[str, Reward] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    """Goes unchanged to peft.LoraConfig; empty trains all parameters."""
    hardware: Hardware = MISSING
    rollout: Rollout = MISSING
    evaluation: Evaluation = MISSING
    validation: Validation = field(default_factory=Validation)
    tracking: Tracking = MISSING
    runs: Runs = field(default_factory=Runs)
    statistics: Statistics = field(default_factory=Statistics)
    report: Report = field(default_factory=Report)
    prepare: Prepare = field(default_factory=Prepare)
    bench: Bench = field(default_factory=Bench)
    judge: Judge = field(default_factory=Judge)
    second_judge: Judge = field(default_factory=Judge)
    """Grades the same replies; the agreement of both judges (weighted kappa) is reported."""
    rubric: Rubric = field(default_factory=Rubric)
    predict: Predict = field(default_factory=Predict)
    export: Export = field(default_factory=Export)
    seed: int = 0
    sweep: str = "runs"
    """Name of a group of runs, which a report and a parent run in MLflow compare; a report takes
    several, as `sweep=a,b`."""
    training_set: str = ""
    """Which of Med-R1's 13 training sets an option of that group chooses, by the name that its
    released model has. A label: data, modality and task decide."""
    outputs: str = "outputs"
    """Folder of runs, sweeps, reports, caches and the MLflow database."""
    choices: dict[str, str] = field(default_factory=dict)
    """Group -> option that Hydra composed: labels for readers, in no key."""
    typed: list[str] = field(default_factory=list)
    """The words of the command that asked for this, as Hydra split them into jobs, with
    `--config-dir`: for commands that are told to readers, in no key."""
    weights_of: str = ""
    """Of an evaluation the run whose model `model.path` holds, as `sft bcb22e6fd3d3`; empty for a
    start model. A label, in no key."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}; give a number from 0 to {2**32 - 1}")
        if not self.outputs.strip():
            raise ValueError(f"outputs={self.outputs!r}; give a folder, such as outputs=outputs")
        if "/" in self.sweep or not self.sweep.strip(". "):
            meant = self.sweep.strip("/. ").replace("../", "").replace("/", "_") or "prompts"
            raise ValueError(
                f"sweep={self.sweep!r}: it names one folder of outputs/reports; give a word "
                f"without /, such as sweep={meant}"
            )
        for check in checks.ALL:
            check(self)

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimizer step on each device."""
        devices = self.hardware.processes
        share = devices * self.hardware.questions_at_once
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

    def updates(self, questions: int) -> int:
        """Optimizer steps of a training on so many questions.

        An incomplete last step of an epoch is made by SFT and dropped by GRPO.
        """
        if (steps := self.method.trl["max_steps"]) > 0:
            return steps
        epoch = questions / self.method.prompts_per_step
        whole = math.ceil(epoch) if self.method.algorithm == "sft" else math.floor(epoch)
        return math.ceil(whole * self.method.trl["num_train_epochs"])

    @property
    def updates_per_rollout(self) -> int:
        """Updates on the same completions, between which no checkpoint can be resumed."""
        if self.method.algorithm != "grpo":
            return 1
        iterations = self.method.trl.get("num_iterations", 1)
        batches = self.method.trl.get("steps_per_generation") or self.accumulation
        return math.ceil(iterations * batches / self.accumulation)

    def validated_every(self, questions: int) -> int:
        """Updates between validations of a training on so many questions."""
        if given := self.validation.given_every:
            return given
        every = min(25, math.ceil(self.updates(questions) / 5))
        return math.ceil(every / self.updates_per_rollout) * self.updates_per_rollout

    def left_out_of_epoch(self, questions: int) -> int:
        """How many of the training questions an epoch of GRPO leaves out, others in each epoch.

        TRL's sampler drops the last ones, which do not fill a batch of rollouts; SFT trains on all.
        """
        if self.method.algorithm != "grpo":
            return 0
        micro_batches = self.method.trl.get("steps_per_generation") or self.accumulation
        hardware = self.hardware
        return questions % (hardware.processes * hardware.questions_at_once * micro_batches)

    @property
    def run_name(self) -> str:
        """A name for readers; the train key after it tells runs apart."""
        if self.weights_of:
            return "-".join(["evaluated", *self.weights_of.split()])
        cell = [] if self.method.algorithm == "none" else [self.modality.name, self.task.name]
        label = self.model.label
        label = Path(label).name if label.startswith("/") else label  # of a folder that is served
        model = re.sub(r"[^\w.+-]+", "_", label)  # of a server with slashes, colons
        return "-".join([self.method.name, model, *cell])

    @property
    def folder(self) -> Path:
        return Path(self.outputs)


def _splits(prompts: int, devices: int, share: int) -> str:
    """What would work: prompts per device for this step, or prompts per step on these devices."""
    lower = prompts // share * share
    steps = [str(n) for n in (lower, lower + share) if n]
    divisors = [n for n in range(1, prompts + 1) if prompts % (devices * n) == 0]
    per_device = f"hardware.per_device_prompts={divisors[-1]} or " if divisors else ""
    return f"{per_device}method.prompts_per_step={' or '.join(steps)} would work"
