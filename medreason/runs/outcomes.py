"""The outcome of a job of a sweep, and its errors. The command line imports it: no numpy."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """`outcome.json` of a job."""

    state: str
    """done, skipped (already finished), empty (no data), busy, failed; lost where a job began and
    left no outcome, unreached where it did not begin; shared where another job of the sweep did its
    evaluation."""
    run: str = ""
    """Name of the run folder, where it is known."""
    evaluation: str = ""
    """Key of the evaluation, where it is known."""
    error: str = ""
    """Its first line."""
    score: float | None = None
    """Accuracy on validation questions of the weights that were kept; what a search maximises."""
    overrides: list[str] = field(default_factory=list)


class NoDataError(ValueError):
    """A cell without data, or with too little: a sweep skips it and says why."""


class BusyError(ValueError):
    """Another process works on this evaluation of this run: a sweep leaves it to that one."""

    def __init__(self, folder: Path, evaluation_key: str, owner: str) -> None:
        """`owner`: see `lock.owner`."""
        super().__init__(f"{folder} is being worked on by {owner}; left to it")
        self.run, self.evaluation = folder.name, evaluation_key


def explained(error: BaseException, outputs: str) -> str:
    """The message of an error; with what to do where nothing can be written to `outputs`."""
    if not isinstance(error, OSError):
        return str(error)
    path = Path(error.filename or outputs).absolute()
    if error.errno in _NO_FOLDER and (file := _file_in(Path(outputs))):
        where = "" if file == Path(outputs) else f": {file}"
        return f"outputs={outputs}{where} is a file; set outputs=... to a folder"
    refused = error.errno in _READ_ONLY or (
        error.errno == errno.ENOENT and not Path(outputs).exists()  # its parent takes no folder
    )
    not_written = error.errno in _FULL or (
        refused and path.is_relative_to(Path(outputs).absolute())
    )
    remedy = "; free some space, or set outputs=... to a folder that can be written"
    return f"{error}{remedy if not_written else ''}"


def _file_in(folder: Path) -> Path | None:
    """What is a file of a path that has to be a folder."""
    return next((part for part in (folder, *folder.parents) if part.is_file()), None)


_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
