"""`action=judge`: grades of what the runs of a sweep replied, kept as they come and resumable."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medreason import config as configuration
from medreason import data
from medreason.config import Config
from medreason.config.judge import ASPECTS, Judge, Scale
from medreason.evaluation import predictions
from medreason.evaluation.predictions import Prediction
from medreason.judging.grade import Graded, Grader, grade, grader
from medreason.judging.rubric import Item, item
from medreason.runs import integrity
from medreason.runs.files import write_json
from medreason.runs.run_folder import RunFolder, run_folders
from medreason.samples import Sample
from medreason.stats import weighted_kappa


def run(config: Config) -> None:
    """Judge the evaluation the sweep asked for of each of its runs; write `judgements.json`.

    Raises:
        ValueError: nothing to judge, no judge, a judge that trained the run, or one that is lost.
    """
    scales = {aspect: config.rubric.check(aspect) for aspect in ASPECTS}
    judges = [j for j in (config.judge, config.second_judge) if j.kind != "none"]
    found = _evaluations(config)
    for folder, _ in found:
        _refuse_judge_of_reward(config, folder)
    asks = [grader(judge) for judge in judges] or [grader(config.judge)]
    for folder, key in found:
        path = folder.evaluation(key)
        figures = _judge(config, folder, path, scales, list(zip(judges, asks, strict=True)))
        write_json(path / "judgements.json", figures)
        was_whole = integrity.is_whole(folder, key)
        _add_to_metrics(path, figures)
        if was_whole:  # else the next training command evaluates again, as it should
            integrity.seal(folder, key)
        folder.update(synced=[])
        print(folder.path.name, json.dumps(figures["summary"]))  # noqa: T201


def _evaluations(config: Config) -> list[tuple[RunFolder, str]]:
    """Run folders of the sweep that hold the evaluation it asked for."""
    found = [
        (folder, key)
        for folder in run_folders(config.folder / "runs")
        for state in [folder.state()]
        if (key := state.sweeps.get(config.sweep)) in state.evaluations and key is not None
    ]
    if not found:
        raise ValueError(
            f"no evaluated runs of sweep={config.sweep} below {config.folder / 'runs'}; "
            "`python -m medreason action=report` says which sweeps there are"
        )
    return found


def _refuse_judge_of_reward(config: Config, folder: RunFolder) -> None:
    trained = configuration.read(folder.config)
    rewarded = trained.method.algorithm == "grpo" and any(r.judge for r in trained.reward.values())
    if rewarded and not config.judge.allow_reward_judge:
        for name, judge in (("judge", config.judge), ("second_judge", config.second_judge)):
            if judge.identity == trained.judge.identity:
                raise ValueError(
                    f"{folder.path.name} was trained on the grades of {name}.model="
                    f"{judge.model!r}: it may have learned what this judge likes. "
                    "Choose another judge, or set judge.allow_reward_judge=true"
                )


def _judge(
    config: Config,
    folder: RunFolder,
    path: Path,
    scales: dict[str, Scale],
    judges: Sequence[tuple[Judge, Grader]],
) -> dict[str, Any]:
    rows = [r for r in predictions.read(path / "predictions.parquet") if r.control == "original"]
    run_config = configuration.read(folder.config)
    samples = {s.id: s for s in data.load(run_config.data, config.folder / "cache")}
    cache = config.folder / "cache" / "verdicts"
    summary: dict[str, Any] = {}
    kept: list[dict[str, Any]] = []
    for aspect, scale in scales.items():
        asked = _asked(aspect, scale, rows, samples)
        if not asked:
            continue
        items = [one for _, one in asked if one]
        graded = [
            grade(judge, items, cache, ask, _progress(f"{folder.path.name} {aspect}"))
            for judge, ask in judges
        ]
        for (judge, _), result in zip(judges, graded, strict=True):
            verdicts = iter(result.verdicts)
            scores = [(row, next(verdicts) if one else 0) for row, one in asked]
            kept += [
                {"sample": row.sample, "aspect": aspect, "judge": judge.model}
                | (asdict(v) if v and not isinstance(v, int) else {"score": 0 if v == 0 else None})
                for row, v in scores
            ]
        summary[aspect] = _summary(scale, asked, judges, graded)
    return {"rubric": config.rubric.name, "summary": summary, "verdicts": kept}


def _asked(
    aspect: str, scale: Scale, rows: Sequence[Prediction], samples: dict[str, Sample]
) -> list[tuple[Prediction, Item | None]]:
    """Rows with what is asked of them, None where there is nothing to grade, which scores 0.

    The answer to a closed question is right or wrong without a judge; reasoning without a reference
    explanation is left out.
    """
    chosen = [row for row in rows if aspect == "reasoning" or not row.options]
    given = [(row, row.reasoning if aspect == "reasoning" else row.answer) for row in chosen]
    missing = [row.sample for row, _ in given if row.sample not in samples]
    if missing:
        raise ValueError(
            f"sample {missing[0]} of the predictions is not in the data any more; "
            "evaluate again, or bring the data back that the run's config.yaml names"
        )
    return [
        (row, item(scale, samples[row.sample], text) if text else None)
        for row, text in given
        if aspect == "answer" or samples[row.sample].explanation
    ]


def _summary(
    scale: Scale,
    asked: Sequence[tuple[Prediction, Item | None]],
    judges: Sequence[tuple[Judge, Grader]],
    graded: Sequence[Graded],
) -> dict[str, Any]:
    """Score of a set = 100 * sum / (top * N), failures excluded from N (PAPERS section 2)."""
    empty = sum(one is None for _, one in asked)
    found: dict[str, Any] = {"n": len(asked), "without_text": empty}
    for place, ((judge, _), result) in enumerate(zip(judges, graded, strict=True)):
        scores = [verdict.score for verdict in result.verdicts if verdict]
        counted = len(scores) + empty
        found["second" if place else "first"] = {
            "judge": judge.model,
            "score": 100 * sum(scores) / (scale.top * counted) if counted else None,
            "judged": counted,
            "failed": sum(result.failures.values()),
            "failures": dict(result.failures),
            "calls": result.calls,
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "cost_usd": result.cost(judge) if judge.price_in or judge.price_out else None,
        }
    if len(graded) > 1:
        both = [
            (a.score, b.score)
            for a, b in zip(graded[0].verdicts, graded[1].verdicts, strict=True)
            if a and b
        ]
        found["kappa_n"] = len(both)
        found["weighted_kappa"] = (
            weighted_kappa([a for a, _ in both], [b for _, b in both], top=scale.top)
            if both
            else None
        )
    return found


def _add_to_metrics(path: Path, figures: dict[str, Any]) -> None:
    """Shares of 1 beside the accuracy, so that report and MLflow show them."""
    metrics = predictions.load_metrics(path)
    for aspect, found in figures["summary"].items():
        score = found["first"]["score"]
        metrics["overall"] |= {
            f"judged_{aspect}": None if score is None else score / 100,
            f"judge_failed_{aspect}": found["first"]["failed"] / max(found["n"], 1),
        }
    write_json(path / "metrics.json", metrics)


def _progress(what: str):  # noqa: ANN202
    def show(done: int, total: int) -> None:
        if sys.stderr.isatty() or done == total:
            print(f"{what}: {done}/{total}", file=sys.stderr)  # noqa: T201

    return show
