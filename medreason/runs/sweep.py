"""A sweep as Hydra sees it: at its end one table of what every job came to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from medreason.report import table
from medreason.runs import ledger


class Sweep(Callback):
    """`hydra.callbacks.sweep`: a failed job leaves the others running and its error at the end."""

    def __init__(self) -> None:
        self._failed: list[tuple[str, str]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:  # noqa: ANN401
        if config.hydra.mode is RunMode.MULTIRUN and (error := job_return.return_value):
            self._failed.append((" ".join(job_return.overrides or []), str(error)))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401
        folders = ledger.folders(Path(config.outputs) / "runs")
        ours = [folder for folder in folders if config.sweep in folder.state().sweeps]
        table.show(ours, config.sweep)
        for overrides, error in self._failed:
            print(f"failed: {overrides}\n  {error}", file=sys.stderr)  # noqa: T201
        if self._failed:
            sys.exit(1)
