"""Where text for people goes: results to stdout, progress and warnings to stderr."""

from __future__ import annotations

import logging
import sys
import warnings


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
