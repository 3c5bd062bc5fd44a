"""`action=audit`: read the data and report its defects, on screen and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medreason import config as configuration
from medreason import data
from medreason.config import Config
from medreason.console import counted, show
from medreason.data import audit, pictures
from medreason.report import audit as tables
from medreason.runs.files import write_json
from medreason.runs.progress import Bar
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample


def run(config: Config) -> None:
    """Print the audit, and write it to `audit.json` in a folder named after the data's digest.

    Raises ValueError after that where no row can be used.
    """
    handling, _ = configuration.handling(config.data)
    loaded = data.read(config.data, config.folder / "cache", config.validation)
    pixels = None
    if handling.images == "decode":
        paths = (sample.image for sample in loaded.samples)
        pixels = pictures.read_pictures(paths, Bar("reading images"), handling.ct_window)
    digests = data.image_digests(config.data, config.folder / "cache", loaded.samples)
    digest = data.digest(loaded.samples, digests)
    report = audit.audit(loaded, digest, digests, pixels, split=handling.split)
    report["run_digests"] = _run_digests(config, report, loaded.samples, digests)
    name = config.choices.get("data", "data")
    folder = RunFolder(config.folder / "runs" / f"audit-{name}-{report['digest']}")
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.audit, report)
    tables.show(report)
    show(folder.audit)
    if config.tracking.uri:
        _track(config, folder, report)
    if not loaded.samples or report["images"]["read"] == 0:
        count = len(loaded.samples) + len(loaded.bad_rows) + len(loaded.left_out)
        raise ValueError(
            f"none of {counted(count, 'row')} can be used; {folder.audit} says of each why: "
            "correct the files, or give others"
        )


def _run_digests(
    config: Config,
    report: Mapping[str, Any],
    samples: Sequence[Sample],
    image_digests: Mapping[Path, str],
) -> dict[str, str]:
    """The digests that a run of the same options records, of the rows that it uses; none where it
    has no test rows, or rows that it would refuse or skip."""
    test = data.tested_on(config, samples)
    if report["unparsed"] or report["images"]["rows_without_image"] or not test:
        return {}
    train = data.trained_on(config, samples)
    digests = {"data.json": data.digest([*train, *test], image_digests)}
    return digests | ({"state.json": data.digest(train, image_digests)} if train else {})


def _track(config: Config, folder: RunFolder, report: dict[str, Any]) -> None:
    from medreason import tracking  # MLflow, seconds

    try:
        name = config.choices.get("data", "data")
        tracking.show_audit(config.tracking, config.folder, name, folder.audit, report["digest"])
    except tracking.UNREACHED as error:
        tracking.warn_unreached(config.tracking, error, f"{folder.audit} is on disk")
