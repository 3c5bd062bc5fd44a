"""Where text for people goes: results to stdout, progress and warnings to stderr."""

from __future__ import annotations

import sys


def show(text: object) -> None:
    """Print a result, which may be piped."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def notice(text: object, *, end: str = "\n") -> None:
    """Print progress or a warning beside the results."""
    sys.stderr.write(f"{text}{end}")
    sys.stderr.flush()
