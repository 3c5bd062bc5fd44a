"""One process works on a run folder at a time: on one machine, and on several that share a disk.

On one machine the kernel keeps the lock (flock) and takes it back from whatever dies. Some network
file systems keep flock to each machine, so the holder also leaves `.owner.json`, in which a number
goes up every few seconds. Another machine watches that number, not a clock: an owner whose number
stands still is dead and its lock is taken over.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil

from medreason.runs.files import atomic

BEAT_SECONDS = 5.0
SILENT_BEATS = 4
"""An owner on another machine that stands still for so many beats is dead."""
_DYING_SECONDS = 60.0  # a worker that is still importing torch notices late
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def held(folder: Path) -> Iterator[int | None]:
    """Hold a folder; gives the descriptor a worker has to inherit, None where another holds it.

    While a worker that inherited it lives the folder is held, even if its parent was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".owner.json"
    with (folder / ".lock").open("a") as handle:
        flocked = _flock(handle, owner)
        mine = {"boot": boot(), "pid": os.getpid(), "token": uuid.uuid4().hex, "beat": 0}
        if flocked is False or not _claim(owner, mine, flocked=flocked is True):
            yield None
            return
        stop = threading.Event()
        beating = threading.Thread(target=_beat, args=(owner, mine, stop), daemon=True)
        beating.start()
        try:
            yield handle.fileno()
        finally:
            stop.set()
            beating.join()
            owner.unlink(missing_ok=True)


@contextmanager
def briefly(path: Path) -> Iterator[None]:
    """Wait for a lock file that others hold for milliseconds only."""
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        yield


def boot() -> str:
    """Which start of which machine this is: process ids and flock mean something within it."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else f"{os.uname().nodename}"


def _flock(handle: IO[str], owner: Path) -> bool | None:
    """Whether the kernel gives the lock; None where the file system has none to give.

    The worker of a killed parent holds it for a second more, which is waited for.
    """
    deadline = time.monotonic() + _DYING_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            theirs = _read(owner)
            here = theirs.get("boot") == boot()
            if not here or psutil.pid_exists(theirs["pid"]) or time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return None


def _claim(owner: Path, mine: dict[str, Any], *, flocked: bool) -> bool:
    """Write the owner's file where there is none, or where its owner is dead."""
    for _ in range(3):
        try:
            with owner.open("x") as stream:
                json.dump(mine, stream)
            return True
        except FileExistsError:
            theirs = _read(owner)
            if _works(owner, theirs, flocked=flocked):
                return False
            if _read(owner) == theirs:  # else another machine has just taken it over
                owner.unlink(missing_ok=True)
    return False


def _works(owner: Path, theirs: dict[str, Any], *, flocked: bool) -> bool:
    """Whether the owner lives: by the kernel on this machine, by its beats on another."""
    if theirs.get("boot") == boot():
        return not flocked and psutil.pid_exists(theirs["pid"])
    for _ in range(SILENT_BEATS):
        time.sleep(BEAT_SECONDS)
        if _read(owner) != theirs:
            return True
    return False


def _beat(owner: Path, mine: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        if _read(owner).get("token") != mine["token"]:
            print(  # noqa: T201
                f"{owner}: another machine took this run over, since it did not see a beat for "
                f"{SILENT_BEATS * BEAT_SECONDS:.0f} s",
                file=sys.stderr,
            )
            return
        mine["beat"] += 1
        with atomic(owner, sync=False) as unfinished:
            unfinished.write_text(json.dumps(mine))


def _read(owner: Path) -> dict[str, Any]:
    """Empty where there is none, or one that is being written."""
    try:
        return json.loads(owner.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
