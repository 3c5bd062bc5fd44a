"""What a run ran on: commit, packages, hardware. Written beside its results. No torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from medreason.runs.files import write_json
from medreason.runs.run_folder import RunFolder

_PACKAGES = (
    *("medreason", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "mlflow"),
    *("hydra-core", "numpy", "bitsandbytes", "flash-attn"),
)


def write(folder: RunFolder, gpus: Sequence[str], cuda: str | None) -> None:
    """Write environment.json of the run folder; names and CUDA version are those torch sees."""
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    write_json(
        folder.environment,
        {
            "commit": commit(),
            "diff": _git("diff", "HEAD"),
            "python": platform.python_version(),
            "packages": {p: importlib.metadata.version(p) for p in _PACKAGES if p in installed},
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "gpus": list(gpus),
            "cuda": cuda,
        },
    )


def commit() -> str | None:
    """The commit of the checkout the package lies in, `+dirty` where files differ from it."""
    head = _git("rev-parse", "HEAD")
    return f"{head.strip()}{'+dirty' if _git('status', '--porcelain') else ''}" if head else None


def _git(*arguments: str) -> str | None:
    """None outside a checkout or without git."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        git = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return git.stdout if git.returncode == 0 else None
