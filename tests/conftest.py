"""What tests share: no network, and configurations composed as on the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker of pytest a core

from medreason import config as configuration
from medreason.config import CONF, Config


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., Config]:
    """`composed("method=sft", ...)`: the typed configuration, outputs in a folder of the test."""

    def build(*overrides: str) -> Config:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            values = compose("config", overrides=[f"outputs={tmp_path}/outputs", *overrides])
        return configuration.load(values)

    return build
