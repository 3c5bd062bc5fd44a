"""What a job of a sweep came to. Apart, so that the command line knows it without numpy."""

from __future__ import annotations

import errno
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


def explained(error: BaseException, outputs: str) -> str:
    """Its message; where `outputs` takes nothing more, with what to do."""
    if not isinstance(error, OSError):
        return str(error)
    place = Path(error.filename or outputs).absolute()
    refused = error.errno in _FULL or (
        error.errno in _CLOSED and place.is_relative_to(Path(outputs).absolute())
    )
    remedy = "; free some space, or set outputs=... to a folder that can be written"
    return f"{error}{remedy if refused else ''}"


_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
