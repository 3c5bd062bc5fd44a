"""One process works on a run folder at a time: on one machine, and on several that share a disk.

On one machine the kernel keeps the lock (flock) and takes it back from a process that dies. Some
network file systems keep flock to each machine, so the owner also leaves a heartbeat: a number in
`.owner.json` that goes up every few seconds. Another machine watches that number, not a clock: an
owner whose heartbeat stands still is dead, and its lock is taken over.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
from filelock import lock_descriptor

from medreason import console
from medreason.runs import parent_watch
from medreason.runs.files import atomic, read_json

HEARTBEAT_SECONDS = 5.0
MISSED_HEARTBEATS = 4
"""So many heartbeats that do not come say that an owner on another machine is dead."""
_DYING_SECONDS = 60.0  # a worker that is still importing torch notices late
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def held(folder: Path, purpose: str = "") -> Iterator[int | None]:
    """Hold a folder; gives the descriptor a worker has to inherit, None where another holds it.

    `purpose` is for those who find it held: see `owner`.
    While a worker that inherited it lives the folder is held, even if its parent was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner_file = folder / ".owner.json"
    with (folder / ".lock").open("a") as file:
        locked = _lock_or_wait_for_dying(file, owner_file)
        owner = _this_process(purpose)
        if locked is False or not _claim(owner_file, owner, locked=locked is True):
            yield None
            return
        released = threading.Event()
        heart = threading.Thread(target=_beat, args=(owner_file, owner, released), daemon=True)
        heart.start()
        try:
            yield file.fileno()
        finally:
            released.set()
            heart.join()
            if _read_owner(owner_file).get("token") == owner["token"]:  # else it was taken over
                owner_file.unlink(missing_ok=True)


def _this_process(purpose: str) -> dict[str, Any]:
    """The content of an owner's file."""
    return {
        "boot": boot_id(),
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "purpose": purpose,
        "token": uuid.uuid4().hex,
        "heartbeat": 0,
    }


def owner(folder: Path) -> str:
    """Who holds a folder: `process 4242 (sweep=demo)`, of another machine with its name; `another
    process` where the owner's file does not say."""
    found = _read_owner(folder / ".owner.json")
    if not found:
        return "another process"
    where = "" if found["boot"] == boot_id() else f" on {found.get('host', 'another machine')}"
    purpose = f" ({found['purpose']})" if found.get("purpose") else ""
    return f"process {found['pid']}{where}{purpose}"


def is_held(folder: Path) -> bool:
    """Whether a process works on a folder, for a table: it neither waits nor takes the lock.

    The owner's file outlives an owner that was killed. On this machine its process tells; of
    another machine, whose clock may differ, a heartbeat within the last minute.
    """
    owner_file = folder / ".owner.json"
    owner = _read_owner(owner_file)
    if not owner:
        return False
    try:
        written = owner_file.stat().st_mtime
        if owner.get("boot") != boot_id():
            return time.time() - written < _DYING_SECONDS
        process = psutil.Process(owner["pid"])
        # A younger process has the killed owner's number by chance.
        return parent_watch.is_alive(process) and process.create_time() <= written
    except (FileNotFoundError, psutil.NoSuchProcess):
        return False


@contextmanager
def briefly(path: Path) -> Iterator[None]:
    """Wait for a lock file that others hold for milliseconds only."""
    with path.open("a") as file:
        kernel_lock(file, wait=True)
        yield


def kernel_lock(file: IO[str], *, wait: bool = False) -> bool | None:
    """Whether the kernel gives the lock on an open file; None where the file system has none.

    Closing the file releases it once no process has it open. filelock's FileLock would release it
    for a worker too that inherited the descriptor, so only its lock on a descriptor is used.
    """
    try:
        return lock_descriptor(file.fileno(), blocking=wait, poll_interval=0.01)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return None


def boot_id() -> str:
    """Which start of which machine this is: process ids and flock mean something within it."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else f"{os.uname().nodename}"


def _lock_or_wait_for_dying(file: IO[str], owner_file: Path) -> bool | None:
    """As `kernel_lock`; the worker of a killed owner holds it a second longer, which is waited for.

    Such an owner is of this machine, and its process is gone.
    """
    deadline = time.monotonic() + _DYING_SECONDS
    while (locked := kernel_lock(file)) is False:
        owner = _read_owner(owner_file)
        killed_here = owner.get("boot") == boot_id() and not _is_running(owner["pid"])
        if not killed_here or time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return locked


def _claim(owner_file: Path, owner: dict[str, Any], *, locked: bool) -> bool:
    """Write the owner's file where there is none, or where its owner is dead."""
    for _ in range(3):
        try:
            with owner_file.open("x") as stream:
                json.dump(owner, stream)
            return True
        except FileExistsError:
            other = _read_owner(owner_file)
            if _is_alive(owner_file, other, locked=locked):
                return False
            if _read_owner(owner_file) == other:  # else another machine has just taken it over
                owner_file.unlink(missing_ok=True)
    return False


def _is_running(pid: int) -> bool:
    try:
        return parent_watch.is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _is_alive(owner_file: Path, owner: dict[str, Any], *, locked: bool) -> bool:
    """Whether the owner lives: by the kernel on this machine, by its heartbeat on another."""
    if owner.get("boot") == boot_id():
        return not locked and _is_running(owner["pid"])
    for _ in range(MISSED_HEARTBEATS):
        time.sleep(HEARTBEAT_SECONDS)
        if _read_owner(owner_file) != owner:
            return True
    return False


def _beat(owner_file: Path, owner: dict[str, Any], released: threading.Event) -> None:
    while not released.wait(HEARTBEAT_SECONDS):
        if _read_owner(owner_file).get("token") != owner["token"]:
            console.notice(
                f"{owner_file}: another machine took this run over, since it saw no heartbeat for "
                f"{MISSED_HEARTBEATS * HEARTBEAT_SECONDS:.0f} s"
            )
            return
        owner["heartbeat"] += 1
        with atomic(owner_file, sync=False) as unfinished:
            unfinished.write_text(json.dumps(owner))


def _read_owner(owner_file: Path) -> dict[str, Any]:
    """Empty where there is none, or one that is being written or was damaged."""
    try:
        return read_json(owner_file)
    except (FileNotFoundError, ValueError):
        return {}
