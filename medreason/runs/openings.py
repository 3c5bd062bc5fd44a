"""Every opening of a test split: which sweep asked it about which arm. It outlives run folders, so
that a test that chose among models is seen to have done so when all but one are deleted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from medreason.runs import lock


@dataclass(frozen=True)
class Opening:
    """A line of `openings.jsonl`: an evaluation on a test split, in a sweep."""

    sweep: str
    data: str
    """Name of the data set."""
    questions: str
    """Digest of the test questions."""
    arm: str
    """Digest of what tells an arm from others; the same for its cells and seeds."""
    method: str
    run: str
    """Name of the run folder."""
    evaluation: str
    """Its key."""
    trained: bool
    """False of a start model, among whose evaluations nothing is chosen."""
    validated: bool
    """Validation questions were asked while it trained."""


def record(outputs: Path, opening: Opening) -> None:
    """Add the opening to `openings.jsonl`, where it is not there yet."""
    path, line = outputs / _NAME, json.dumps(asdict(opening))
    if line in _lines(path):
        return
    outputs.mkdir(parents=True, exist_ok=True)
    with lock.briefly(outputs / ".openings.lock"):
        if line not in _lines(path):
            with path.open("a") as stream:
                stream.write(f"{line}\n")


def read(outputs: Path, sweep: str) -> list[Opening]:
    """The openings of a sweep, the oldest first, without a line that a kill cut off."""
    openings = []
    for line in _lines(outputs / _NAME):
        try:
            openings.append(Opening(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return [opening for opening in openings if opening.sweep == sweep]


_NAME = "openings.jsonl"


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []
