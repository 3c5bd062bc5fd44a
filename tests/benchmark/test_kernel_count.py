"""Decoding and updates of the 2B launch few kernels, counted with tensors without values."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
from transformers import PreTrainedConfig

from medreason.benchmark.kernel_count import decoding_kernels, update_kernels
from medreason.config import Model
from medreason.models.load import meta_model
from medreason.training import update_time


@functools.cache
def config_of_2b() -> PreTrainedConfig:
    return meta_model(Model(name="qwen2_vl_2b", path="Qwen/Qwen2-VL-2B-Instruct")).config  # pyright: ignore[reportReturnType]


@functools.cache
def launches(*, questions: int, fused: bool, checkpointing: bool) -> int:
    settings = {"questions": questions, "fused": fused, "checkpointing": checkpointing}
    return sum(map(len, update_kernels(config_of_2b(), **settings)))


ADAPTER = {
    "r": 8,
    "lora_alpha": 16,
    "target_modules": "all-linear",
    "exclude_modules": ".*visual.*",
}


@pytest.mark.parametrize(
    "kind",
    [{}, {"trained": False}, {"adapter": ADAPTER}],
    ids=["in training", "in evaluation", "with lora_all"],
)
def test_decoding_step_is_at_most_500_kernels(kind: dict[str, Any]) -> None:
    kernels = decoding_kernels(config_of_2b(), **kind)
    assert len(kernels) <= (450 if "adapter" in kind else 320)
    # Attention is one kernel a layer and part, and nothing prepares its mask or repeats its keys.
    operators = Counter(kernel.operator for kernel in kernels)
    shares = kind != {"trained": False}
    own = "medreason::attend" if shares else "aten::_scaled_dot_product_efficient_attention"
    assert operators[own] == 28 * (2 if shares else 1)
    assert not {"aten::where", "aten::cat", "aten::clone"} & operators.keys()
    # Each step reads all weights of the layers and of the head once, in bfloat16, and little else.
    weights = 2 * (1_310_340_096 + 151_936 * 1536)
    assert weights < sum(kernel.moved for kernel in kernels) < 1.15 * weights


def test_steps_of_transformers_layers_are_more_than_1200_kernels() -> None:
    assert len(decoding_kernels(config_of_2b(), fused=False)) > 1200


def test_a_prompt_is_read_once_for_all_its_rows() -> None:
    def attended(completions: int, *, trained: bool) -> int:
        """Bytes read and written by attention."""
        kernels = decoding_kernels(
            config_of_2b(), questions=4, completions=completions, trained=trained
        )
        return sum(k.moved for k in kernels if "atten" in k.operator)

    state = 28 * 2 * 2 * 128 * 2  # bytes of a token's keys and values in all layers
    prompts, rows = 4 * 256 * state, 4 * 64 * state  # a window of 64 tokens for a row of each
    # Four parts of a prompt's keys and one of a row's own leave 12 heads and their sums each.
    parts = 28 * (4 + 1) * 32 * 12 * (128 + 1) * 4
    assert attended(8, trained=True) == pytest.approx(prompts + 8 * rows + parts, rel=0.1)
    assert attended(8, trained=False) == pytest.approx(8 * (prompts + rows), rel=0.1)


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


def test_launches_of_a_layer_by_which_micro_batches_are_chosen() -> None:
    counted = [
        launches(questions=1, fused=True, checkpointing=again) / (28 + 32)
        for again in (False, True)
    ]
    assumed = [update_time._LAUNCHES, update_time._LAUNCHES_AGAIN]
    assert counted == pytest.approx(assumed, rel=0.1)
