"""Finished runs in Python: what `import medreason` offers, and what the report reads itself."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medreason.config import Config, Statistics
from medreason.console import command, notice, outputs_word, report_command
from medreason.evaluation import predictions as stored
from medreason.report import table
from medreason.report.runs import Run, load
from medreason.runs import lock
from medreason.runs.files import read_parquet
from medreason.runs.run_folder import (
    EvaluationFolder,
    RunFolder,
    copies,
    evaluations_by_sweep,
    unreadable,
)


class Runs(list[Run]):
    """Evaluations in the order of the report's tables."""

    def frame(self) -> pd.DataFrame:
        """The report's `table.csv`: a row for each run over all cells (`all`, `all`) and for each
        of its cells, with intervals, baselines and the difference from the base model. Accuracies,
        intervals and differences are fractions of 1 (0.1 is 10 %, or 10 percent points)."""
        return table.frame(self).infer_objects()


def load_runs(
    outputs: str | Path = "outputs",
    sweep: str | None = None,
    statistics: Statistics | None = None,
) -> Runs:
    """The evaluations of a sweep below `outputs`; of all sweeps, each once, where none is named.

    Raises:
        ValueError: there is no such folder, or no such sweep.
    """
    folder = Path(outputs) / "runs"
    if not folder.is_dir():
        raise ValueError(
            f"outputs={outputs}: there is no folder {folder}; name the folder that holds runs/"
        )
    if sweep is not None:
        return Runs(load(evaluations_of(folder, sweep, in_python=True), statistics))
    every = {e.path: e for asked in evaluations_by_sweep(folder).values() for e in asked}
    return Runs(load(every.values(), statistics))


def evaluations_of(folder: Path, sweep: str, *, in_python: bool = False) -> list[EvaluationFolder]:
    """Those that a sweep asked for; run folders that cannot be read are named and left out. An
    error says what to type in a shell, or what to give `load_runs`.

    Raises:
        ValueError: there is no such sweep.
    """
    by_sweep = evaluations_by_sweep(folder)
    where = f"no runs of {sweep_text(sweep)} below {folder}"
    if errors := unreadable(folder):
        more = f"\nand {len(errors) - 1} more that cannot be read" if len(errors) > 1 else ""
        if sweep not in by_sweep:
            raise ValueError(f"{where} that can be read; {errors[0]}{more}")
        notice(f"left out, whatever its sweep: {errors[0]}{more}")
    if copied := copies(folder):
        notice(f"left out, copies of runs that are there: {', '.join(copied)}")
    asked = by_sweep.get(sweep, [])
    if _has_begun(asked):
        return asked
    others = [name for name, evaluations in by_sweep.items() if _has_begun(evaluations)]
    if others:
        others.sort(key=lambda name: (-_last_written(by_sweep[name]), name))
        begun = " that have begun" if asked else ""
        near = next(iter(difflib.get_close_matches(sweep, others, n=1)), others[0])
        remedy = f"type `{report_command(near, folder.parent)}`"
        if in_python:
            remedy = f"give sweep={near!r}"
        raise ValueError(f"{where}{begun}; there are {', '.join(others)}: {remedy}")
    if asked:
        return asked
    words = ["-m", "prompt=think", "method=base,sft,grpo,rarl"]
    words += [f"sweep={sweep}"] if sweep != Config.sweep else []
    words += outputs_word(folder.parent)
    raise ValueError(
        f"there are no runs below {folder} yet; make some with `{command(words)}`, or set "
        "outputs=... to the folder that holds runs/"
    )


def sweep_text(sweep: str) -> str:
    """`sweep=own`; of the default, which nobody need have typed, that it is this."""
    default = " (the default where no sweep is named)" if sweep == Config.sweep else ""
    return f"sweep={sweep}{default}"


def _has_begun(evaluations: Sequence[EvaluationFolder]) -> bool:
    """Whether a run has ever been worked on, or a process holds it and waits for a GPU."""
    states = ((each.run, each.run.state()) for each in evaluations)
    return any(s.attempts or s.trained or lock.is_held(run.path) for run, s in states)


def _last_written(evaluations: Sequence[EvaluationFolder]) -> float:
    return max((each.run.path / "state.json").stat().st_mtime for each in evaluations)


def load_run(path: str | os.PathLike[str]) -> Run:
    """The newest finished evaluation of a run folder.

    Raises:
        ValueError: no run folder, or nothing in it is evaluated yet.
    """
    folder = RunFolder(Path(path))
    if not folder.config.exists():
        raise ValueError(f"{folder.path} is no run folder: it has no {folder.config.name}")
    finished = folder.state().evaluations
    if not finished:
        raise ValueError(f"{folder.path} has no finished evaluation; re-run its command to resume")
    return load([EvaluationFolder(folder, finished[-1])])[0]


def predictions(run: Run | Sequence[Run]) -> pd.DataFrame:
    """A row for each answer of one run or of several, those to the controls too (`control`);
    columns are the fields of `evaluation.predictions.Prediction`, and `run` and `evaluation`."""
    runs = [run] if isinstance(run, Run) else run
    return stored.read_frame([each.evaluation.path for each in runs], controls=True)


def rollouts(run: Run) -> pd.DataFrame:
    """The completions of a GRPO or RARL training that were written, those of `step` 1, 10, 20 ...,
    with their rewards (`reward/NAME`) and advantages.

    Raises:
        ValueError: the run has none: it sampled nothing, as SFT does, or not yet.
    """
    frames = [
        read_parquet(path).to_pandas().assign(step=int(path.stem.rpartition("-")[2]))
        for path in sorted(run.folder.rollouts.glob("step-*.parquet"))
    ]
    if not frames:
        why = (
            "none is written yet"
            if run.config and run.config.method.algorithm == "grpo"
            else f"method={run.method} samples none, only GRPO and RARL do"
        )
        raise ValueError(f"{run.folder.path} has no rollouts: {why}")
    return pd.concat(frames, ignore_index=True)
