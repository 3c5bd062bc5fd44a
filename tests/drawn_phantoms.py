"""Phantoms look the same in every test: each is drawn once and copied to where a test has it."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

from medreason import phantom
from medreason.phantom import Picture

draw_missing = phantom.draw_missing
folder: Path | None = None
"""Where the drawn images are, for processes that are forked; None before `share`."""


def share(parent: Path | None) -> None:
    """Let `phantom.load` of this process copy images that are in `parent / "phantoms"`."""
    global folder
    if parent:
        folder = parent
        phantom.draw_missing = functools.partial(_copy_missing, parent / "phantoms")


def _copy_missing(drawn: Path, pictures: Sequence[Picture], target: Path) -> None:
    for modality in {picture.modality for picture in pictures}:  # fails before any is drawn
        (target / modality).mkdir(parents=True, exist_ok=True)
    draw_missing(pictures, drawn / target.name)
    for picture in pictures:
        path = target / picture.name
        if not path.exists():
            shutil.copyfile(drawn / target.name / picture.name, path)
