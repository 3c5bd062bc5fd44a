"""`action=train`: one cell trained, then evaluated on all cells asked for."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from medreason.config import Config
from medreason.report import table
from medreason.runs import launch, ledger, sweep
from medreason.runs.outcomes import Outcome


def run(config: Config) -> Outcome:
    """Do what is not done yet, and show it; in a sweep the table comes once, at its end."""
    work, worked = launch.run(config, sweep.place())
    if HydraConfig.get().mode is not RunMode.MULTIRUN:
        if config.tracking.uri and ledger.unsynced(work.folder, config.sweep):
            from medreason import tracking  # MLflow, seconds

            tracking.catch_up(config.tracking, config.folder, config.sweep, [work.folder])
        table.show([work.folder], config.sweep)
        print(f"{work.folder.path}")  # noqa: T201
    return Outcome("done" if worked else "skipped", run=work.folder.path.name)
