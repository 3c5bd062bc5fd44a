"""What a job of a sweep came to. Apart, so that the command line knows it without numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """`outcome.json` of a job."""

    state: str
    """done, skipped, empty, busy, failed; lost for a job that left no word; shared for one that
    another job of the sweep did as well."""
    run: str = ""
    """Name of the run folder, where it is known."""
    error: str = ""
    """The first line."""
    overrides: list[str] = field(default_factory=list)


class NoDataError(ValueError):
    """A cell without data, or with too little: a sweep passes over it and says why."""


class BusyError(ValueError):
    """Another process works on this run: a sweep leaves it to that one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is being worked on by another process; left to it")
        self.run = folder.name
