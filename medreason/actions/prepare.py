"""`action=prepare`: raw release -> images in one size, one cleaned table, its digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medreason import config as configuration
from medreason import data
from medreason.config import Config
from medreason.data import audit, checks, prepare, prepared
from medreason.data.rows import Loaded
from medreason.runs.progress import Bar
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample


def run(config: Config) -> None:
    """Prepare what the data set names; the same command goes on where a killed one stopped.

    Raises:
        ValueError: rows or images cannot be used; all good images are prepared by then.
    """
    handling, reader = configuration.handling(config.data)
    settings = config.prepare
    name = f"{config.choices.get('data', 'data')}-{settings.size}-{settings.resize}"
    folder = Path(settings.folder or config.folder / "prepared" / name)
    root = data.root_of(reader)
    loaded = data.read(config.data, config.folder / "cache")
    with RunFolder(folder).locked() as ours:
        if not ours:
            raise ValueError(f"{folder} is being prepared by another process")
        (folder / prepared.SUMMARY).unlink(missing_ok=True)  # until it is whole again
        images = {sample.image for sample in loaded.samples}
        problems = {i: found for i in images if (found := checks.path_problem(i, root))}
        # Images of two sizes must not meet in one folder.
        below = folder / f"images-{settings.size}-{settings.resize}"
        todo = prepare.targets_of(images - set(problems), root, below)
        problems |= prepare.prepare(
            todo, settings.size, settings.resize, settings.processes, Bar("preparing images")
        )
        whole = checks.without(loaded, problems)
        checks.refuse_bad_rows(whole, handling.bad_rows, root)
        _write(config, folder, Loaded([_moved(s, todo) for s in whole.samples], whole.bad_rows))


def _moved(sample: Sample, todo: dict[Path, Path]) -> Sample:
    return replace(sample, image=todo[sample.image])


def _write(config: Config, folder: Path, loaded: Loaded) -> None:
    checks.refuse_same_ids(loaded.samples)
    checks.refuse_contradictions(loaded.samples)
    digest = data.digest(loaded.samples)
    prepared.write(
        folder,
        loaded.samples,
        {
            "digest": digest,
            "rows": len(loaded.samples),
            "bad_rows": [str(bad) for bad in loaded.bad_rows],
            "images": len({sample.image for sample in loaded.samples}),
            "size": config.prepare.size,
            "resize": config.prepare.resize,
            "filter": prepare.FILTER,
            "cells": audit.cells(loaded.samples),
            "data": config.data,
        },
    )
    print(f"{len(loaded.samples):,} rows, digest {digest}")  # noqa: T201
    print(f"use them with data=prepared data.root={folder}")  # noqa: T201
