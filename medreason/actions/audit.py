"""`action=audit`: reads the data and says whether it can be trusted, on screen and as JSON."""

from __future__ import annotations

import sys
from typing import Any

from medreason import config as configuration
from medreason import data
from medreason.config import Config
from medreason.data import audit, pictures
from medreason.report import audit as tables
from medreason.runs.files import write_json
from medreason.runs.progress import Bar
from medreason.runs.run_folder import RunFolder


def run(config: Config) -> None:
    """Count everything, print it, and write `audit.json` in a folder named after the digest."""
    handling, _ = configuration.handling(config.data)
    loaded = data.read(config.data, config.folder / "cache")
    seen = None
    if handling.images == "decode":
        seen = pictures.look_at((s.image for s in loaded.samples), Bar("reading images"))
    report = audit.audit(loaded, seen)
    name = config.choices.get("data", "data")
    folder = RunFolder(config.folder / "runs" / f"audit-{name}-{report['digest']}")
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.audit, report)
    tables.show(report)
    print(folder.audit)  # noqa: T201
    if config.tracking.uri:
        _track(config, folder, report)


def _track(config: Config, folder: RunFolder, report: dict[str, Any]) -> None:
    # MLflow, seconds
    from mlflow.exceptions import MlflowException

    from medreason import tracking

    try:
        name = config.choices.get("data", "data")
        tracking.show_audit(config.tracking, config.folder, name, folder.audit, report["digest"])
    except (MlflowException, OSError) as error:
        print(  # noqa: T201
            f"MLflow at {config.tracking.uri} not reached ({error}); {folder.audit} is on disk",
            file=sys.stderr,
        )
