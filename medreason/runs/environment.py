"""What a run ran on: commit, packages, hardware. Written beside its results."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from medreason.runs.files import write_json
from medreason.runs.run_folder import RunFolder

_PACKAGES = (
    *("medreason", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "mlflow"),
    *("hydra-core", "numpy", "bitsandbytes", "flash-attn"),
)


def write(folder: RunFolder) -> None:
    """environment.json of the run folder."""
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
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        },
    )


def commit() -> str | None:
    """The commit of the checkout the package lies in, `+dirty` where files differ from it."""
    found = _git("rev-parse", "HEAD")
    return f"{found.strip()}{'+dirty' if _git('status', '--porcelain') else ''}" if found else None


def _git(*arguments: str) -> str | None:
    """None outside a checkout or without git."""
    where = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(where), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
