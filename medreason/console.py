"""Where text for people goes: results to stdout, progress and warnings to stderr."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path


def show(text: object) -> None:
    """Print a result, which may be piped."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def notice(text: object, *, end: str = "\n") -> None:
    """Print progress or a warning beside the results."""
    sys.stderr.write(f"{text}{end}")
    sys.stderr.flush()


def counted(count: int, noun: str) -> str:
    """`1 run`, `1,152 runs`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def command(words: Iterable[str] = (), module: str = "medreason") -> str:
    """What a user types for `python -m MODULE WORDS`, with the interpreter of this process."""
    return shlex.join([_interpreter(), "-m", module, *words])


def started_command() -> str:
    """What the user typed to start this: `make demo`, which make says, or the command itself."""
    return os.environ.get(STARTED_BY) or command(sys.argv[1:])


def report_command(sweep: str, outputs: Path | str, *words: str) -> str:
    """What a user types for the report of a sweep."""
    where = [f"outputs={outputs}"] if str(outputs) != _USUAL_OUTPUTS else []
    return command(["action=report", f"sweep={sweep}", *words, *where])


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
