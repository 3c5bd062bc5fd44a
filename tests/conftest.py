"""What tests share: no network, and configurations composed as on the command line."""

from __future__ import annotations

import copy
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drawn_phantoms
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker of pytest a core

from medreason import config as configuration
from medreason.config import CONF, Config

LONGEST = (
    *("test_end_to_end", "test_grouped_trainer", "test_same_science", "test_divergence"),
    *("test_store", "test_adapter", "test_update_check", "test_callback", "test_pairs"),
    *("test_validation", "test_wrong_inputs", "test_export_and_predict", "test_kernel_count"),
    *("test_rehearse", "test_qwen2_5_vl", "test_memory_check", "test_page_in_browser"),
    "test_killed",
)
"""Files that take ten seconds or more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that none is left alone at the end."""
    order = {stem: place for place, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections, which trainings ask for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Phantoms and the tables of an empty database, which tests of all processes ask for."""
    import empty_databases  # and MLflow with it, which the process that deals the files needs not

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    drawn_phantoms.share(folder)
    empty_databases.share(folder)


@pytest.fixture(autouse=True)
def no_ranks_are_left() -> Iterator[None]:
    """What TRL and accelerate write for their own process would reach a later test's command."""
    yield
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"} & os.environ.keys()


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., Config]:
    """`composed("method=sft", ...)`: the typed configuration, outputs in a folder of the test."""

    def build(*overrides: str) -> Config:
        outputs = [o.partition("=")[2] for o in overrides if o.startswith("outputs=")]
        others = tuple(o for o in overrides if not o.startswith("outputs="))
        values = copy.deepcopy(_compose(others))
        values.outputs = outputs[-1] if outputs else f"{tmp_path}/outputs"
        return configuration.load(values)

    return build


@functools.cache
def _compose(overrides: tuple[str, ...]) -> DictConfig:
    """What Hydra composes. It takes a third of a second to choose options, which many tests share,
    and hardly any to set values (keys with a dot)."""
    values = [o for o in overrides if "." in o.partition("=")[0]]
    if values and not any(o.startswith(("hydra", "+hydra")) for o in values):
        composed = copy.deepcopy(_compose(tuple(o for o in overrides if o not in values)))
        parsed = OverridesParser.create().parse_overrides(values)
        ConfigLoaderImpl._apply_overrides_to_config(parsed, composed)
        return composed
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Qwen2.5-VL of random weights and the tiny model's tokenizer. An image of
    112 x 112 is four windows; of its vision layers the second attends to the whole image."""
    import torch
    from transformers import (
        AutoConfig,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLProcessor,
    )

    from medreason.models.model_folder import EMBEDDED

    folder = tmp_path_factory.mktemp("qwen2_5_vl")
    values = AutoConfig.from_pretrained(EMBEDDED).to_dict()
    shape = {"depth": 3, "hidden_size": 96, "intermediate_size": 160, "num_heads": 4}
    windows = {"window_size": 56, "fullatt_block_indexes": [1], "initializer_range": 0.06}
    text = {
        k: v for k, v in values["text_config"].items() if k not in ("model_type", "layer_types")
    }
    config = Qwen2_5_VLConfig(
        text_config=text | {"num_hidden_layers": 2},
        vision_config=shape | windows | {"out_hidden_size": text["hidden_size"]},
        **{k: v for k, v in values.items() if k.endswith("_token_id") or k.startswith("tie")},
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore
    tiny: Any = Qwen2VLProcessor.from_pretrained(EMBEDDED)
    parts = (tiny.image_processor, tiny.tokenizer, tiny.video_processor)
    Qwen2_5_VLProcessor(*parts, chat_template=tiny.chat_template).save_pretrained(folder)
    return folder
