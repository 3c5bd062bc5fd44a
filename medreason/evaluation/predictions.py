"""Predictions of an evaluation, a row for each sample and control: made, written and read here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pyarrow as pa

from medreason import data
from medreason.console import counted
from medreason.generation.rows import FAILED, Completion
from medreason.metrics import Metric
from medreason.option_prior import guessing
from medreason.replies import parse
from medreason.rewards import embeddings
from medreason.rewards.answer import correct, token_f1
from medreason.rewards.reasoning import consistency, reasoning_similarity
from medreason.runs.files import read_json, read_parquet, write_json, write_parquet
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample, letter_at


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one sample, under its original image or a control."""

    sample: str
    """The sample's id."""
    control: str
    """`original`, or the name of a control."""
    modality: str
    task: str
    source: str
    patient: str | None
    image: str
    image_digest: str
    """Of the content of the image that the question is about, whatever a control shows."""
    question_digest: str
    """`data.question_digest` of the test question, whatever a control asks: the same question in
    two evaluations."""
    question: str
    options: list[str]
    gold: str
    """The right letter, or the reference text."""
    prompt: str
    completion: str
    reasoning: str | None
    answer: str | None
    parse_status: str
    """ "parsed", or why there is no answer."""
    correct: bool
    token_f1: float
    consistency: float
    """Reasoning and answer agree: `rewards.reasoning.consistency`."""
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    """stop, length, likelihood where nothing was generated, or `rows.FAILED` where a server gave no
    reply; such a row is in no file of a finished evaluation."""
    option_likelihoods: list[float] = field(default_factory=list)
    """Probability of each option's letter right behind the prompt; empty where not asked for."""
    likeliest_option: str | None = None
    """The letter with the highest share."""
    reasoning_similarity: float | None = None
    """Of reasoning and reference explanation: `scores.reasoning_similarity`, the reward `reasoning`
    of RARL; none where there is no explanation or nothing was generated."""
    reasoning_embedding: float | None = None
    """The same by `embeddings.reasoning_embedding`; none without `evaluation.encoder`, too."""
    bertscore: float | None = None
    """Of the answer to an open question; none without `evaluation.encoder`."""
    alternatives: list[str] = field(default_factory=list)
    """Texts that are as right as `gold`."""
    closed: bool = False
    """`Sample.closed`: as the literature counts the question."""
    option_likelihood_correct: bool | None = None
    """Whether `likeliest_option` is right; none where there is none."""

    def cluster(self, clusters: str) -> str:
        """What `statistics.clusters` counts: questions of different clusters are independent."""
        return data.cluster(clusters, self.patient, self.image_digest, self.question_digest)


@dataclass(frozen=True)
class StoredReply:
    """A completion of an earlier evaluation."""

    control: str
    sample: str
    prompt: str
    completion: str
    finish_reason: str


CLUSTER_COLUMNS = ("patient", "image_digest", "question_digest")


def clusters_of(frame: pd.DataFrame, clusters: str) -> pd.Series:
    """`Prediction.cluster` of each row of a frame with CLUSTER_COLUMNS."""
    if clusters == "question":
        return frame["question_digest"]
    if clusters == "image":
        return frame["image_digest"]
    patients = "patient " + frame["patient"].astype("string")
    return patients.where(frame["patient"].fillna("") != "", frame["image_digest"])


_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("sample", "control", "modality", "task", "source")],
        *[(name, pa.string()) for name in ("patient", "image", "image_digest")],
        *[(name, pa.string()) for name in ("question_digest", "question")],
        ("options", pa.list_(pa.string())),
        *[(name, pa.string()) for name in ("gold", "prompt", "completion", "reasoning", "answer")],
        ("parse_status", pa.string()),
        ("correct", pa.bool_()),
        ("token_f1", pa.float64()),
        ("consistency", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("finish_reason", pa.string()),
        ("option_likelihoods", pa.list_(pa.float64())),
        ("likeliest_option", pa.string()),
        ("reasoning_similarity", pa.float64()),
        ("reasoning_embedding", pa.float64()),
        ("bertscore", pa.float64()),
        ("alternatives", pa.list_(pa.string())),
        ("closed", pa.bool_()),
        ("option_likelihood_correct", pa.bool_()),
    ]
)


def predict(
    sample: Sample,
    control: str,
    completion: Completion,
    option_likelihoods: Sequence[float] = (),
    encoder: str | None = None,
) -> Prediction:
    """Read a completion with the parser the rewards use; `with_digests` adds the digests."""
    reply = parse(completion.text, sample.options, truncated=completion.finish_reason == "length")
    return Prediction(
        sample=sample.id,
        control=control,
        modality=sample.modality,
        task=sample.task,
        source=sample.source,
        patient=sample.patient,
        image=str(sample.image),
        image_digest="",
        question_digest="",
        question=sample.question,
        options=list(sample.options),
        gold=sample.answer,
        prompt=completion.prompt,
        completion=completion.text,
        reasoning=reply.reasoning,
        answer=reply.answer,
        parse_status=reply.reason or "parsed",
        correct=correct(reply, sample) == 1.0,
        token_f1=token_f1(reply, sample),
        consistency=consistency(reply, sample),
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        finish_reason=completion.finish_reason,
        option_likelihoods=list(option_likelihoods),
        likeliest_option=likeliest(option_likelihoods),
        reasoning_similarity=reasoning_similarity(reply, sample) if sample.explanation else None,
        reasoning_embedding=embeddings.reasoning_embedding(reply, sample, encoder=encoder)
        if encoder and sample.explanation
        else None,
        bertscore=embeddings.bertscore(reply, sample, encoder=encoder)
        if encoder and not sample.options
        else None,
        alternatives=list(sample.alternatives),
        closed=sample.closed,
        option_likelihood_correct=sample.is_right(likeliest(option_likelihoods) or "")
        if option_likelihoods
        else None,
    )


def settle(
    sample: Sample, control: str, prompt: str, option_likelihoods: Sequence[float]
) -> Prediction:
    """The answer where nothing is generated: the likeliest letter."""
    nothing = Completion(prompt, "", 0, 0, "option_likelihood")
    letter = likeliest(option_likelihoods)
    return replace(
        predict(sample, control, nothing, option_likelihoods),
        answer=letter,
        correct=letter is not None and sample.is_right(letter),
        parse_status="parsed",
        reasoning_similarity=None,
    )


def with_digests(
    predictions: Iterable[Prediction], samples: Iterable[Sample], image_digests: Mapping[Path, str]
) -> list[Prediction]:
    """The predictions with the digests of the test questions, `samples`, that they are about."""
    digests = {
        sample.id: {
            "image_digest": image_digests[sample.image],
            "question_digest": data.question_digest(sample, image_digests[sample.image]),
        }
        for sample in samples
    }
    return [replace(prediction, **digests[prediction.sample]) for prediction in predictions]


def without_failures(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions of the questions that got a reply; a control is left out where it got none,
    and where the question itself has none to compare it with.

    Raises:
        ValueError: no question got one.
    """
    replied = [row for row in predictions if row.finish_reason != FAILED]
    questions = {row.sample for row in replied if row.control == "original"}
    if predictions and not questions:
        reasons = Counter(row.completion for row in predictions if row.finish_reason == FAILED)
        raise ValueError(
            "no question got a reply: "
            + ", ".join(
                f"{reason} ({counted(count, 'request')})" for reason, count in reasons.items()
            )
            + "; re-run the same command to ask again"
        )
    return [row for row in replied if row.sample in questions]


def likeliest(option_likelihoods: Sequence[float]) -> str | None:
    if not option_likelihoods:
        return None
    return letter_at(max(range(len(option_likelihoods)), key=option_likelihoods.__getitem__))


def write(predictions: Sequence[Prediction], path: Path) -> None:
    rows = [asdict(prediction) for prediction in predictions]
    write_parquet(path, pa.Table.from_pylist(rows, schema=_SCHEMA))


def read(path: Path, samples: Collection[str] | None = None) -> list[Prediction]:
    """The rows of a predictions file; with `samples` only theirs under the original image.

    Raises:
        ValueError: the file is cut off or no predictions file.
    """
    filters = None if samples is None else [_ORIGINAL, ("sample", "in", samples)]
    rows = _table(path, filters=filters).to_pylist()
    try:
        return [Prediction(**row) for row in rows]
    except TypeError as error:
        raise ValueError(_UNREADABLE.format(path, error)) from error


def image_of(prediction: Prediction, outputs: Path, run: RunFolder) -> str:
    """Where an image is now, which an evaluation with its `outputs` at this path wrote: they may
    have been moved, or are named from another folder."""
    recorded = Path(prediction.image)
    if not recorded.is_relative_to(outputs):
        return prediction.image
    return str(run.path.parents[1] / recorded.relative_to(outputs))


def read_replies(path: Path) -> list[StoredReply]:
    """The completions of a predictions file, those under controls included.

    Raises:
        ValueError: the file is cut off or no predictions file.
    """
    columns = [column.name for column in fields(StoredReply)]
    return [StoredReply(**row) for row in _table(path, columns).to_pylist()]


def read_frame(
    evaluations: Iterable[Path], columns: Sequence[str] | None = None, *, controls: bool = False
) -> pd.DataFrame:
    """Predictions under the original image, with `controls` also theirs, of one or many
    evaluations, in the order of the files.

    Columns: `columns`, the only ones that are read, since completions and prompts are nearly all of
    a file's size, or else all; `run` and `evaluation`, the names of the folders.

    Raises:
        ValueError: a file is cut off or no predictions file.
    """
    filters = None if controls else [_ORIGINAL]
    frames = [
        _table(folder / "predictions.parquet", columns, filters)
        .to_pandas()
        .assign(run=folder.parents[1].name, evaluation=folder.name)
        for folder in evaluations
    ]
    return pd.concat(frames, ignore_index=True)


_ORIGINAL: tuple[str, str, object] = ("control", "==", "original")
_UNREADABLE = "{}: not a predictions file ({}); delete its folder and evaluate again"


def _table(
    path: Path,
    columns: Sequence[str] | None = None,
    filters: list[tuple[str, str, object]] | None = None,
) -> pa.Table:
    try:
        return read_parquet(path, columns, filters)
    except ValueError as error:
        raise ValueError(_UNREADABLE.format(path, error)) from error


def save(folder: Path, predictions: Sequence[Prediction], metrics: dict[str, Any]) -> None:
    """Write both files; metrics.json comes last: where it is, the evaluation is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    write(predictions, folder / "predictions.parquet")
    write_json(folder / "metrics.json", metrics)


def load_metrics(folder: Path) -> dict[str, Any]:
    return read_json(folder / "metrics.json")


def with_guessing(metrics: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`metrics` of an evaluation with `Metric.GUESSING`, which those of earlier commits lack."""
    if Metric.GUESSING in metrics["overall"]:
        return metrics
    rows = read_frame([folder], ["modality", "task", "options"])
    cells = rows["modality"] + "/" + rows["task"]
    by_cell = {str(c): guessing(o) or 0.0 for c, o in rows["options"].groupby(cells)}
    means = {"overall": guessing(rows["options"]), "over_cells": fmean(by_cell.values())}
    return (
        metrics
        | {name: metrics[name] | {Metric.GUESSING: mean} for name, mean in means.items()}
        | {"cells": {c: m | {Metric.GUESSING: by_cell[c]} for c, m in metrics["cells"].items()}}
    )
