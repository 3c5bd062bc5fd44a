"""Plans of the published models need no network."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from medreason.config import Config
from medreason.execution.disk import disk_space
from medreason.models.load import shapes

PARAMETERS = {
    "qwen2_vl_2b": 2_208_985_600,
    "qwen2_vl_7b": 8_291_375_616,
    "qwen2_5_vl_3b": 3_754_622_976,
    "qwen2_5_vl_7b": 8_292_166_656,
    "qwen3_vl_2b": 2_127_532_032,
}
"""As the hub shows them."""


@pytest.mark.parametrize("model", PARAMETERS)
def test_architecture_has_the_parameters_of_the_published_model(
    model: str, composed: Callable[..., Config]
) -> None:
    published = shapes(composed(f"model={model}").model)
    assert sum(map(math.prod, published.values())) == PARAMETERS[model]


def test_disk_of_a_published_model_is_known_without_the_hub(
    composed: Callable[..., Config],
) -> None:
    config = composed("model=qwen2_vl_2b", "method=grpo", "hardware=a100_40gb")
    assert disk_space(config) is None
    space = disk_space(config, shapes(config.model))
    assert space
    assert space.kept == space.download == 2 * PARAMETERS["qwen2_vl_2b"]
    adapted = composed("model=qwen2_vl_2b", "method=rarl", "adapter=lora_r8")
    space = disk_space(adapted, shapes(config.model))
    assert space
    assert space.kept == 4 * 1_089_536  # experiments/rarl/README.md
