"""Where text for people goes: results to stdout, progress and warnings to stderr."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import select
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO


def show(text: object, *, end: str = "\n") -> None:
    """Print a result, which may be piped.

    Raises:
        BrokenPipeError: nobody reads the pipe any longer, as behind `| head`, and neither is this a
            command (`work_without_readers`) nor has a signal ended it.
    """
    _write(sys.stdout, f"{text}{end}", without_readers=_works_without_readers)


def notice(text: object, *, end: str = "\n") -> None:
    """Print progress or a warning beside the results; nobody need be there to read it."""
    _write(sys.stderr, f"{text}{end}", without_readers=True)


_works_without_readers = False
_results_are_lost = False


def work_without_readers() -> None:
    """From now on nothing that is printed fails for want of a reader: a command does its work and
    writes its files where the `head` behind it has ended."""
    global _works_without_readers
    _works_without_readers = True


def end_without_readers() -> None:
    """As `work_without_readers`, after a signal that has closed the terminal, or ended the `tee`
    behind a pipe."""
    work_without_readers()
    for stream in (sys.stdout, sys.stderr):
        if _has_lost_its_reader(stream):
            _discard(stream)


def results_are_lost(*, is_broken: bool = False) -> bool:
    """Whether nobody read stdout to its end. What libraries have printed is flushed first; where
    one could not print (`is_broken`), nothing of it is left to flush."""
    _write(sys.stdout, "", without_readers=True)
    if is_broken and _has_lost_its_reader(sys.stdout):
        _discard(sys.stdout)
        return True
    return _results_are_lost


def _write(stream: TextIO, text: str, *, without_readers: bool) -> None:
    """Write at once. Where the terminal is closed, or with `without_readers` a pipe, this and all
    that follows goes to /dev/null."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        expected = error.errno == errno.EIO or (without_readers and error.errno == errno.EPIPE)
        if not expected or not _has_lost_its_reader(stream):
            raise
        if stream is sys.stdout and error.errno == errno.EPIPE:
            global _results_are_lost
            _results_are_lost = True
        _discard(stream)


def _has_lost_its_reader(stream: TextIO) -> bool:
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)  # errors alone
    except (OSError, ValueError):  # no file, or closed
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard(stream: TextIO) -> None:
    """Send it to /dev/null, with what it still holds, which Python would write at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def counted(count: int, noun: str) -> str:
    """`1 run`, `1,152 runs`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def number_text(number: float, digits: int = 6) -> str:
    """Rounded to so many digits and written as one types it: 0.25, 0.001, and below that 5e-5."""
    if not math.isfinite(number):
        return str(number)
    mantissa, _, power = f"{number:.{digits - 1}e}".partition("e")
    if number and int(power) < _LEAST_POWER:
        return f"{float(mantissa):.{digits}g}e{int(power)}"
    return re.sub(r"e\+0*", "e", f"{number:.{digits}g}")


_LEAST_POWER = -3  # of ten, of a number without an exponent


def as_typed(value: object) -> str:
    """The text of a value; of a number below 0.001 as `number_text`, however it was typed."""
    text = str(value)
    try:
        number = float(text)
    except ValueError:
        return text
    return number_text(number, _ALL_DIGITS) if 0 < abs(number) < 10**_LEAST_POWER else text


_ALL_DIGITS = 15  # that a float keeps of what was typed


def command(words: Iterable[str] = (), module: str = "medreason") -> str:
    """What a user types for `python -m MODULE WORDS`, with the interpreter of this process."""
    return shlex.join([_interpreter(), "-m", module, *words])


def install_command(extra: str, overrides: str = "") -> str:
    """What a user types, in any folder, for an extra of this package; `overrides` is a file of the
    clone with the versions that go before others."""
    if not (_CLONE / "pyproject.toml").is_file():
        return shlex.join(["pip", "install", f"medreason[{extra}]"])
    first = ["--override", str(_CLONE / overrides)] if overrides else []
    return shlex.join(["uv", "pip", "install", *first, "-e", f"{_CLONE}[{extra}]"])


_CLONE = Path(__file__).resolve().parents[1]
"""The folder of the repository, where the package is used from a clone."""


def started_command(words: Iterable[str] | None = None) -> str:
    """What the user typed to start this: `make demo`, which make says, or the command itself, with
    `words` in place of its own."""
    return os.environ.get(STARTED_BY) or command(sys.argv[1:] if words is None else words)


def report_command(sweep: str, outputs: Path | str, *words: str) -> str:
    """What a user types for the report of a sweep."""
    return command(["action=report", f"sweep={sweep}", *words, *outputs_word(outputs)])


def outputs_word(outputs: Path | str) -> list[str]:
    """`outputs=FOLDER` of a command, where it is not the usual one."""
    return [f"outputs={outputs}"] if str(outputs) != _USUAL_OUTPUTS else []


_USUAL_OUTPUTS = "outputs"
"""The value of `outputs` in conf/config.yaml, which a command need not name."""
STARTED_BY = "MEDREASON_COMMAND"
"""Environment variable with the command that has started this one, where that is another."""


def _interpreter() -> str:
    """`python` where the shell's is this one; else its path, from this folder if it is below."""
    own = Path(sys.executable)
    for name in ("python", "python3"):
        found = shutil.which(name)
        # Of the same folder, too: a virtual environment links to the interpreter it is made of.
        if found and Path(found).absolute().parent == own.parent and own.samefile(found):
            return name
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)


def first_line(error: BaseException) -> str:
    """Of the error's text, or the name of its class where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def quiet_libraries() -> None:
    """Leave out what libraries print that no command line changes: names to be renamed, a kernel
    that has a substitute, the start and end of a monitor.

    Before they are imported: bitsandbytes says then which kernels it has not.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    # They are for the reference model, which TRL loads by itself.
    logging.getLogger("trl.trainer.grpo_trainer").addFilter(
        lambda record: "`model_init_kwargs`" not in record.getMessage()
    )
