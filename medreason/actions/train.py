"""`action=train`: one cell trained, then evaluated on all cells asked for."""

from __future__ import annotations

from medreason.config import Config
from medreason.execution import launch
from medreason.report import table
from medreason.runs.outcomes import Outcome
from medreason.runs.run_folder import unsynced


def run(config: Config, place: str = "") -> Outcome:
    """Do what is not done yet, and show it.

    `place` says which job of a sweep this is; there the table comes once, when the sweep ends.
    """
    work, worked = launch.run(config, place)
    if not place:
        if config.tracking.uri and unsynced(work.folder, config.sweep):
            from medreason import tracking  # MLflow, seconds

            tracking.catch_up(config.tracking, config.folder, config.sweep, [work.folder])
        table.show([work.folder], config.sweep)
        print(f"{work.folder.path}")  # noqa: T201
    return Outcome("done" if worked else "skipped", run=work.folder.path.name)
