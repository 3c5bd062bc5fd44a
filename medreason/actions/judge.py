"""`action=judge`: a judge grades the replies of a sweep's runs. Each verdict is stored at once, so
the same command resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medreason import config as configuration
from medreason import data
from medreason.config import Config, Hardware, machine
from medreason.config.judge import ASPECTS, Judge, Scale
from medreason.console import notice, report_command, show
from medreason.evaluation import predictions
from medreason.evaluation.predictions import Prediction
from medreason.execution import gpu_slots
from medreason.judging import rubric
from medreason.judging.grade import Graded, Grader, grade, grader
from medreason.judging.rubric import Item
from medreason.report.loading import sweep_text
from medreason.runs import integrity
from medreason.runs.files import write_json
from medreason.runs.progress import Bar
from medreason.runs.run_folder import EvaluationFolder, evaluations_by_sweep
from medreason.samples import Sample
from medreason.stats import weighted_kappa


def run(config: Config) -> None:
    """Judge each run's evaluation that belongs to the sweep; write `judgements.json` beside it.

    Raises:
        ValueError: nothing to judge, no judge, a judge whose grades trained the run, or one that no
            longer replies.
    """
    scales = {aspect: config.rubric.check(aspect) for aspect in ASPECTS}
    judges = [j for j in (config.judge, config.second_judge) if j.kind != "none"]
    evaluations = _evaluations(config)
    for evaluation in evaluations:
        _refuse_judge_of_reward(config, evaluation)
    if any(judge.kind == "local" for judge in judges):
        _take_device(config.hardware)
    graders = [grader(judge) for judge in judges] or [grader(config.judge)]  # which raises
    for evaluation in evaluations:
        path, run = evaluation.path, evaluation.run
        judgements = _judge(config, evaluation, scales, list(zip(judges, graders, strict=True)))
        write_json(path / "judgements.json", judgements)
        was_whole = integrity.is_whole(run, evaluation.key)
        _add_to_metrics(path, judgements["summary"])
        if was_whole:  # else the next training command evaluates again, as it should
            integrity.seal(run, evaluation.key)
        run.update(synced=[])
        show(f"{evaluation.name} {json.dumps(judgements['summary'])}")


def _take_device(hardware: Hardware) -> None:
    """The one device that local judges are loaded on: a GPU of its own, or the CPU."""
    hardware = gpu_slots.hold_one(hardware)
    if hardware.accelerator == "cpu" and (gpus := machine.gpus()):
        notice(
            f"judge=local runs on the CPU, as hardware={hardware.name} says; hardware=gpu takes "
            f"{gpus[0].name}, many times faster"
        )
    from medreason.models import device  # torch

    device.join(hardware)


def _evaluations(config: Config) -> list[EvaluationFolder]:
    """The finished evaluations that belong to the sweep."""
    evaluations = [
        evaluation
        for evaluation in evaluations_by_sweep(config.folder / "runs").get(config.sweep, [])
        if evaluation.finished
    ]
    if not evaluations:
        raise ValueError(
            f"no evaluated runs of {sweep_text(config.sweep)} below {config.folder / 'runs'}; "
            f"`{report_command(config.sweep, config.outputs)}` says which sweeps there are"
        )
    return evaluations


def _refuse_judge_of_reward(config: Config, evaluation: EvaluationFolder) -> None:
    trained = configuration.read(evaluation.run.config)
    rewarded = trained.method.algorithm == "grpo" and any(r.judge for r in trained.reward.values())
    if rewarded and not config.judge.allow_reward_judge:
        for name, judge in (("judge", config.judge), ("second_judge", config.second_judge)):
            if judge.identity == trained.judge.identity:
                raise ValueError(
                    f"{evaluation.run.path.name} was trained on the grades of {name}.model="
                    f"{judge.model!r}: it may have learned what this judge likes. "
                    "Choose another judge, or set judge.allow_reward_judge=true"
                )


def _judge(
    config: Config,
    evaluation: EvaluationFolder,
    scales: dict[str, Scale],
    judges: Sequence[tuple[Judge, Grader]],
) -> dict[str, Any]:
    rows = predictions.read(evaluation.path / "predictions.parquet")
    rows = [row for row in rows if row.control == "original"]
    asked = configuration.read(evaluation.config)
    samples = {s.id: s for s in data.load(asked.data, config.folder / "cache")}
    cache = config.folder / "cache" / "verdicts"
    summary: dict[str, Any] = {}
    records: list[dict[str, Any]] = []
    for aspect, scale in scales.items():
        requests = _requests(aspect, scale, rows, samples)
        if not requests:
            continue
        items = [item for _, item in requests if item]
        graded = [
            grade(judge, items, cache, ask, Bar(f"{evaluation.name} {aspect}"))
            for judge, ask in judges
        ]
        for (judge, _), result in zip(judges, graded, strict=True):
            verdicts = iter(result.verdicts)
            for row, item in requests:
                verdict = next(verdicts) if item else None
                values = asdict(verdict) if verdict else {"score": None if item else 0}
                records.append(
                    {"sample": row.sample, "aspect": aspect, "judge": judge.model, **values}
                )
        summary[aspect] = _summary(scale, requests, judges, graded)
    return {"rubric": config.rubric.name, "summary": summary, "verdicts": records}


def _requests(
    aspect: str, scale: Scale, rows: Sequence[Prediction], samples: dict[str, Sample]
) -> list[tuple[Prediction, Item | None]]:
    """Rows with the item to grade; None, which scores 0, where the reply has no such text.

    Left out are answers to questions with options, which are right or wrong without a judge, and
    reasoning about samples without a reference explanation.
    """
    texts = [
        (row, row.reasoning if aspect == "reasoning" else row.answer)
        for row in rows
        if aspect == "reasoning" or not row.options
    ]
    missing = [row.sample for row, _ in texts if row.sample not in samples]
    if missing:
        raise ValueError(
            f"sample {missing[0]} of the predictions is not in the data any more; "
            "evaluate again, or bring the data back that the run's config.yaml names"
        )
    return [
        (row, rubric.item(scale, samples[row.sample], text) if text else None)
        for row, text in texts
        if aspect == "answer" or samples[row.sample].explanation
    ]


def _summary(
    scale: Scale,
    requests: Sequence[tuple[Prediction, Item | None]],
    judges: Sequence[tuple[Judge, Grader]],
    graded: Sequence[Graded],
) -> dict[str, Any]:
    """Score = 100 * sum / (top * n); failures are not in n. Source: experiments/rarl/README.md."""
    empty = sum(item is None for _, item in requests)
    summary: dict[str, Any] = {"n": len(requests), "without_text": empty}
    for name, (judge, _), result in zip(("first", "second"), judges, graded, strict=False):
        scores = [verdict.score for verdict in result.verdicts if verdict]
        counted = len(scores) + empty
        summary[name] = {
            "judge": judge.model,
            "score": 100 * sum(scores) / (scale.top * counted) if counted else None,
            "judged": counted,
            "failed": sum(result.failures.values()),
            "failures": dict(result.failures),
            "calls": result.calls,
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "cost_usd": result.cost(judge),
        }
    if len(graded) > 1:
        pairs = zip(*(result.verdicts for result in graded), strict=True)
        scores = [(a.score, b.score) for a, b in pairs if a and b]
        kappa = weighted_kappa(*zip(*scores, strict=True), top=scale.top) if scores else None
        summary |= {"kappa_n": len(scores), "weighted_kappa": kappa}
    return summary


def _add_to_metrics(path: Path, summary: dict[str, Any]) -> None:
    """Add scores, from 0 to 1, to metrics.json, which report and MLflow show."""
    metrics = predictions.load_metrics(path)
    for aspect, values in summary.items():
        score = values["first"]["score"]
        metrics["overall"] |= {
            f"judged_{aspect}": None if score is None else score / 100,
            f"judge_failed_{aspect}": values["first"]["failed"] / max(values["n"], 1),
        }
    write_json(path / "metrics.json", metrics)
