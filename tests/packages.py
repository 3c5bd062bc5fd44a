"""Which packages a test can use."""

from __future__ import annotations

from importlib import metadata


def is_installed(distribution: str) -> bool:
    """By the name of the distribution: vLLM for CPUs and vLLM for GPUs are one module."""
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False
