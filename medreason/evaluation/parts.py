"""The answers of an unfinished evaluation, on disk: nothing that was answered is asked again.

    evaluations/<key>/parts/<weights>/     one folder for the weights that answer
        3f2a.parquet, 91c0.parquet, ...    answers of some batches, of any process
            wait_for_all                   the first process reads them, saves the evaluation
            remove                         and deletes the folder

Processes meet in these files, not in an operation of the process group, which would end them all if
one of them needed half an hour longer than another.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from medreason.config import Config
from medreason.console import counted, notice
from medreason.evaluation import predictions
from medreason.evaluation.predictions import Prediction
from medreason.generation.rows import FAILED, EvaluationRow
from medreason.models import model_folder
from medreason.runs.files import read_json, write_json
from medreason.runs.run_folder import RunFolder

OnPredictions = Callable[[Sequence[Prediction]], None]
"""Hears the predictions of each batch."""

_WRITE_SECONDS = 30.0
"""What a kill may cost."""
_POLL_SECONDS = 0.5
_SECONDS = "seconds.json"

_RowKey = tuple[str, str, str]
"""(sample, control, prompt): rows that agree in them have the same answer."""


class Parts:
    """One process's view of the parts of an evaluation."""

    def __init__(self, folder: RunFolder, key: str, config: Config) -> None:
        self._run, self._key = folder, key
        self._all = folder.evaluation(key) / "parts"
        path = config.model.path
        weights = "" if config.model.is_served else model_folder.fingerprint(path)
        self._folder = self._all / (weights or "hub")  # a later training has others
        self._folder.mkdir(parents=True, exist_ok=True)
        # Where no part comes, the launcher would take a rank that works for one that hangs.
        self._seconds = min(_WRITE_SECONDS, 20 * config.hardware.hang_timeout_minutes)
        self._buffer: list[Prediction] = []
        self._written = time.monotonic()
        self._answers: dict[_RowKey, Prediction] = {}
        self._read: set[str] = set()

    def missing(self, rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
        """The rows that no part answers; those that a server gave no reply to are asked again."""
        self._read_new()
        replied = {k: p for k, p in self._answers.items() if p.finish_reason != FAILED}
        self._answers = replied
        missing = self._unanswered(rows)
        if len(missing) < len(rows):
            done = len(rows) - len(missing)
            were = "was" if done == 1 else "were"
            notice(f"{done} of {counted(len(rows), 'row')} {were} answered before")
        return missing

    def add(self, batch: Sequence[Prediction]) -> None:
        """Take in the answers of a batch; they are on disk half a minute later."""
        self._buffer += batch
        if time.monotonic() - self._written >= self._seconds:
            self._write()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write what `add` took in within the block, also where the block is interrupted."""
        self._written = time.monotonic()
        try:
            yield
        finally:
            self._write()

    def wait_for_all(
        self, rows: Sequence[EvaluationRow], progress: Callable[[str, int, int], None]
    ) -> list[Prediction]:
        """The answers to all rows, in their order, once every process has written its own."""
        while missing := self._unanswered(rows):
            time.sleep(_POLL_SECONDS)
            if len(still := self._unanswered(rows)) < len(missing):
                # Only then: the launcher ends a job whose progress stands still.
                progress("waiting for the other ranks", len(rows) - len(still), len(rows))
        return [self._answers[_row_key(row)] for row in rows]

    def keep_seconds(self, seconds: float) -> None:
        """Write how long all answers took, for a later process that finds no row to answer."""
        write_json(self._folder / _SECONDS, {"seconds": seconds})

    def kept_seconds(self) -> float:
        """As an earlier process wrote it; 0 where none did."""
        path = self._folder / _SECONDS
        return read_json(path)["seconds"] if path.exists() else 0.0

    def wait_until_saved(self) -> None:
        """Wait until the first process has saved the evaluation."""
        while self._key not in self._run.state().evaluations:
            time.sleep(_POLL_SECONDS)

    def remove(self) -> None:
        shutil.rmtree(self._all, ignore_errors=True)

    def _unanswered(self, rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
        self._read_new()
        return [row for row in rows if _row_key(row) not in self._answers]

    def _write(self) -> None:
        if self._buffer:
            predictions.write(self._buffer, self._folder / f"{secrets.token_hex(8)}.parquet")
        self._buffer, self._written = [], time.monotonic()

    def _read_new(self) -> None:
        for file in sorted(self._folder.glob("*.parquet")):
            if file.name in self._read:
                continue
            self._read.add(file.name)
            try:
                rows = predictions.read(file)
            except ValueError:
                notice(f"{file}: damaged; its rows are asked again")
                continue
            self._answers |= {(row.sample, row.control, row.prompt): row for row in rows}


def _row_key(row: EvaluationRow) -> _RowKey:
    return row.sample.id, row.control, row.prompt
