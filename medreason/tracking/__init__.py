"""MLflow as a view of run folders: all that is sent is read from a folder and can be sent again.

A thread of the worker sends a run's metrics while it trains. A server that cannot be reached delays
the view alone: what it missed is sent when the sweep ends, with the next command, or by
`action=report sweep=NAME tracking.resync=true`.
"""

import os
import signal
import sys

if "medreason.tracking.pages" in sys.orig_argv:  # Ctrl-C ends it in the seconds of imports, too
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))

# Before MLflow is imported: a lost server must fail in seconds, and no telemetry may be sent.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from medreason.tracking.mirror import catch_up, mirrored, name_runs
from medreason.tracking.store import UNREACHED, prepare, show_audit, show_sweep, warn_unreached

__all__ = [
    "UNREACHED",
    "catch_up",
    "mirrored",
    "name_runs",
    "prepare",
    "show_audit",
    "show_sweep",
    "warn_unreached",
]
