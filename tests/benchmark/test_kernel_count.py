"""Decoding and updates of the 2B launch few kernels, counted with tensors without values."""

from __future__ import annotations

import pytest
from transformers import PreTrainedConfig

from medreason.benchmark.kernel_count import decoding_kernels, update_kernels
from medreason.config import Model
from medreason.models.load import meta_model


@pytest.fixture(scope="module")
def config_of_2b() -> PreTrainedConfig:
    return meta_model(Model(name="qwen2_vl_2b", path="Qwen/Qwen2-VL-2B-Instruct")).config  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("trained", [True, False], ids=["in training", "in evaluation"])
def test_decoding_step_is_at_most_500_kernels(
    config_of_2b: PreTrainedConfig, trained: bool
) -> None:
    assert decoding_kernels(config_of_2b, trained=trained, fused=False).total() > 1200
    fused = decoding_kernels(config_of_2b, trained=trained)
    assert fused.total() <= 500
    # Attention is one kernel a layer, so nothing prepares its mask or repeats its keys.
    assert fused["aten::_scaled_dot_product_efficient_attention"] == 28
    assert not fused["aten::where"] + fused["aten::cat"] + fused["aten::clone"]


def test_update_of_four_questions_is_a_third_of_the_kernels_one_by_one(
    config_of_2b: PreTrainedConfig,
) -> None:
    one_by_one = 4 * update_kernels(config_of_2b, questions=1, fused=False).total()
    assert one_by_one == pytest.approx(4 * 10_900, rel=0.01)
    assert update_kernels(config_of_2b, questions=4).total() <= one_by_one / 3


@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "without"])
def test_update_of_a_question_is_less_than_two_thirds_of_transformers_kernels(
    config_of_2b: PreTrainedConfig, checkpointing: bool
) -> None:
    stock, fused = (
        update_kernels(config_of_2b, questions=1, checkpointing=checkpointing, fused=fused).total()
        for fused in (False, True)
    )
    assert fused <= 2 / 3 * stock
