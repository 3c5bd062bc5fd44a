"""What replaces transformers' layers is used only where it runs and computes the same."""

from __future__ import annotations

import subprocess

import pytest
import torch
from transformers import PreTrainedModel, Qwen2VLForConditionalGeneration

from medreason.generation.small_models import are_as_in_transformers

FAMILY, CPU = Qwen2VLForConditionalGeneration, torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: no kernel image is available\nmore"),
        OSError("no compiler"),
        subprocess.CalledProcessError(1, "gcc"),
    ],
)
def test_kernels_that_cannot_be_built_or_launched_are_not_used(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def difference(small: PreTrainedModel) -> float:
        raise error

    assert not are_as_in_transformers("layers", FAMILY, CPU, difference)
    (line,) = caplog.messages
    assert line.startswith("layers of Qwen2VLForConditionalGeneration in few kernels cannot be run")
    assert str(error).splitlines()[0] in line


def test_a_compiler_of_kernels_that_fails_ends_no_run() -> None:
    errors = pytest.importorskip("triton.errors")

    def difference(small: PreTrainedModel) -> float:
        raise errors.TritonError("invalid layout")

    assert not are_as_in_transformers("layers", FAMILY, CPU, difference)


def test_another_result_is_not_used() -> None:
    assert are_as_in_transformers("layers", FAMILY, CPU, lambda small: 1e-6)
    assert not are_as_in_transformers("layers", FAMILY, CPU, lambda small: 1e-3)
