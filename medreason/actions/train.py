"""`action=train`: train on one cell, then evaluate on all cells of `evaluation`, or with
`runs.test=false` on none."""

from __future__ import annotations

from medreason.config import Config
from medreason.console import show
from medreason.execution import launch
from medreason.runs.outcomes import Outcome
from medreason.runs.run_folder import unsynced
from medreason.training import selection


def run(config: Config, label: str = "") -> Outcome:
    """Do what is not finished yet, and show its table.

    `label` names a job of a sweep; a sweep shows one table at its end.
    """
    request, worked = launch.run(config, label)
    if not label:
        from medreason.report import table  # pandas, half a second

        if config.tracking.uri and unsynced(request.evaluation, config.sweep):
            from medreason import tracking  # MLflow, seconds

            tracking.catch_up(config.tracking, config.folder, config.sweep, [request.evaluation])
        table.show([request.evaluation], config.statistics)
        show(request.folder.path)
    return Outcome(
        "done" if worked else "skipped",
        run=request.folder.path.name,
        evaluation=request.evaluation_key,
        score=selection.kept_score(request.folder),
    )
