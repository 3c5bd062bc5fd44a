"""MLflow as the view of run folders: everything here is read from a folder and can be sent again.

A run is mirrored by a thread of its own while the worker works. A server that cannot be reached
costs nothing but the view: what it misses is sent when the sweep ends, with the next command, or
by `action=report tracking.resync=true`.
"""

import os

# Before MLflow is imported: a lost server must fail in seconds, and nothing may be sent home.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from medreason.tracking.mirror import catch_up, mirrored
from medreason.tracking.store import prepare, show_audit, show_sweep

__all__ = ["catch_up", "mirrored", "prepare", "show_audit", "show_sweep"]
