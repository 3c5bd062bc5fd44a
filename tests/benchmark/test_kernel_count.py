"""Decoding and updates of the 2B launch few kernels, counted with tensors without values."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
from transformers import PreTrainedConfig

from medreason.benchmark.kernel_count import decoding_kernels, update_kernels
from medreason.config import Model
from medreason.models.load import meta_model


@functools.cache
def config_of_2b() -> PreTrainedConfig:
    return meta_model(Model(name="qwen2_vl_2b", path="Qwen/Qwen2-VL-2B-Instruct")).config  # pyright: ignore[reportReturnType]


@functools.cache
def launches(*, questions: int, fused: bool, checkpointing: bool) -> int:
    settings = {"questions": questions, "fused": fused, "checkpointing": checkpointing}
    return sum(map(len, update_kernels(config_of_2b(), **settings)))


@pytest.mark.parametrize("trained", [True, False], ids=["in training", "in evaluation"])
def test_decoding_step_is_at_most_500_kernels(trained: bool) -> None:
    assert len(decoding_kernels(config_of_2b(), trained=trained, fused=False)) > 1200
    kernels = decoding_kernels(config_of_2b(), trained=trained)
    assert len(kernels) <= 500
    # Attention is one kernel a layer, and nothing prepares its mask or repeats its keys.
    operators = Counter(kernel.operator for kernel in kernels)
    assert operators["aten::_scaled_dot_product_efficient_attention"] == 28
    assert not {"aten::where", "aten::cat", "aten::clone"} & operators.keys()
    # Each step reads all weights of the layers and of the head once, in bfloat16, and little else.
    weights = 2 * (1_310_340_096 + 151_936 * 1536)
    assert weights < sum(kernel.moved for kernel in kernels) < 1.15 * weights


def test_update_of_four_questions_is_a_third_of_the_kernels_one_by_one() -> None:
    one_by_one = 4 * launches(questions=1, fused=False, checkpointing=True)
    assert one_by_one == pytest.approx(4 * 10_900, rel=0.01)
    assert launches(questions=4, fused=True, checkpointing=True) <= one_by_one / 3


@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "without"])
def test_update_of_a_question_is_less_than_two_thirds_of_transformers_kernels(
    checkpointing: bool,
) -> None:
    stock, fused = (
        launches(questions=1, fused=fused, checkpointing=checkpointing) for fused in (False, True)
    )
    assert fused <= 2 / 3 * stock
