"""Post-training of vision-language models for medical visual question answering.

In Python: `compose`, `load_run`, `load_runs`, `predictions` and `rollouts`, imported when used.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from medreason.moved import OldImports

if TYPE_CHECKING:
    from medreason.config.composing import compose
    from medreason.report.loading import load_run, load_runs, predictions, rollouts

__all__ = ["compose", "load_run", "load_runs", "predictions", "rollouts"]

sys.meta_path.append(OldImports)


def __getattr__(name: str) -> object:
    """A public function; its module takes seconds to import and the command line needs none."""
    if name not in __all__:
        raise AttributeError(f"module 'medreason' has no attribute {name!r}")
    module = "config.composing" if name == "compose" else "report.loading"
    return getattr(importlib.import_module(f"medreason.{module}"), name)
