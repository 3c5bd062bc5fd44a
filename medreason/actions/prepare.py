"""`action=prepare`: write a release's images in one size, a table of its rows and their digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from medreason import config as configuration
from medreason import data
from medreason.config import Config, Validation
from medreason.console import counted, notice, show
from medreason.data import audit, checks, image_cache, prepare, prepared, saved_sets
from medreason.data.rows import Loaded, counts_text
from medreason.runs import lock
from medreason.runs.progress import Bar
from medreason.runs.run_folder import RunFolder


def run(config: Config) -> None:
    """Prepare the data set; after a kill, re-run the same command to resume.

    Raises:
        ValueError: the folder holds another set, or rows or images cannot be used; all other images
            are prepared before.
    """
    handling, reader = configuration.handling(config.data)
    settings = config.prepare
    name = f"{config.choices.get('data', 'data')}-{settings.size}-{settings.resize}"
    folder = Path(settings.folder or config.folder / "prepared" / name)
    root = data.root_of(reader)
    # A reader that balances rows by their labels must know first which images cannot be read.
    loaded = data.read(
        config.data | {"images": "decode"}, config.folder / "cache", _published(config)
    )
    _refuse(loaded, handling.contradictions)
    if len(loaded.counts) > 2:  # others than train and test
        notice(counts_text(loaded.counts))
    for remark in loaded.remarks:
        notice(remark)
    with RunFolder(folder).locked("action=prepare") as descriptor:
        if descriptor is None:
            raise ValueError(f"{folder} is being prepared by {lock.owner(folder)}")
        prepared.begin(folder, _settings(config))
        images = {sample.image for sample in loaded.samples}
        problems = checks.path_problems(images, root)
        destinations = prepare.targets_of(images - set(problems), root, folder / "images")
        problems |= prepare.prepare(
            destinations,
            settings.size,
            settings.resize,
            settings.processes,
            Bar("preparing images"),
            handling.ct_window,
        )
        clean = checks.without(loaded, problems)
        checks.refuse_bad_rows(clean, handling.bad_rows, root)
        samples = [replace(s, image=destinations[s.image]) for s in clean.samples]
        _write(config, folder, replace(clean, samples=samples))


def _published(config: Config) -> Validation:
    """Published validation rows are prepared, too; rows are held back by the run that trains."""
    published = config.validation.source == "published"
    return config.validation if published else data.NO_VALIDATION


def _settings(config: Config) -> dict[str, Any]:
    """What decides which rows and images are written, with an absolute root."""
    settings = {k: v for k, v in config.data.items() if k not in ("images", "bad_rows")}
    root = data.root_of(settings)
    return {
        "data": settings | ({"root": str(root.resolve())} if root else {}),
        **({"validation": "published"} if _published(config).is_on else {}),
        "size": config.prepare.size,
        "resize": config.prepare.resize,
    }


def _refuse(loaded: Loaded, contradictions: str) -> None:
    """What no image can change is refused before the first is prepared."""
    checks.refuse_same_ids(loaded.samples)
    if contradictions == "error":
        checks.refuse_contradictions(loaded.samples)
    checks.refuse_mixed_families(loaded.samples)


def _write(config: Config, folder: Path, loaded: Loaded) -> None:
    images = {sample.image for sample in loaded.samples}
    digests = image_cache.digests(images, config.folder / "cache", folder)
    digest = data.digest(loaded.samples, digests)
    prepared.write(
        folder,
        loaded.samples,
        {
            "digest": digest,
            "rows": len(loaded.samples),
            "row_counts": loaded.counts,
            "bad_rows": [str(bad) for bad in loaded.bad_rows],
            "images": len(images),
            "size": config.prepare.size,
            "resize": config.prepare.resize,
            "filter": prepare.FILTER,
            "cells": audit.cells(loaded.samples),
            "data": config.data,
        },
    )
    if config.prepare.save_to_disk:
        saved_sets.write(folder / "saved", loaded.samples)
    show(f"{counted(len(loaded.samples), 'row')}, digest {digest}")
    show(f"use them with data=prepared data.root={folder}")
    if config.prepare.save_to_disk:
        show(f"the same in columns {', '.join(saved_sets.COLUMNS)}: {folder / 'saved'}")
