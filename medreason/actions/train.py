"""`action=train`: train on one cell, then evaluate on all cells of `evaluation`, or with
`runs.test=false` on none."""

from __future__ import annotations

from pathlib import Path

from medreason.config import Config
from medreason.console import notice, report_command, show
from medreason.execution import launch
from medreason.runs.outcomes import Outcome
from medreason.runs.run_folder import EvaluationFolder, evaluations_by_sweep, unsynced
from medreason.training import selection


def run(config: Config, label: str = "", said: Path | None = None) -> Outcome:
    """Do what is not finished yet, and show its table.

    `label` names a job of a sweep; a sweep shows one table at its end. `said`: see `launch.run`.
    """
    request, worked = launch.run(config, label, said)
    if not label:
        from medreason.report import table  # pandas, half a second

        of_sweep = evaluations_by_sweep(config.folder / "runs").get(config.sweep, [])
        starts = ("base-", "evaluated-")
        bases = [each for each in of_sweep if each.run.path.name.startswith(starts)]
        table.show_with_base(request.evaluation, bases, config.statistics)
        show(request.folder.path)
        notice(f"report: {report_command(config.sweep, config.outputs)}")
        if config.tracking.uri and (worked or unsynced(request.evaluation, config.sweep)):
            _show_in_mlflow(config, request.evaluation)
    return Outcome(
        "done" if worked else "skipped",
        run=request.folder.path.name,
        evaluation=request.evaluation_key,
        score=selection.kept_score(request.folder),
    )


def _show_in_mlflow(config: Config, evaluation: EvaluationFolder) -> None:
    """Send what MLflow lacks of a single run, and name the runs of its sweep as the tables do."""
    from medreason import tracking  # MLflow, seconds

    sweep = config.tracking, config.folder, config.sweep
    if tracking.catch_up(*sweep, [evaluation]):
        of_sweep = evaluations_by_sweep(config.folder / "runs").get(config.sweep, [])
        tracking.name_runs(*sweep, of_sweep)
